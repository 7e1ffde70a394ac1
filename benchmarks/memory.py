"""Peak memory of an RMCL step, beside what it must hold, and how attacks and steps grow.

    OMP_NUM_THREADS=1 python benchmarks/memory.py --json memory.json
    OMP_NUM_THREADS=1 python benchmarks/memory.py --parts step --projector barlow_twins

Memory is what torch's operations ask for, counted operation by operation (`allocations.py`), which does not
depend on the allocator. Beside it stands, on Linux, the peak that the system saw of the process.

`step`: the lower bound is weights (with MoCo, of both encoders), queue, the gradients of all trained weights
and what one view's forward keeps for its backward. The optimiser's state is no part of the step and left out
on both sides.

`growth`: peak beyond weights and queue, and processor seconds, of both attacks and the step, each with one
size changed; encoders of two blocks as wide as ViLT-B/32, so that it takes minutes. Of `candidates`, 16 are
sent at a time; `together`, all at once.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from allocations import Allocations
from pairs import (
    add_size_options,
    build_batch,
    build_config,
    build_model,
    build_synonyms,
    build_tokenizer,
    moco_objective,
    thesis_pgd,
    write_texts,
)
from rmcl_step import VIEWS, build_trainer, step
from timing import argument_parser, circumstances, show, table, timed
from torch import nn

from rmcl_hub.attacks import GeometryAttack
from rmcl_hub.attacks.base import frozen, model_inputs

PARTS = ("step", "growth")
GROWTH: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8),
    "words": (6, 12, 24, 36),
    "steps": (1, 5, 10),
    "loops": (2, 10, 50),
    "candidates": (5, 20, 50),
    "together": (5, 20, 50),
    "queue": (4096, 16384, 65536),
}
BASE = {"batch": 4, "words": 12, "steps": 5, "loops": 10, "candidates": 4, "queue": 65536}
CHUNK = 16


def main(argv: list[str] | None = None) -> int:
    """Measure and write the tables; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: both")
    parser.add_argument("--projector", choices=("moco", "barlow_twins"), default="moco", help="of the step")
    arguments = parser.parse_args(argv)
    names = ("batch", "words", "image_size", "layers", "projector")
    record = {**circumstances(), "setting": {name: getattr(arguments, name) for name in names}}
    if "step" in arguments.parts:
        record["step"] = measure_step(arguments)
    if "growth" in arguments.parts:
        record["growth"] = measure_growth(arguments)
    show(record, tables(record), arguments.json)
    return 0


def measure_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peaks of the step with two and with three views, and the parts of the bound, in bytes."""
    dim = {"moco": 128, "barlow_twins": 8192}[arguments.projector]
    model = build_model(build_config(arguments, projector=arguments.projector, projection_dim=dim))
    tokenizer = build_tokenizer()
    batch = build_batch(
        tokenizer, write_texts(tokenizer, arguments.batch, arguments.words), arguments.image_size
    )
    runs, parts = {}, {}
    for name, views in VIEWS.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(model, tokenizer, batch["text"], folder, views=views)
            if not parts:
                parts = _bound(model, trainer.key_branch, batch)
            model.zero_grad(set_to_none=True)
            before = _reset_peak()
            with Allocations() as allocations:
                step(trainer, batch)
            peak = sum(parts[part] for part in ("weights", "queue")) + allocations.peak
            runs[name] = {
                "peak": peak,
                "ratio": peak / sum(parts.values()),
                "beyond weights and queue": allocations.peak,
                "system, beyond before": None if before is None else _system_peak() - before,
            }
            del trainer
    return {"bound": parts, "runs": runs}


def measure_growth(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per size and value: peak bytes beyond weights, and processor seconds, of both attacks and the step."""
    record: dict[str, dict[str, Any]] = {}
    for size, values in GROWTH.items():
        record[size] = {}
        for value in values:
            sizes = {**BASE, ("candidates" if size == "together" else size): value}
            chunk = 10**6 if size == "together" else CHUNK
            record[size][str(value)] = _grown(arguments, sizes, chunk, _affected(size))
    return record


