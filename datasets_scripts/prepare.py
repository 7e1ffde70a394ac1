"""From the files that a corpus publishes to Parquet shards: parallel, resumable, counting what is left out."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .official_builder import OfficialBuilder
from .schema import FEATURES, Row, image_columns, texts_of
from .shards import MANIFEST, Manifest, Shard, SplitManifest

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 64
"""Rows that a reader has to take in at once: some 10 MB of photographs."""
_PLAN, _COUNTS = b"rmcl_hub.plan", b"rmcl_hub.counts"


def prepare(
    corpus: type[OfficialBuilder],
    root: str | Path,
    output_dir: str | Path,
    splits: Sequence[str] | None = None,
    rows_per_shard: int = 1000,
    num_workers: int | None = None,
    unofficial: bool = False,
) -> Manifest:
    """Write a corpus's splits as shards and its manifest; what is already there and unchanged is kept.

    Args:
        corpus: Its builder.
        root: Folder of published files.
        output_dir: Where the shards go. A run that was interrupted goes on there.
        splits: Those to write; None: all whose annotations are in the folder.
        rows_per_shard: Rows before unreadable ones are left out.
        num_workers: Processes; None: one per processor.
        unofficial: Accept archives whose size is not the published one.

    Raises:
        ValueError: If a split does not exist, or an archive is not of the published size or checksum.
        FileNotFoundError: If annotations are missing.
        OSError: If an archive is broken, or the disk is full.
    """
    folder = corpus.open(root)
    if not unofficial:
        check_published(corpus, folder.root)
    wanted = list(splits or [split for split in corpus.splits if corpus.has_split(folder, split)])
    if not wanted:
        raise FileNotFoundError(
            f"{root} holds the annotations of none of the splits {', '.join(corpus.splits)} of {corpus.__name__}; "
            f"see {corpus.homepage} for the files."
        )
    output_dir = Path(output_dir)
    (output_dir / "data").mkdir(parents=True, exist_ok=True)
    manifest = _earlier_manifest(corpus, output_dir)
    for split in wanted:
        manifest.splits[split] = _prepare_split(
            corpus, folder.root, split, output_dir, rows_per_shard, num_workers
        )
        _write_atomically(output_dir / MANIFEST, manifest.to_json())
    return manifest


def check_published(corpus: type[OfficialBuilder], root: Path) -> None:
    """Compare the archives that are there with what is published.

    Raises:
        ValueError: If one has another size or checksum.
    """
    for name, published in corpus.published.items():
        path = root / name
        if not path.is_file():
            continue
        size = path.stat().st_size
        if published.size is not None and size != published.size:
            raise ValueError(
                f"{path} has {size:,} bytes, but {published.size:,} are published: a half-finished download? "
                f"Fetch the rest with `curl -C - -O {published.url}`, or accept another edition with --unofficial."
            )
        if published.sha256 is not None and _sha256(path, f"check {name}") != published.sha256:
            raise ValueError(
                f"{path} has the published size, but another checksum than {published.sha256}: fetch it again "
                f"from {published.url}, or accept it with --unofficial."
            )


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    corpus: type[OfficialBuilder]
    root: Path
    target: Path
    rows: list[Row]


def _prepare_split(
    corpus: type[OfficialBuilder],
    root: Path,
    split: str,
    output_dir: Path,
    rows_per_shard: int,
    num_workers: int | None,
) -> SplitManifest:
    folder = corpus.open(root)
    rows = corpus.annotations(folder, split)
    if not rows:
        raise ValueError(f"{corpus.__name__} {split}: no usable row; left out were {dict(folder.dropped)}.")
    count = -(-len(rows) // rows_per_shard)
    jobs = [
        _Job(
            corpus,
            root,
            output_dir / "data" / f"{split}-{index:05d}-of-{count:05d}.parquet",
            rows[index * rows_per_shard : (index + 1) * rows_per_shard],
        )
        for index in range(count)
    ]
    for stale in set((output_dir / "data").glob(f"{split}-[0-9]*.parquet")) - {job.target for job in jobs}:
        stale.unlink()
    dropped, images, texts, shards = Counter(folder.dropped), 0, 0, []
    for shard, counts in tqdm(_run(jobs, num_workers), total=count, desc=f"prepare {split}", unit="shard"):
        shards.append(shard)
        images, texts = images + counts["images"], texts + counts["texts"]
        dropped.update(counts["dropped"])
    return SplitManifest(sum(shard.rows for shard in shards), images, texts, dict(dropped), shards)


def _run(jobs: Sequence[_Job], num_workers: int | None) -> Iterator[tuple[Shard, dict[str, Any]]]:
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        yield from map(_write_shard, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_write_shard, jobs)


def _write_shard(job: _Job) -> tuple[Shard, dict[str, Any]]:
    plan = hashlib.sha256(repr((job.corpus.__name__, str(job.corpus.VERSION), job.rows)).encode()).hexdigest()
    counts = _finished(job.target, plan)
    if counts is None:
        folder = job.corpus.open(job.root)
        rows = list(job.corpus.with_pictures(folder, job.rows))
        task = job.corpus.task
        counts = {
            "images": len({row[column]["path"] for row in rows for column in image_columns(task)}),
            "texts": sum(len(texts_of(task, row)) for row in rows),
            "dropped": dict(folder.dropped),
        }
        schema = FEATURES[task].arrow_schema
        schema = schema.with_metadata({**(schema.metadata or {}), _PLAN: plan, _COUNTS: json.dumps(counts)})
        unfinished = job.target.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), unfinished, row_group_size=ROWS_PER_GROUP)
        unfinished.rename(job.target)
    file = f"data/{job.target.name}"
    shard = Shard(file, pq.read_metadata(job.target).num_rows, job.target.stat().st_size, _sha256(job.target))
    return shard, counts


def _finished(path: Path, plan: str) -> dict[str, Any] | None:
    """Counts of a shard that an earlier run wrote to the same plan."""
    if not path.is_file():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, ValueError):
        return None
    return json.loads(metadata[_COUNTS]) if metadata.get(_PLAN) == plan.encode() else None


def _earlier_manifest(corpus: type[OfficialBuilder], output_dir: Path) -> Manifest:
    name = corpus.__module__.rpartition(".")[2]
    path = output_dir / MANIFEST
    if path.is_file():
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        if manifest.corpus != name:
            raise ValueError(f"{output_dir} holds {manifest.corpus}; give {name} a folder of its own.")
        return manifest
    return Manifest(name, corpus.task, str(corpus.VERSION), corpus.licence)


def _sha256(path: Path, description: str | None = None) -> str:
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


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)
