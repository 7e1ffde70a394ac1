"""The embedded image-text set "openpairs": captioned drawings, and the tasks computed from their metadata.

The parquet files travel inside the package (`openpairs/`, with dataset card and licences): nothing is
downloaded. They fit in memory: no Arrow cache is written, hence none can go stale or needs a writable folder.
"""

from importlib.resources import files
from typing import Any, Literal, overload

import datasets
import pyarrow.parquet as pq

from .openpairs_phrases import digest
from .openpairs_questions import vqa_answers, vqa_rows
from .openpairs_statements import nlvr2_rows
from .schema import FEATURES as TASK_FEATURES

__all__ = ["load_openpairs", "read_metadata", "vqa_answers"]

SPLITS_OF_CONFIG = {
    "captions": ("train", "validation", "test"),
    "noto": ("validation", "test"),
    "vqa": ("train", "validation", "test"),
    "nlvr2": ("train", "validation", "test"),
}
NUM_SHARDS = 8
"""Streams are cut into this many shards, so that data loader workers and processes can share them."""

FEATURES = {config: TASK_FEATURES["captions" if config == "noto" else config] for config in SPLITS_OF_CONFIG}


@overload
def load_openpairs(
    config: str = ..., split: str = ..., streaming: Literal[False] = ...
) -> datasets.Dataset: ...
@overload
def load_openpairs(
    config: str = ..., split: str = ..., *, streaming: Literal[True]
) -> datasets.IterableDataset: ...
def load_openpairs(
    config: str = "captions", split: str = "train", streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of one configuration; streaming gives the same rows in the same order.

    Args:
        config: `captions` (OpenMoji; openclipart too in `train`), `noto` (the held-out concepts in another
            style, for retrieval), `vqa` or `nlvr2` (tasks computed from the metadata of the same split).
        split: `train`, `validation` or `test`; `noto` has no `train`.
        streaming: Return a `datasets.IterableDataset` instead of a `datasets.Dataset`.

    Returns:
        Rows with the columns of `FEATURES[config]`; images are 96 px RGB pictures, decoded on access.

    Raises:
        ValueError: If the configuration or the split does not exist; the message lists those that do.

    Examples:
        >>> load_openpairs("captions", "test")[0]["captions"]  # doctest: +SKIP
    """
    if config not in SPLITS_OF_CONFIG:
        raise ValueError(
            f"openpairs has no configuration {config!r}; choose one of {', '.join(SPLITS_OF_CONFIG)}."
        )
    if split not in SPLITS_OF_CONFIG[config]:
        raise ValueError(
            f"openpairs {config!r} has no split {split!r}; choose one of "
            f"{', '.join(SPLITS_OF_CONFIG[config])}."
        )
    rows = [{column: row[column] for column in FEATURES[config]} for row in _rows(config, split)]
    dataset = datasets.Dataset.from_list(rows, features=FEATURES[config], split=datasets.NamedSplit(split))
    # Not IterableDataset.from_generator: that needs a writable cache folder even if it never writes there.
    return dataset.to_iterable_dataset(num_shards=NUM_SHARDS) if streaming else dataset


def read_metadata(source: str, split: str) -> list[dict[str, Any]]:
    """All stored columns of one parquet file (`openmoji`, `openclipart` or `noto`), images still encoded."""
    file = files("rmcl_hub.datasets_scripts").joinpath("openpairs", f"{source}-{split}.parquet")
    with file.open("rb") as stream:
        return pq.read_table(stream).to_pylist()


def _rows(config: str, split: str) -> list[dict[str, Any]]:
    if config == "noto":
        return read_metadata("noto", split)
    openmoji = read_metadata("openmoji", split)
    if config == "vqa":
        return vqa_rows(openmoji)
    if config == "nlvr2":
        return nlvr2_rows(openmoji)
    rows = openmoji + (read_metadata("openclipart", split) if split == "train" else [])
    # A fixed shuffle that mixes the sources, because streams can shuffle only within a buffer.
    return sorted(rows, key=lambda row: digest(row["image_id"]))
