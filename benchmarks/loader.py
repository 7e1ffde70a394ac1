"""How many pictures a second a stream of prepared corpora delivers at ViLT's size, and what a step needs.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --json loader.json

The corpus is written to a temporary folder: photograph-like JPEGs of 640 x 480 pixels, about as heavy as
COCO's, as `rmcl-hub data prepare` writes them. Shorter side 384 makes of each 12 x 16 patches.

First the stages in this process, in milliseconds of wall-clock and of processor time a picture: `read` (the
stream, from Parquet), `decode` (JPEG to RGB), `augment` (RandAugment), `process` (resize, normalise, pad) and
`tokenise`. Then the rate of a `DataLoader` with a `PairCollator`, for 0, 1 and 2 workers, with and without
RandAugment, from the second batch on. Beside them steps of ViLT-B/32 on this machine, without the
optimiser's. All of this in turns, round after round; medians. Without workers, the loader's share of a step
is its time over that of both; with workers it works while the model does, and holds it up only where its
rate is below the step's.

What a GPU needs is not measured here; each figure names where it comes from.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from photographs import write_photographs
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rmcl_hub.attacks import PGD, GeometryAttack, SynonymTable
from rmcl_hub.datasets_scripts.image_transforms import randaugment
from rmcl_hub.datasets_scripts.images import decode_image
from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
from rmcl_hub.trainers.arguments import RMCLArguments, training_arguments
from rmcl_hub.trainers.processing import build_processor
from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer
from rmcl_hub.trainers.run_cost import Tokens, forward_flops

BATCH_SIZE = 16  # of a process, as in the recipes of RMCL
STEP_PAIRS = 2
B32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
PLAIN_FLOPS = 3 * forward_flops(RMCLViltConfig(), Tokens(40, 12 * 16))  # forward and backward of a pair
GPU_PAIRS_PER_SECOND = {
    "RMCL, RTX 3090: the thesis's day for 566,747 pairs on eight (its code's COCO)": 566_747 / 86_400 / 8,
    "plain step: a third of the 124 forwards a GPU in ViLT's own log of COCO retrieval": 124 / 3,
    "plain step, A100 at 40 % of its 312 TFLOP/s: an optimist's": 0.4 * 312e12 / PLAIN_FLOPS,
}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=480, help="of the corpus (default: 480)")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds, of which medians (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_photographs(Path(folder), arguments.pictures)
        record = measure(corpus, arguments.repetitions, SMALL if arguments.quick else B32)
    sys.stdout.write("\n".join(tables(record)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(corpus: PreparedCorpus, repetitions: int, size: dict[str, int]) -> dict[str, Any]:
    """All figures, JSON-ready; times in seconds a picture."""
    split = corpus.split("train")
    processor = build_processor(None, image_size=384, patch_size=32)
    loaders = {
        f"{workers} workers{', RandAugment' if augmented else ''}": (workers, augmented)
        for augmented in (False, True)
        for workers in (0, 1, 2)
    }
    steps = _steps(corpus, processor, size)
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tqdm(total=repetitions * (1 + len(loaders) + len(steps)), unit="run") as progress:
        for _ in range(repetitions):
            for name, seconds in _stages(corpus, processor).items():
                spent[name].append(seconds)
            progress.update()
            for name, (workers, augmented) in loaders.items():
                spent[name].append(_loaded(corpus, processor, workers, augmented))
                progress.update()
            for name, step in steps.items():
                spent[name].append(_timed(step))
                progress.update()
    figures = {
        name: {
            "seconds": statistics.median(wall for wall, _ in of_name),
            "cpu_seconds": statistics.median(cpu for _, cpu in of_name),
        }
        for name, of_name in spent.items()
    }
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        },
        "versions": {
            name: version(name) for name in ("rmcl-hub", "torch", "torchvision", "transformers", "pillow")
        },
        "setting": {
            "pictures": split.rows,
            "kB_a_picture": round(sum(shard.bytes for shard in split.shards) / split.rows / 1000),
            "batch_size": BATCH_SIZE,
            "repetitions": repetitions,
            **size,
        },
        "stages": {name: figures[name] for name in ("read", "decode", "augment", "process", "tokenise")},
        "loaders": {name: 1 / figures[name]["seconds"] for name in loaders},
        "steps": {name: figures[name] for name in steps},
        "gpu_pairs_per_second": GPU_PAIRS_PER_SECOND,
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown tables under the circumstances."""
    for part in ("machine", "versions", "setting"):
        yield f"{part}: " + ", ".join(f"{name} {value}" for name, value in record[part].items())
    yield "\n| stage | ms a picture | processor ms |"
    yield "|---|---|---|"
    for name, row in record["stages"].items():
        yield f"| {name} | {1000 * row['seconds']:.2f} | {1000 * row['cpu_seconds']:.2f} |"
    yield "\n| loader | pictures a second |"
    yield "|---|---|"
    for name, rate in record["loaders"].items():
        yield f"| {name} | {rate:.1f} |"
    alone = 1 / record["loaders"]["0 workers"]
    yield "\n| step on this machine | s a pair | the loader's share, without workers | with one |"
    yield "|---|---|---|---|"
    for name, row in record["steps"].items():
        share = alone / (alone + row["seconds"])
        held_up = record["loaders"]["1 workers"] < 1 / row["seconds"]
        yield f"| {name} | {row['seconds']:.2f} | {share:.1%} | {'held up' if held_up else 'hidden'} |"
    yield "\n| a GPU takes | pairs a second | workers like the one here | with RandAugment |"
    yield "|---|---|---|---|"
    for name, rate in record["gpu_pairs_per_second"].items():
        needed = [rate / record["loaders"][loader] for loader in ("1 workers", "1 workers, RandAugment")]
        yield f"| {name} | {rate:.2f} | {needed[0]:.2f} | {needed[1]:.2f} |"