def tables(record: dict[str, Any]) -> Iterator[str]:
    """The step beside its bound, then the growth."""
    if "step" in record:
        bound = record["step"]["bound"]
        yield "lower bound, MB: " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in bound.items())
        yield f"together {sum(bound.values()) / 1e6:.0f}\n"
        columns = ["step", "peak MB", "ratio", "beyond weights and queue MB", "system, beyond before MB"]
        yield from table(
            columns,
            (
                [
                    name,
                    f"{run['peak'] / 1e6:.0f}",
                    f"{run['ratio']:.3f}",
                    f"{run['beyond weights and queue'] / 1e6:.0f}",
                    "" if run[columns[-1][:-3]] is None else f"{run[columns[-1][:-3]] / 1e6:.0f}",
                ]
                for name, run in record["step"]["runs"].items()
            ),
        )
    rows = []
    for size, by_value in record.get("growth", {}).items():
        for value, figures in by_value.items():
            cells = [
                f"{figures[run]['peak'] / 1e6:.0f} MB, {figures[run]['cpu_seconds']:.2f} s"
                if run in figures
                else ""
                for run in ("pgd", "geometry", "step")
            ]
            rows.append([size, value, *cells])
    if rows:
        yield from table(["size", "value", "PGD", "geometry", "step, 2 views"], rows)


def _bound(model: nn.Module, key_branch: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Bytes that a step holds at least."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = _bytes(model.parameters())
    model.train()
    with Allocations() as allocations:
        embeds = model(**model_inputs(batch)).embeds
        kept = allocations.live
    del embeds
    return {
        "weights": weights + (_bytes(key_branch.encoder.parameters()) if key_branch is not None else 0),
        "queue": _bytes([key_branch.queue]) if key_branch is not None else 0,
        "gradients": _bytes(trained),
        "activations of one view": kept,
    }


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _affected(size: str) -> tuple[str, ...]:
    """What a size can change."""
    return {
        "steps": ("pgd",),
        "loops": ("geometry",),
        "candidates": ("geometry",),
        "together": ("geometry",),
    }.get(size, ("pgd", "geometry", "step"))


def _grown(
    arguments: argparse.Namespace, sizes: dict[str, int], chunk: int, names: tuple[str, ...]
) -> dict[str, Any]:
    small = argparse.Namespace(**{**vars(arguments), "layers": 2})
    model = build_model(build_config(small, queue_size=sizes["queue"])).eval()
    tokenizer = build_tokenizer()
    texts = write_texts(tokenizer, sizes["batch"], sizes["words"])
    batch = build_batch(tokenizer, texts, arguments.image_size)
    batch["row"] = torch.arange(sizes["batch"])
    generator = torch.Generator().manual_seed(1)
    queue = torch.randn(sizes["queue"], model.config.projection_dim, generator=generator)
    with torch.no_grad():
        keys = nn.functional.normalize(model.joint_embedding(**model_inputs(batch)), dim=1)
    objective = moco_objective(model, keys, nn.functional.normalize(queue, dim=1))
    synonyms = build_synonyms(tokenizer, texts, sizes["candidates"])
    attacks = {
        "pgd": thesis_pgd(sizes["steps"]),
        "geometry": GeometryAttack(
            tokenizer,
            synonyms,
            sizes["loops"],
            max_candidates=sizes["candidates"],
            candidate_batch_size=chunk,
        ),
    }
    figures = {}
    for name in names:
        if name != "step":
            with frozen(model):
                figures[name] = _peak_and_time(lambda attack=attacks[name]: attack(batch, objective))
            continue
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(model, tokenizer, texts, folder, views=VIEWS["2 views"])
            figures[name] = _peak_and_time(lambda trainer=trainer: step(trainer, batch))
    return figures


def _peak_and_time(run: Callable[[], Any]) -> dict[str, float]:
    with Allocations() as allocations:
        spent = timed(run)
    return {"peak": allocations.peak, **vars(spent)}


def _reset_peak() -> int | None:
    """Let the system's peak start again at what the process holds now, which is returned; None elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _system_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
