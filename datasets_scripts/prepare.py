"""From the files that a corpus publishes to shards: parallel, resumable, counting what is left out."""

import errno
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile

from tqdm.auto import tqdm

from .dataset_card import dataset_card
from .official_builder import OfficialBuilder
from .official_folder import OfficialFolder
from .processes import map_in_processes
from .published_files import check_checksums, check_sizes
from .schema import ID_COLUMNS, Row, image_columns, texts_of
from .shard_writing import UNFINISHED, ShardJob, read_receipt, write_atomically, write_shard
from .shards import MANIFEST, SUFFIXES, Manifest, Shard, ShardFormat, SplitManifest

logger = logging.getLogger(__name__)

SAMPLE_SIZE = 32
"""Rows per split whose pictures are looked up first: to see that they are there, and how large they are."""


def prepare(
    corpus: type[OfficialBuilder],
    root: str | Path,
    output_dir: str | Path,
    splits: Sequence[str] | None = None,
    rows_per_shard: int = 1000,
    num_workers: int | None = None,
    unofficial: bool = False,
    shard_format: ShardFormat = "parquet",
) -> Manifest:
    """Write a corpus's splits as shards, with manifest and card; what is there and unchanged is kept.

    Args:
        corpus: Its builder.
        root: Folder of published files.
        output_dir: Where the shards go. A run that was interrupted goes on there.
        splits: Those to write; None: all whose annotations and pictures are in the folder.
        rows_per_shard: Rows before unreadable ones are left out.
        num_workers: Processes; None: one per processor.
        unofficial: Accept archives whose size or checksum is not the published one.
        shard_format: `parquet`, which mixtures read, or `webdataset`.

    Raises:
        ValueError: If a split does not exist or has no usable row, an archive is not of the published size or
            checksum, or the folder holds another corpus or the published files.
        FileNotFoundError: If annotations, or all pictures of a split that was asked for, are missing.
        OSError: If an archive is broken, the folder cannot be written, the disk is or would be full, or
            another run writes into the folder.
    """
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}.")
    if unknown := [split for split in splits or () if split not in corpus.splits]:
        raise ValueError(
            f"{corpus.__name__} has no split {unknown[0]!r}; choose from {', '.join(corpus.splits)}."
        )
    folder = corpus.open(root)
    if Path(output_dir).resolve() == folder.root.resolve():
        raise ValueError(
            f"{output_dir} holds the published files; give the shards an --output-dir of their own."
        )
    if not unofficial:
        check_sizes(corpus, folder.root)
    wanted = _splits_in(corpus, folder, splits)
    run = _Run(corpus, folder.root, Path(output_dir), rows_per_shard, num_workers, shard_format)
    run.start()
    with _explain_full_disk(run.output_dir):
        if not unofficial:
            run.check_archives()
        for split in wanted:
            try:
                run.prepare_split(split)
            except EmptySplitError as error:
                if splits or (split == wanted[-1] and not run.manifest.splits):
                    raise
                logger.warning("%s It is passed over.", error)
        for name, text in corpus.extra_files(folder).items():
            write_atomically(run.output_dir / name, text)
        write_atomically(run.output_dir / "README.md", dataset_card(corpus, run.manifest))
    return run.manifest


class EmptySplitError(FileNotFoundError):
    """A split is annotated, but no row or picture of it can be used."""


