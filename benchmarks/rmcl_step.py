"""What an RMCL step and its two attacks cost, beside the encoder passes that they are made of.

    OMP_NUM_THREADS=1 python benchmarks/rmcl_step.py --json rmcl_step.json
    OMP_NUM_THREADS=1 python benchmarks/rmcl_step.py --parts pgd geometry

Rows through the encoder are counted by hooks on it: `forwards`, `backwards` to an input with constant
weights, `trained` backwards to the weights. The lower bound is these counts times the units F, B_in and B
of a batch of the same texts, which are measured in the same process in turns with everything else. A ratio
of one is a step without any work of its own; candidate texts go through the encoder many at a time, so it
can be below. The step is `RMCLTrainer`'s: keys, attacks, views, gradients, momentum encoder and queue, not
the optimiser.

`pgd`: the slope of the attack's time in its steps, over F + B_in. `geometry`: 12 and 24 words, at most 10
and 50 words tried, four substitutes for each (the thesis's five count the word itself); the time must not
depend on the second number, because the budget of changes is spent long before. `moco`, `barlow`: the step
with two and with three views.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
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
from passes import against_bound, bound_table, unit_runs
from timing import argument_parser, circumstances, show

from rmcl_hub.attacks import GeometryAttack
from rmcl_hub.attacks.base import model_inputs
from rmcl_hub.trainers.arguments import RMCLArguments, training_arguments
from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

VIEWS = {"2 views": ["image", "text"], "3 views": ["image", "text", "both"]}
PARTS = ("pgd", "geometry", "moco", "barlow")


def main(argv: list[str] | None = None) -> int:
    """Measure and write the tables; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    arguments = parser.parse_args(argv)
    measures = {
        "pgd": lambda: measure_pgd(arguments),
        "geometry": lambda: measure_geometry(arguments),
        "moco": lambda: measure_step(arguments, "moco"),
        "barlow": lambda: measure_step(arguments, "barlow_twins"),
    }
    record: dict[str, Any] = {
        **circumstances(),
        "setting": {
            name: getattr(arguments, name)
            for name in ("batch", "words", "image_size", "layers", "repetitions")
        },
        "parts": {part: measures[part]() for part in arguments.parts},
    }
    show(record, tables(record), arguments.json)
    return 0


def measure_pgd(arguments: argparse.Namespace) -> dict[str, Any]:
    """The attack on pixels with 5 and 10 steps."""
    model, batch, objective, _ = _attacked(arguments, arguments.words)
    attacks = {f"PGD-{steps}": thesis_pgd(steps) for steps in (5, 10)}
    runs = {name: partial(attack, batch, objective) for name, attack in attacks.items()}
    figures = against_bound(model, unit_runs(model, batch), runs, arguments.repetitions)
    five, ten = (figures["runs"][f"PGD-{steps}"]["cpu_seconds"] for steps in (5, 10))
    return {**figures, "slope over F + B_in": (ten - five) / 5 / figures["units"]["F + B_in"]["cpu_seconds"]}


def measure_geometry(arguments: argparse.Namespace) -> dict[str, Any]:
    """The attack on words: long and short texts, few and many loops."""
    record = {}
    for words in (arguments.words, 2 * arguments.words):
        model, batch, objective, tokenizer = _attacked(arguments, words)
        synonyms = build_synonyms(tokenizer, batch["text"])
        attacks = {
            f"{words} words, L={loops}": GeometryAttack(tokenizer, synonyms, loops) for loops in (10, 50)
        }
        runs = {name: partial(attack, batch, objective) for name, attack in attacks.items()}
        figures = against_bound(model, unit_runs(model, batch), runs, arguments.repetitions)
        few, many = (run["cpu_seconds"] for run in figures["runs"].values())
        record[f"{words} words"] = {**figures, "L=50 over L=10": many / few}
    return record


def measure_step(arguments: argparse.Namespace, projector: str) -> dict[str, Any]:
    """The whole step with two and with three views."""
    dim = {"moco": 128, "barlow_twins": 8192}[projector]
    model = build_model(build_config(arguments, projector=projector, projection_dim=dim))
    tokenizer = build_tokenizer()
    batch = build_batch(
        tokenizer, write_texts(tokenizer, arguments.batch, arguments.words), arguments.image_size
    )
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: build_trainer(model, tokenizer, batch["text"], folder, views=views)
            for name, views in VIEWS.items()
        }
        # One key branch is enough, and all that memory has room for beside six other copies.
        key_branch = trainers["2 views"].key_branch
        for trainer in trainers.values():
            trainer.key_branch = key_branch
        gc.collect()
        runs = {name: lambda trainer=trainer: step(trainer, batch) for name, trainer in trainers.items()}
        encoders = [] if key_branch is None else [key_branch.encoder]
        return against_bound(model, unit_runs(model, batch), runs, arguments.repetitions, encoders)


def build_trainer(
    model: Any, tokenizer: Any, texts: list[str], folder: str, steps: int = 5, **training: Any
) -> RMCLTrainer:
    """A trainer with both attacks, for `step`; `training` are further arguments."""
    trainer = RMCLTrainer(
        model=model,
        args=training_arguments(RMCLArguments, folder, {"use_cpu": True, "disable_tqdm": True, **training}),
        image_attack=thesis_pgd(steps),
        text_attack=GeometryAttack(tokenizer, build_synonyms(tokenizer, texts)),
    )
    trainer.current_gradient_accumulation_steps = 1  # `Trainer.train` sets it
    return trainer


def step(trainer: RMCLTrainer, batch: dict[str, Any]) -> None:
    """One step without the optimiser's."""
    trainer.model.zero_grad(set_to_none=True)
    trainer.training_step(trainer.model, batch)
    trainer.end_step()


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Processor seconds of a batch, wall-clock beside, and the ratio to the bound."""
    parts = {name: part for name, part in record["parts"].items() if name != "geometry"}
    parts |= record["parts"].get("geometry", {})
    for name, part in parts.items():
        yield from bound_table(name, part)
        yield from (f"{fact}: {part[fact]:.3f}\n" for fact in part if fact not in ("units", "runs"))


def _attacked(arguments: argparse.Namespace, words: int) -> tuple[Any, dict[str, Any], Any, Any]:
    """Model, batch and objective of an attack, and the tokenizer."""
    model = build_model(build_config(arguments)).eval().requires_grad_(False)
    tokenizer = build_tokenizer()
    batch = build_batch(tokenizer, write_texts(tokenizer, arguments.batch, words), arguments.image_size)
    batch["row"] = torch.arange(arguments.batch)
    generator = torch.Generator().manual_seed(1)
    queue = torch.randn(model.config.queue_size, model.config.projection_dim, generator=generator)
    with torch.no_grad():
        keys = torch.nn.functional.normalize(model.joint_embedding(**model_inputs(batch)), dim=1)
    objective = moco_objective(model, keys, torch.nn.functional.normalize(queue, dim=1))
    return model, batch, objective, tokenizer


if __name__ == "__main__":
    sys.exit(main())
