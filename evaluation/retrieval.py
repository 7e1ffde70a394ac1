"""Image and text retrieval: Recall@K in both directions over a whole, declared gallery, with chance beside
it.
"""

from collections.abc import Iterator, Sequence
from math import comb
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from rmcl_hub.attacks.base import frozen

from .intervals import wilson_interval
from .metrics import recall_at_k

RECALL_CUTOFFS = (1, 5, 10)


class RecallRate(TypedDict):
    """Recall at one cut-off, its 95 % Wilson interval over the queries, and what a random ranking reaches."""

    value: float
    low: float
    high: float
    chance: float


class DirectionNumbers(TypedDict):
    """One direction: `recall` maps the cut-off (a string, for JSON) to its numbers."""

    num_queries: int
    gallery_size: int
    recall: dict[str, RecallRate]


class RetrievalNumbers(TypedDict):
    """Both directions; texts are the distinct captions of the pictures."""

    scorer: str
    forwards: int
    text_to_image: DirectionNumbers
    image_to_text: DirectionNumbers


def evaluate_retrieval(
    model: Any,
    dataset: Any,
    processor: ProcessorMixin,
    *,
    scorer: Literal["dual", "cross"],
    batch_size: int,
    max_text_length: int = 40,
) -> RetrievalNumbers:
    """Rank every caption for every picture and back.

    Equal captions (up to case and surrounding space) are one text, which is right for every picture that has
    it. The gallery is the whole data set: for a smaller one draw a seeded random subset, never the first N.

    Args:
        model: With `image_embedding(pixel_values, pixel_mask)` and `text_embedding(input_ids,
            attention_mask)` for `"dual"`; with `joint_representation` and `logits_from_joint` (logits `(B,
            1)`, or `(B, 2)` with class 1 = true pair) for `"cross"`.
        dataset: Rows with `image` (PIL) and `captions`.
        processor: Its image processor and tokenizer encode the two sides.
        scorer: `"dual"` embeds every picture and text once: texts + pictures forwards. `"cross"` sends every
            pair through the joint encoder: texts x pictures forwards.
        batch_size: Rows per forward.
        max_text_length: Word pieces kept, special tokens included.

    Raises:
        ValueError: If the data set is empty, a picture has no caption or the scorer is unknown.
    """
    scorers = {"dual": dual_encoder_scores, "cross": cross_encoder_scores}
    if scorer not in scorers:
        raise ValueError(f"scorer is {scorer!r}; expected one of {', '.join(scorers)}.")
    rows = list(dataset)
    texts, relevant = distinct_captions([row["captions"] for row in rows])
    images = [row["image"] for row in rows]
    scores = scorers[scorer](model, images, texts, processor, batch_size, max_text_length)
    forwards = len(texts) + len(images) if scorer == "dual" else len(texts) * len(images)
    return {
        "scorer": scorer,
        "forwards": forwards,
        "text_to_image": recall_numbers(scores, relevant),
        "image_to_text": recall_numbers(scores.T, relevant.T),
    }


def distinct_captions(captions: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.bool_]]:
    """Merge equal captions.

    Args:
        captions: Per picture, its captions.

    Returns:
        The T distinct texts, and whether each belongs to each picture, `(T, pictures)`.

    Raises:
        ValueError: If there are no pictures or one has no caption.
    """
    if not captions:
        raise ValueError("the data set is empty; retrieval needs at least one picture with a caption.")
    bare = [index for index, texts in enumerate(captions) if not texts]
    if bare:
        raise ValueError(f"picture {bare[0]} has no caption; drop such rows before the evaluation.")
    texts: dict[str, str] = {}
    for caption in (caption for of_image in captions for caption in of_image):
        texts.setdefault(_normalised(caption), caption)
    position = {key: index for index, key in enumerate(texts)}
    relevant = np.zeros((len(texts), len(captions)), dtype=bool)
    for image, of_image in enumerate(captions):
        for caption in of_image:
            relevant[position[_normalised(caption)], image] = True
    return list(texts.values()), relevant


