"""RMCL's attacks and step beside the same written the usual way, see `usual_attack.py`.

    OMP_NUM_THREADS=1 python benchmarks/usual_way.py --json usual_way.json
    OMP_NUM_THREADS=1 python benchmarks/usual_way.py --parts step --projector barlow_twins

Both sides have the same weights, pairs, synonyms and budgets, and run in turns. `forwards` and `backwards`
are rows through the encoder, counted at it. Of the speed-up on words a large part comes from stopping once
the budget of changes is spent, which the usual search does not; the rest is what a pass costs.

Both attacks must be about equally strong: `clean` and `attacked` are mean losses of the pairs, all measured
by our model afterwards. On words the usual search takes the substitute of largest loss, ours the one that
moves the embedding furthest along the gradient.

Dropout is off on both sides; `--dropout 0.1` switches it on in the usual way alone, as where attacks are run
on the model in training.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from pairs import (
    EPSILON,
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
from passes import PassCounter, Passes
from rmcl_step import VIEWS, build_trainer, step
from timing import argument_parser, circumstances, in_turns, median, show, table
from torch import nn
from usual_attack import UsualModel, UsualStep, info_nce

from rmcl_hub.attacks import GeometryAttack
from rmcl_hub.attacks.base import frozen, model_inputs

PARTS = ("pgd", "geometry", "step")


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--projector", choices=("moco", "barlow_twins"), default="moco", help="of the step")
    parser.add_argument("--views", choices=list(VIEWS), nargs="+", default=["2 views"], help="of the step")
    parser.add_argument("--dropout", type=float, default=0.0, help="in the usual way (default: 0)")
    arguments = parser.parse_args(argv)
    record = measure(arguments)
    show(record, tables(record), arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    dim = {"moco": 128, "barlow_twins": 8192}[arguments.projector]
    model = build_model(build_config(arguments, projector=arguments.projector, projection_dim=dim)).eval()
    tokenizer = build_tokenizer()
    texts = write_texts(tokenizer, arguments.batch, arguments.words)
    batch = build_batch(tokenizer, texts, arguments.image_size)
    usual = _usual_step(model, tokenizer, texts, arguments.dropout)
    figures: dict[str, Any] = {}
    if arguments.projector == "moco":
        figures = _measure_attacks(arguments, model, usual, batch)
    if "step" in arguments.parts:
        figures |= _measure_steps(arguments, model, usual, batch)
    names = ("batch", "words", "image_size", "layers", "projector", "dropout", "repetitions")
    return {
        **circumstances(),
        "setting": {name: getattr(arguments, name) for name in names},
        "runs": figures,
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Processor seconds of a batch, wall-clock beside."""
    rows = []
    for name, run in record["runs"].items():
        for side in ("usual", "ours"):
            figures = run[side]
            rows.append(
                [
                    f"{name}, {side}",
                    *(figures[column] for column in ("forwards", "backwards", "cpu_seconds", "seconds")),
                    run["usual"]["cpu_seconds"] / figures["cpu_seconds"],
                    run["usual"]["seconds"] / figures["seconds"],
                    *(f"{figures[loss]:.6g}" if loss in figures else "" for loss in ("clean", "attacked")),
                ]
            )
    columns = ["run", "forwards", "backwards", "processor s", "wall s"]
    yield from table([*columns, "speed-up", "of wall", "clean", "attacked"], rows)


def _usual_step(model: Any, tokenizer: Any, texts: list[str], dropout: float) -> UsualStep:
    usual = UsualModel(model, dropout)
    queue = None
    if model.config.projector == "moco":
        queue = torch.randn(model.config.queue_size, model.config.projection_dim)
        queue = F.normalize(queue, dim=1)
    return UsualStep(
        usual,
        copy.deepcopy(usual),
        queue,
        tokenizer,
        build_synonyms(tokenizer, texts),
        epsilon=2 * EPSILON,  # in pixels of [-1, 1]
        max_length=model.config.max_position_embeddings,
    )


def _measure_attacks(
    arguments: argparse.Namespace, model: Any, usual: UsualStep, batch: dict[str, Any]
) -> dict[str, Any]:
    """Both attacks against the clean keys."""
    batch = {**batch, "row": torch.arange(arguments.batch)}
    assert usual.queue is not None
    with torch.no_grad():
        keys = F.normalize(model.joint_embedding(**model_inputs(batch)), dim=1)
    queue = usual.queue
    objective = moco_objective(model, keys, queue)
    padded = {**batch, **usual.encode(batch["text"])}
    attacks: dict[str, tuple[Any, Callable[..., Any], str]] = {
        "pgd": (
            thesis_pgd(usual.num_steps),
            usual.attack_pixels,
            "pixel_values",
        ),
        "geometry": (
            GeometryAttack(usual.tokenizer, usual.synonyms, usual.max_loops),
            usual.attack_words,
            "text",
        ),
    }
    figures = {}
    for name, (attack, usual_attack, field) in attacks.items():
        if name not in arguments.parts:
            continue
        found: dict[str, Any] = {}

        def ours(attack: Any = attack, field: str = field, found: dict[str, Any] = found) -> None:
            with frozen(model):
                found["ours"] = attack(batch, objective).batch[field]

        def usually(attack: Any = usual_attack, found: dict[str, Any] = found) -> None:
            found["usual"] = attack(padded, lambda embeddings, rows: info_nce(embeddings, keys[rows], queue))

        figures[name] = _compare(
            {"usual": usually, "ours": ours}, arguments.repetitions, [model, usual.model]
        )
        for side in ("usual", "ours"):
            attacked = {**batch, field: found[side]}
            if field == "text":
                attacked |= usual.encode(found[side])
            with torch.no_grad():
                figures[name][side]["clean"] = float(objective(batch).mean())
                figures[name][side]["attacked"] = float(objective(attacked).mean())
    return figures


def _measure_steps(
    arguments: argparse.Namespace, model: Any, usual: UsualStep, batch: dict[str, Any]
) -> dict[str, Any]:
    figures = {}
    for name in arguments.views:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(model, usual.tokenizer, batch["text"], folder, views=VIEWS[name])
            runs = {
                "usual": lambda name=name: usual.run(batch, VIEWS[name]),
                "ours": lambda trainer=trainer: step(trainer, batch),
            }
            models = [model, usual.model, usual.key_model]
            if trainer.key_branch is not None:
                models.append(trainer.key_branch.encoder)
            figures[f"step, {name}"] = _compare(runs, arguments.repetitions, models)
    return figures


def _compare(
    runs: dict[str, Callable[[], Any]], repetitions: int, models: list[nn.Module]
) -> dict[str, dict[str, Any]]:
    """Median times and the last run's rows of each side. Copies that attacks make carry the hooks along."""
    counter = PassCounter(model.get_submodule("vilt.encoder") for model in models)
    counted: dict[str, Passes] = {}

    def count(side: str) -> None:
        counter.reset()
        runs[side]()
        counted[side] = counter.read()

    spent = in_turns(
        {side: lambda side=side: count(side) for side in runs}, repetitions, warm_up=[]
    )  # long enough
    counter.remove()
    return {
        side: {
            "forwards": counted[side].forwards,
            "backwards": counted[side].backwards + counted[side].trained,
            **vars(median(spent[side])),
        }
        for side in runs
    }


if __name__ == "__main__":
    sys.exit(main())
