"""Whether test pictures are among the training files of a prepared corpus, without decoding these.

A corpus keeps its pictures as the files that were published, so one that is in two of its splits is the same
file, or at least has the same id. Files are compared with a sample of the training rows, ids with all.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .split_hygiene import Overlap

if TYPE_CHECKING:
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

MAX_TRAIN_ROWS = 20_000
"""Rows whose files are read: of COCO some three gigabytes; all of VQAv2's training would be seventy."""


@dataclass(frozen=True)
class PreparedSplits:
    """Training splits of a prepared corpus, by name."""

    corpus: "PreparedCorpus"
    splits: tuple[str, ...]


def file_overlap(train: PreparedSplits, test: Any) -> Overlap:
    """Compare the pictures that are tested on with those of training splits.

    Args:
        train: Where the training rows are.
        test: `datasets.Dataset` of the same corpus.

    Returns:
        As `split_hygiene.image_overlap`, with `same_pixels` counting files that are equal byte by byte.

    Raises:
        OSError: If a shard cannot be read.
    """
    import datasets  # slow to import, as are the modules that need it

    from rmcl_hub.datasets_scripts.schema import image_columns

    columns = image_columns(train.corpus.manifest.task)
    for column in columns:
        test = test.cast_column(column, datasets.Image(decode=False))
    test = test.select_columns([*columns, *(["image_id"] if "image_id" in test.column_names else [])])
    test_files: set[str] = set()
    test_ids: set[str] = set()
    for row in tqdm(test, desc="test pictures", unit="row"):
        test_files |= _files(row, columns)
        test_ids |= _ids(row, columns)
    files: set[str] = set()
    ids: set[str] = set()
    seen = total = 0
    for row, with_files in _train_rows(train, columns):
        ids |= _ids(row, columns)
        files |= _files(row, columns) if with_files else set()
        seen, total = seen + with_files, total + 1
    return {
        "num_train_images": len(files),
        "num_test_images": len(test_files),
        "same_pixels": len(test_files & files),
        "same_ids": len(test_ids & ids),
        "how": f"file by file with {seen:,} of {total:,} training rows, by id with all",
    }


def _train_rows(train: PreparedSplits, columns: list[str]) -> Iterator[tuple[dict[str, Any], bool]]:
    """All rows, and whether their pictures' files are there: of evenly spaced shards.

    Rows are ordered by a hash of their ids, so these are a random sample.
    """
    from rmcl_hub.datasets_scripts.shards import open_shard, read_row_group, read_shard

    manifest = train.corpus.manifest
    addresses = [address for split in train.splits for address in train.corpus.files(split)]
    step = -(-sum(train.corpus.split(split).rows for split in train.splits) // MAX_TRAIN_ROWS)
    for position, address in enumerate(tqdm(addresses, desc="training pictures", unit="shard")):
        if position % step == 0 or manifest.format != "parquet":  # a tar file is read as a whole
            for row in read_shard(address, manifest.task, manifest.format):
                yield row, True
            continue
        with open_shard(address) as shard:
            has_ids = "image_id" in shard.schema_arrow.names
            wanted = ["image_id"] if has_ids else [f"{column}.path" for column in columns]
            for group in range(shard.num_row_groups):
                for row in read_row_group(address, shard, group, wanted):
                    yield row, False


def _ids(row: dict[str, Any], columns: list[str]) -> set[str]:
    """The picture's id; of corpora without one the name of its file."""
    if "image_id" in row:
        return {str(row["image_id"])}
    return {PurePosixPath(row[column]["path"]).name for column in columns}


def _files(row: dict[str, Any], columns: list[str]) -> set[str]:
    return {hashlib.sha256(row[column]["bytes"]).hexdigest() for column in columns}