def recall_numbers(scores: NDArray, relevant: NDArray[np.bool_]) -> DirectionNumbers:
    """Recall@1, 5 and 10, as far as the gallery is larger than that.

    Args:
        scores: Higher is better, `(queries, gallery)`.
        relevant: Which items are right, `(queries, gallery)`.
    """
    num_queries, gallery_size = scores.shape
    recall: dict[str, RecallRate] = {}
    for k in (k for k in RECALL_CUTOFFS if k <= gallery_size):
        value = recall_at_k(scores, relevant, k)
        low, high = wilson_interval(round(value * num_queries), num_queries)
        recall[str(k)] = {"value": value, "low": low, "high": high, "chance": chance_recall(relevant, k)}
    return {"num_queries": num_queries, "gallery_size": gallery_size, "recall": recall}


def chance_recall(relevant: NDArray[np.bool_], k: int) -> float:
    """Expected Recall@k of a random ranking: 1 - C(N - r, k) / C(N, k) for a query with r relevant items of
    N.
    """
    gallery_size = relevant.shape[1]
    counts = relevant.sum(axis=1).tolist()
    return float(np.mean([1 - comb(gallery_size - count, k) / comb(gallery_size, k) for count in counts]))


@torch.no_grad()
def dual_encoder_scores(
    model: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    processor: ProcessorMixin,
    batch_size: int,
    max_text_length: int,
) -> NDArray:
    """Dot products of text and image embeddings, `(texts, images)`."""
    device = next(model.parameters()).device
    with frozen(model):
        text_embeddings = [
            model.text_embedding(**_encode_texts(processor, chunk, max_text_length, device))
            for chunk in _chunks(texts, batch_size, "embed texts")
        ]
        image_embeddings = [
            model.image_embedding(**_encode_images(processor, chunk, device))
            for chunk in _chunks(images, batch_size, "embed images")
        ]
    return (torch.cat(text_embeddings) @ torch.cat(image_embeddings).T).cpu().numpy()


@torch.no_grad()
def cross_encoder_scores(
    model: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    processor: ProcessorMixin,
    batch_size: int,
    max_text_length: int,
) -> NDArray:
    """Log odds (or rank scores) that a text and an image are a pair, all of them, `(texts, images)`.

    Each forward holds one image with `batch_size` texts; the texts are tokenised once.
    """
    device = next(model.parameters()).device
    encoded = [
        _encode_texts(processor, texts[start : start + batch_size], max_text_length, device)
        for start in range(0, len(texts), batch_size)
    ]
    columns = []
    with frozen(model):
        for chunk in _chunks(images, 1, "score pairs"):
            picture = _encode_images(processor, chunk, device)
            column = []
            for text in encoded:
                repeated = {
                    name: value.expand(len(text["input_ids"]), *value.shape[1:])
                    for name, value in picture.items()
                }
                column.append(
                    _pair_score(model.logits_from_joint(model.joint_representation(**text, **repeated)))
                )
            columns.append(torch.cat(column))
    return torch.stack(columns, dim=1).cpu().numpy()  # (texts, images)


def _pair_score(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits[:, 0]
    if logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    raise ValueError(
        f"a matching head has 1 or 2 logits per pair, got {logits.shape[1]}; "
        "load an image-text matching or retrieval model."
    )


def _normalised(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _chunks(items: Sequence[Any], size: int, description: str) -> Iterator[Sequence[Any]]:
    with tqdm(total=len(items), desc=description) as progress:
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            yield chunk
            progress.update(len(chunk))


def _encode_texts(
    processor: ProcessorMixin, texts: Sequence[str], max_text_length: int, device: torch.device
) -> dict[str, Tensor]:
    tokens = processor.tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_text_length, return_tensors="pt"
    )
    return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}


def _encode_images(
    processor: ProcessorMixin, images: Sequence[Any], device: torch.device
) -> dict[str, Tensor]:
    pixels = processor.image_processor([image.convert("RGB") for image in images], return_tensors="pt")
    return {name: pixels[name].to(device) for name in ("pixel_values", "pixel_mask")}