@dataclass
class _Run:
    """What all splits of one call share."""

    corpus: type[OfficialBuilder]
    root: Path
    output_dir: Path
    rows_per_shard: int
    num_workers: int | None
    shard_format: ShardFormat

    def __post_init__(self) -> None:
        self.name = self.corpus.__module__.rpartition(".")[2]
        self.manifest_path = self.output_dir / MANIFEST
        self.manifest = Manifest(
            self.name,
            self.corpus.task,
            str(self.corpus.VERSION),
            self.corpus.licence,
            format=self.shard_format,
        )

    def start(self) -> None:
        """Take over the manifest of an earlier run in the folder, and remove what it left unfinished."""
        if self.manifest_path.is_file():
            earlier = Manifest.from_json(self.manifest_path.read_text(encoding="utf-8"))
            if (earlier.corpus, earlier.format) != (self.name, self.shard_format):
                raise ValueError(
                    f"{self.output_dir} holds {earlier.corpus} as {earlier.format}; give {self.name} as "
                    f"{self.shard_format} a folder of its own."
                )
            if earlier.version == self.manifest.version:
                self.manifest.splits = earlier.splits
            self.manifest.checked = earlier.checked
        data = self.output_dir / "data"
        try:
            data.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=data):
                pass
        except OSError as error:
            raise OSError(
                f"{self.output_dir} cannot be written ({error}); choose another with --output-dir."
            ) from error
        for folder in (self.output_dir, data):
            for path in folder.glob(f"*{UNFINISHED}-*"):
                path.unlink()

    def check_archives(self) -> None:
        """Compare the archives' checksums, and note in the manifest which are right."""
        checked = dict(self.manifest.checked)
        for name, checksum in check_checksums(self.corpus, self.root, self.manifest_path, checked):
            self.manifest.checked[name] = checksum
            self.write_manifest()

    def write_manifest(self) -> None:
        """Write it, in an order that does not depend on what was prepared first."""
        splits, checked = self.manifest.splits, self.manifest.checked
        self.manifest.splits = {name: splits[name] for name in self.corpus.splits if name in splits}
        self.manifest.checked = {name: checked[name] for name in self.corpus.published if name in checked}
        write_atomically(self.manifest_path, self.manifest.to_json())

    def prepare_split(self, split: str) -> None:
        """Write what is missing of a split, and enter it in the manifest."""
        folder = self.corpus.open(self.root)
        rows = self.corpus.annotations(folder, split)
        row_bytes = _mean_picture_bytes(self.corpus, folder, split, rows)
        jobs = self._jobs(split, rows)
        unwritten = [job for job in jobs if read_receipt(job) is None]
        keep = {path for job in jobs for path in (job.target, job.receipt_path)}
        stale = set((self.output_dir / "data").glob(f"{split}-[0-9]*-of-*")) - keep
        if unwritten and self.manifest.splits.pop(split, None):
            self.write_manifest()  # whatever happens now, it lists no shard that is not there
        for path in stale:
            path.unlink()
        pictures = sum(self._count_stored_pictures(job.rows) for job in unwritten)
        _check_space(self.output_dir, split, row_bytes * pictures)
        self._write(split, unwritten, len(jobs))
        self.manifest.splits[split] = _split_manifest(self.corpus.task, jobs, folder.dropped)
        self.write_manifest()

    def _count_stored_pictures(self, rows: list[Row]) -> int:
        """Rows; for Parquet, which stores a picture of neighbours once, runs of rows on one picture."""
        if self.shard_format == "webdataset":
            return len(rows)
        columns = image_columns(self.corpus.task)
        return sum(1 for _ in groupby(rows, key=lambda row: [row[column] for column in columns]))

    def _jobs(self, split: str, rows: list[Row]) -> list[ShardJob]:
        count, suffix = -(-len(rows) // self.rows_per_shard), SUFFIXES[self.shard_format]
        return [
            ShardJob(
                self.corpus,
                self.root,
                self.output_dir / "data" / f"{split}-{index:05d}-of-{count:05d}{suffix}",
                rows[index * self.rows_per_shard : (index + 1) * self.rows_per_shard],
            )
            for index in range(count)
        ]

    def _write(self, split: str, jobs: list[ShardJob], total: int) -> None:
        done = map_in_processes(write_shard, jobs, self.num_workers)
        with tqdm(total=total, initial=total - len(jobs), desc=f"prepare {split}", unit="shard") as bar:
            for _ in done:
                bar.update()


def _splits_in(
    corpus: type[OfficialBuilder], folder: OfficialFolder, splits: Sequence[str] | None
) -> list[str]:
    there = [split for split in corpus.splits if corpus.has_split(folder, split)]
    if splits is None:
        if not there:
            raise FileNotFoundError(
                f"{folder.root} holds the annotations of none of the splits {', '.join(corpus.splits)} of "
                f"{corpus.__name__}; see {corpus.homepage} for the files. {_what_is_missing(corpus, folder)}"
            )
        return there
    for split in splits:
        if split not in there:
            corpus.annotations(folder, split)  # says which file is missing
    return [split for split in corpus.splits if split in splits]


def _what_is_missing(corpus: type[OfficialBuilder], folder: OfficialFolder) -> str:
    try:
        corpus.annotations(folder, corpus.splits[0])
    except FileNotFoundError as error:
        return str(error)
    return ""


def _mean_picture_bytes(
    corpus: type[OfficialBuilder], folder: OfficialFolder, split: str, rows: Sequence[Row]
) -> int:
    """Bytes of pictures per row, from a few rows all over the split.

    Raises:
        EmptySplitError: If there is no row, or none of these few can be used.
    """
    name = f"{corpus.__name__} {split}"
    counted = Counter(folder.dropped)
    if not rows:
        raise EmptySplitError(f"{name} has no usable row; left out: {_in_words(counted)}.")
    sample = rows[:: max(1, len(rows) // SAMPLE_SIZE)]
    columns = image_columns(corpus.task)
    sizes = [
        sum(len(row[column]["bytes"]) for column in columns) for row in corpus.with_pictures(folder, sample)
    ]
    problems, folder.dropped = folder.dropped - counted, counted
    if not sizes:
        raise EmptySplitError(
            f"{name}: {len(sample):,} of {len(rows):,} rows were tried, and none can be used "
            f"({_in_words(problems)}; the first is {sample[0][columns[0]]}). Are the pictures downloaded to "
            f"{folder.root}? See {corpus.homepage}."
        )
    return sum(sizes) // len(sizes)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"


@contextmanager
def _explain_full_disk(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"The disk of {output_dir} is full. Make room and run the same command again: it goes on, and "
            "finished shards are kept."
        ) from error


def _check_space(output_dir: Path, split: str, needed: int) -> None:
    free = shutil.disk_usage(output_dir).free
    if needed > free:
        raise OSError(
            f"{split} needs about {needed / 1e9:.1f} GB more in {output_dir}, whose disk has "
            f"{free / 1e9:.1f} GB free; make room, or give another --output-dir."
        )


def _split_manifest(task: str, jobs: Sequence[ShardJob], dropped: Counter[str]) -> SplitManifest:
    """Counts over all shards: from their receipts, and from the annotations of the rows that are in."""
    dropped, texts, shards = Counter(dropped), 0, []
    pictures: set[str] = set()
    for job in jobs:
        receipt = read_receipt(job)
        if receipt is None:
            raise OSError(f"{job.target} was changed while it was written; is another run using the folder?")
        shards.append(Shard(f"data/{job.target.name}", receipt.rows, receipt.bytes, receipt.sha256))
        dropped.update(receipt.dropped)
        left_out = set(receipt.left_out)
        for row in (row for row in job.rows if row[ID_COLUMNS[task]] not in left_out):
            texts += len(texts_of(task, row))
            pictures |= {row[name] for name in image_columns(task)}
    return SplitManifest(sum(shard.rows for shard in shards), len(pictures), texts, dict(dropped), shards)