def _stream(corpus: PreparedCorpus) -> MixtureStream:
    return MixtureStream([MixturePart(corpus, ["train"])], batch_size=BATCH_SIZE)


def _stages(corpus: PreparedCorpus, processor: Any) -> dict[str, tuple[float, float]]:
    """Wall-clock and processor seconds a picture, one pass over the corpus."""
    stream, seen = iter(_stream(corpus)), 0
    spent: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        spent[stage] = (spent[stage][0] + wall, spent[stage][1] + cpu)

    for _ in range(corpus.split("train").rows // BATCH_SIZE):
        with clock("read"):
            rows: list[Any] = list(islice(stream, BATCH_SIZE))
        with clock("decode"):
            pictures = [decode_image(row["image"]) for row in rows]
        with clock("augment"):
            for row, picture in zip(rows, pictures, strict=True):
                randaugment(picture, row["image_id"])
        with clock("process"):
            processor.image_processor(pictures, return_tensors="pt")
        with clock("tokenise"):
            processor.tokenizer([row["captions"][0] for row in rows], padding=True, return_tensors="pt")
        seen += len(rows)
    return {stage: (wall / seen, cpu / seen) for stage, (wall, cpu) in spent.items()}


def _loaded(corpus: PreparedCorpus, processor: Any, workers: int, augmented: bool) -> tuple[float, float]:
    """Seconds a picture of a `DataLoader`, and processor seconds of this process; without the first batch."""
    collator = PairCollator(processor, transform=randaugment if augmented else None)
    batches = iter(DataLoader(_stream(corpus), BATCH_SIZE, num_workers=workers, collate_fn=collator))
    next(batches)
    wall, cpu, seen = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        seen += len(batch["text"])
    return (time.perf_counter() - wall) / seen, (time.process_time() - cpu) / seen


def _steps(corpus: PreparedCorpus, processor: Any, size: dict[str, int]) -> dict[str, Callable[[], int]]:
    """Training steps that return their number of pairs: plain, and RMCL's with the attacks of the recipes."""
    rows: list[Any] = list(islice(_stream(corpus), STEP_PAIRS))
    collator = PairCollator(processor)
    torch.manual_seed(0)
    config = RMCLViltConfig(**size, vocab_size=len(processor.tokenizer), queue_size=4096)
    model = RMCLViltForPreTraining(config).train()
    inputs = collator(rows)
    plain = {name: value for name, value in inputs.items() if name != "text"}

    def plain_step() -> int:
        model.zero_grad()
        model(**plain).embeds.square().mean().backward()
        return len(rows)

    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(RMCLArguments, folder, {"use_cpu": True, "max_steps": 1})
        trainer = RMCLTrainer(
            model=model,
            args=arguments,
            data_collator=collator,
            image_attack=PGD.preset("thesis"),
            text_attack=GeometryAttack(processor.tokenizer, SynonymTable.load()),
        )

    def rmcl_step() -> int:
        model.zero_grad()
        trainer.compute_loss(model, inputs).backward()
        trainer.end_step()
        return len(rows)

    return {"plain: forward and backward": plain_step, "RMCL with MoCo": rmcl_step}


def _timed(step: Callable[[], int]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    pairs = step()
    return (time.perf_counter() - wall) / pairs, (time.process_time() - cpu) / pairs


if __name__ == "__main__":
    sys.exit(main())
