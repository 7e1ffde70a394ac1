"""Retrieval: a picture, its own text, and texts of other pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from .official_builder import clean_text
from .schema import Row
from .shards import PreparedCorpus, open_shard, read_row_group, read_shard
from .task_collators import Batch, PairCollator

_SCHEMA = pa.schema({"image_id": pa.string(), "captions": pa.list_(pa.string())})


class RetrievalCollator(PairCollator):
    """Groups of one true text and `num_negatives` texts of other pictures (thesis section 3.4: 15).

    A batch has `input_ids`, `attention_mask`, `token_type_ids` `(batch, 1 + num_negatives, length)`,
    `pixel_values (batch, 3, H, W)` once per group, and `labels (batch,)`: the true text is the first one, 0.
    `text` is a list per picture.

    A negative is drawn anew in every epoch, from seed, epoch and image id. No text of a group is another's
    twin, and none but the first is one of the picture's own captions, up to case and spacing; that it may
    still fit the picture is the noise that this training is known for.

    Args:
        processor: See `PairCollator`.
        captions: What negatives are drawn from, see `read_captions`.
        num_negatives: At least 1.
        kwargs: Of `PairCollator`.
    """

    def __init__(
        self, processor: ProcessorMixin, captions: pa.Table, num_negatives: int = 15, **kwargs: Any
    ) -> None:
        super().__init__(processor, **kwargs)
        # Arrow keeps half a million captions outside of Python's objects: workers share them.
        self.owners, self.captions = (captions[name].combine_chunks() for name in ("image_id", "caption"))
        self.num_negatives = num_negatives

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id` and `captions`."""
        examples, images = self.readable(examples, "image")
        texts = [[self._caption(example), *self._negatives(example)] for example in examples]
        batch = self.encode(images, [text for group in texts for text in group])
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            batch[name] = batch[name].unflatten(0, (len(examples), -1))  # (batch, 1 + num_negatives, length)
        return {**batch, "text": texts, "labels": torch.zeros(len(examples), dtype=torch.long)}

    def _negatives(self, example: dict[str, Any]) -> list[str]:
        draws = self._random(example["image_id"], "negatives")
        used = {_plain(caption) for caption in example["captions"]} | {""}
        chosen: list[str] = []
        tries = 1000 * self.num_negatives if len(self.captions) else 0  # draws of a used text are repeated
        for _ in range(tries):
            place = draws.randrange(len(self.captions))
            caption = self.captions[place].as_py() or ""
            if self.owners[place].as_py() != example["image_id"] and _plain(caption) not in used:
                used.add(_plain(caption))
                chosen.append(caption)
            if len(chosen) == self.num_negatives:
                return chosen
        raise ValueError(
            f"Among {len(self.captions)} captions only {len(chosen)} are no caption of image "
            f"{example['image_id']!r}, and different; lower num_negatives ({self.num_negatives}) or add data."
        )


def read_captions(corpus: PreparedCorpus, splits: Sequence[str]) -> pa.Table:
    """All captions of a prepared corpus; of Parquet, without touching its pictures. See `caption_table`.

    Raises:
        ValueError: If there is no such split.
        FileNotFoundError, OSError: If a shard is missing or damaged.
    """
    addresses = [file for split in splits for file in corpus.files(split)]
    rows = [
        row
        for address in tqdm(addresses, desc="read captions", unit="shard")
        for row in _rows_without_pictures(corpus, address)
    ]
    return caption_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def _rows_without_pictures(corpus: PreparedCorpus, address: str) -> Iterator[Row]:
    if corpus.manifest.format == "parquet":
        with open_shard(address) as shard:
            for group in range(shard.num_row_groups):
                yield from read_row_group(address, shard, group, columns=_SCHEMA.names)
    else:  # a tar has no columns: its pictures are read and dropped
        for row in read_shard(address, corpus.manifest.task, corpus.manifest.format):
            yield {name: row[name] for name in _SCHEMA.names}


def caption_table(rows: pa.Table) -> pa.Table:
    """One row per caption, `image_id` and `caption`, of rows with `image_id` and a list of `captions`."""
    lists = rows["captions"].combine_chunks()
    parents = pc.list_parent_indices(lists)  # pyright: ignore[reportAttributeAccessIssue] - made on import
    owners = rows["image_id"].combine_chunks().take(parents)
    return pa.table({"image_id": owners, "caption": lists.flatten()})


def _plain(text: str) -> str:
    return clean_text(text).casefold()
