"""One shard: what it is to hold, whether it is there already, and how it is written."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .official_builder import OfficialBuilder
from .official_folder import OfficialFolder
from .schema import FEATURES, ID_COLUMNS, Row, to_tables
from .webdataset_shards import write_samples

UNFINISHED = ".unfinished"
"""How the suffix begins of what is being written, or was when a run was killed."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to write.

    Attributes:
        corpus: Its builder.
        root: Folder of published files.
        target: Path of the shard; its suffix tells the format.
        rows: As annotated, pictures as their path in the corpus.
    """

    corpus: type[OfficialBuilder]
    root: Path
    target: Path
    rows: list[Row]

    @property
    def plan(self) -> str:
        """Digest of what the shard is to hold."""
        described = (self.corpus.__name__, str(self.corpus.VERSION), self.rows)
        return hashlib.sha256(repr(described).encode()).hexdigest()

    @property
    def receipt_path(self) -> Path:
        """Where a finished shard leaves its receipt."""
        return self.target.with_suffix(".json")


@dataclass(frozen=True)
class Receipt:
    """What a finished shard holds; it lets an interrupted run go on without reading the shard.

    Attributes:
        plan: `ShardJob.plan` that it was written to.
        rows: Rows in it.
        bytes: Its size.
        sha256: Its checksum.
        dropped: How many rows were left out, by reason.
        left_out: Ids of these rows.
    """

    plan: str
    rows: int
    bytes: int
    sha256: str
    dropped: dict[str, int]
    left_out: list[str]


def read_receipt(job: ShardJob) -> Receipt | None:
    """Receipt of a shard that was written to the same plan and still has the size it had then; else None."""
    try:
        receipt = Receipt(**json.loads(job.receipt_path.read_text(encoding="utf-8")))
        size = job.target.stat().st_size
    except (FileNotFoundError, TypeError, ValueError):
        return None
    return receipt if receipt.plan == job.plan and receipt.bytes == size else None


def write_shard(job: ShardJob) -> None:
    """Write a shard and its receipt. Under its name it is there in full or not at all.

    Raises:
        OSError: If the disk is full, or another run removed the file; what is unfinished is removed.
    """
    folder = _open_folder(job.corpus, job.root)
    folder.dropped = Counter()
    kept: set[str] = set()
    rows = _note_ids(job.corpus.with_pictures(folder, job.rows), ID_COLUMNS[job.corpus.task], kept)
    write = write_samples if job.target.suffix == ".tar" else _write_parquet
    with _whole_or_not(job.target) as unfinished:
        write(unfinished, job.corpus.task, rows)
    size, checksum = job.target.stat().st_size, sha256_of(job.target)
    ids = (row[ID_COLUMNS[job.corpus.task]] for row in job.rows)
    left_out = [row_id for row_id in ids if row_id not in kept]
    receipt = Receipt(job.plan, len(kept), size, checksum, dict(folder.dropped), left_out)
    write_atomically(job.receipt_path, json.dumps(asdict(receipt)))


def sha256_of(path: Path, description: str | None = None) -> str:
    """Checksum of a file; with a description, under a progress bar."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as stream,
        tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=description,
            disable=description is None,
        ) as bar,
    ):
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with _whole_or_not(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """A path to write to, which gets the target's name when all is written.

    It is this process's own: a second run in the folder must not write into what this one has begun.
    """
    unfinished = target.with_suffix(f"{UNFINISHED}-{os.getpid()}")
    try:
        yield unfinished
        try:
            unfinished.replace(target)
        except FileNotFoundError as error:
            raise OSError(
                f"{unfinished} was removed while it was written, as another run in the folder does. Let one "
                "run finish; the same command then goes on, and finished shards are kept."
            ) from error
    finally:
        unfinished.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _open_folder(corpus: type[OfficialBuilder], root: Path) -> OfficialFolder:
    """Kept for the next shard: the index of an archive of 80,000 pictures takes a second to read."""
    return corpus.open(root)


def _note_ids(rows: Iterable[Row], id_column: str, ids: set[str]) -> Iterator[Row]:
    for row in rows:
        ids.add(row[id_column])
        yield row


def _write_parquet(path: Path, task: str, rows: Iterable[Row]) -> None:
    schema = FEATURES[task].arrow_schema
    # Pictures are compressed already, but zstd stores once what neighbours share: the picture of questions.
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for table in to_tables(task, rows):
            writer.write_table(table)
