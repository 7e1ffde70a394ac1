"""The texts of a batch and their encoding, which must belong together."""

from typing import Any

from .base import Batch

ENCODED_FIELDS = ("input_ids", "attention_mask", "token_type_ids")


def encode_texts(tokenizer: Any, texts: list[str], max_length: int, like: Batch) -> dict[str, Any]:
    """`text` and the encoded fields that `like` has, on its device, padded to the longest text."""
    encoding = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    device = like["input_ids"].device
    return {"text": texts, **{name: encoding[name].to(device) for name in ENCODED_FIELDS if name in like}}


def token_ids(tokenizer: Any, texts: list[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, truncated, not padded."""
    return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]


def misencoded_row(tokenizer: Any, batch: Batch, max_length: int) -> int | None:
    """The first row whose `input_ids` are not those of its `text`; None if there is none."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for row, expected in enumerate(token_ids(tokenizer, list(batch["text"]), max_length)):
        if ids[row][mask[row] != 0].tolist() != expected:
            return row
    return None


def check_encoding(tokenizer: Any, batch: Batch, max_length: int, attack: str) -> None:
    """Refuse a batch that an attack on words cannot attack.

    Raises:
        ValueError: If the texts are missing or `input_ids` is not their encoding.
    """
    if missing := [name for name in ("text", "input_ids", "attention_mask") if name not in batch]:
        raise ValueError(f"{attack} needs {', '.join(missing)} in the batch, which has {sorted(batch)}.")
    row = misencoded_row(tokenizer, batch, max_length)
    if row is not None:
        raise ValueError(
            f"input_ids of row {row} are not the encoding of its text {batch['text'][row]!r} "
            f"(max_length={max_length}); give the attack the tokenizer and max_length that made them."
        )
