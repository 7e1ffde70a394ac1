"""Resident memory of a process that reads a long stream of prepared corpora, and what the buffer adds.

    OMP_NUM_THREADS=1 python benchmarks/stream_memory.py --json stream_memory.json

The corpus, in a temporary folder, has photograph-like JPEGs of 320 x 240 pixels. First a stream of many
epochs goes through a collator, and its memory is noted at even intervals: flat means that nothing is kept.
Then, each in a process of its own, an epoch with buffers of several sizes: what a buffer of n rows adds is
the pictures of n rows, once the rows that were shuffled away from their row group are read. Linux only.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from photographs import write_photographs
from tqdm.auto import tqdm

from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.trainers.processing import build_processor

BATCH_SIZE = 16
IMAGE_SIZE = 64  # shorter side after the collator: as much reading, less resizing
INTERVALS = 20


def main(argv: list[str] | None = None) -> int:
    """Measure and write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=4096, help="of the corpus (default: 4096)")
    parser.add_argument("--rows", type=int, default=20_000, help="of the long stream (default: 20000)")
    parser.add_argument("--buffers", type=int, nargs="+", default=[1, 256, 1024, 4096], help="sizes, in rows")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_photographs(Path(folder), arguments.pictures, (320, 240))
        record = measure(corpus, arguments.rows, arguments.buffers)
    sys.stdout.write("\n".join(tables(record)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(corpus: PreparedCorpus, rows: int, buffers: list[int]) -> dict[str, Any]:
    """All figures, JSON-ready; memory in MB."""
    split = corpus.split("train")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as alone:
        series = alone.submit(read_long_stream, corpus.location, rows).result()
        peaks = {size: alone.submit(read_epoch, corpus.location, size).result() for size in buffers}
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("rmcl-hub", "torch", "pyarrow")},
        "setting": {
            "pictures": split.rows,
            "kB_a_picture": round(sum(shard.bytes for shard in split.shards) / split.rows / 1000, 1),
            "rows": rows,
        },
        "long_stream": series,
        "buffers": peaks,
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown tables under the circumstances."""
    for part in ("machine", "versions", "setting"):
        yield f"{part}: " + ", ".join(f"{name} {value}" for name, value in record[part].items())
    yield "\n| rows of the long stream | MB resident |"
    yield "|---|---|"
    for row in record["long_stream"]:
        yield f"| {row['rows']:,} | {row['MB']:.1f} |"
    second_half = [row["MB"] for row in record["long_stream"]][len(record["long_stream"]) // 2 :]
    yield f"\nsecond half: {min(second_half):.1f} to {max(second_half):.1f} MB"
    yield "\n| buffer, rows | MB added by an epoch, at most | MB of as many pictures |"
    yield "|---|---|---|"
    for size, added in record["buffers"].items():
        pictures = min(size, record["setting"]["pictures"]) * record["setting"]["kB_a_picture"] / 1000
        yield f"| {size:,} | {added:.1f} | {pictures:.1f} |"


def read_long_stream(location: str, rows: int) -> list[dict[str, float]]:
    """Resident memory at even intervals of a stream of several epochs, collated."""
    stream = MixtureStream([MixturePart(PreparedCorpus(location), ["train"])], batch_size=BATCH_SIZE)
    collator = PairCollator(build_processor(None, IMAGE_SIZE, 32))
    series: list[dict[str, float]] = [{"rows": 0, "MB": resident()}]
    seen = 0
    for epoch in range(-(-rows // len(stream))):
        stream.set_epoch(epoch)
        collator.epoch = epoch
        source = iter(stream)
        with tqdm(total=len(stream), desc=f"epoch {epoch}", unit="row") as progress:
            while batch := list(islice(source, BATCH_SIZE)):
                collator(batch)
                seen += len(batch)
                progress.update(len(batch))
                if seen >= rows * len(series) / INTERVALS:
                    series.append({"rows": seen, "MB": resident()})
                if seen >= rows:
                    break
    return series


def read_epoch(location: str, buffer_size: int) -> float:
    """Most resident memory of an epoch, less that before it."""
    stream = MixtureStream(
        [MixturePart(PreparedCorpus(location), ["train"])], batch_size=BATCH_SIZE, buffer_size=buffer_size
    )
    before = most = resident()
    for place, _ in enumerate(stream):
        if place % 16 == 0:
            most = max(most, resident())
    return most - before


def resident() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
