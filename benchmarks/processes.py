"""How an RMCL step grows with processes: two over gloo beside one, each with a batch of its own.

    OMP_NUM_THREADS=1 python benchmarks/processes.py --layers 2 --json processes.json

With as many idle cores as processes, the step of N processes with N batches would take what one process takes
with one. What it takes beyond is waiting for the slowest, since attacks on words end after different numbers
of passes, and the exchange: gradients of all weights once a step, keys, and with Barlow Twins the queries.
Processor time is that of all processes together, and rises while they wait for each other.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import debug_launcher
from pairs import add_size_options, build_batch, build_config, build_model, build_tokenizer, write_texts
from rmcl_step import VIEWS, build_trainer
from timing import Spent, argument_parser, circumstances, median, show, table, timed

from rmcl_hub.trainers.processes import join_processes


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--projector", choices=("moco", "barlow_twins"), default="moco")
    arguments = parser.parse_args(argv)
    names = ("batch", "words", "image_size", "layers", "projector", "repetitions")
    record = {
        **circumstances(),
        "setting": {name: getattr(arguments, name) for name in names},
        "runs": {str(number): measure(arguments, number) for number in arguments.processes},
    }
    show(record, tables(record), arguments.json)
    return 0


def measure(arguments: argparse.Namespace, processes: int) -> dict[str, float]:
    """Median seconds of a step of the slowest process, and processor seconds of all together."""
    with tempfile.TemporaryDirectory() as folder:
        debug_launcher(_steps, (arguments, folder), num_processes=processes)
        spent = [Spent(**json.loads(path.read_text())) for path in Path(folder).glob("*.json")]
    return {
        "seconds": max(one.seconds for one in spent),
        "cpu_seconds": sum(one.cpu_seconds for one in spent),
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Pairs a second, beside as many times those of the first run."""
    batch, runs = record["setting"]["batch"], {int(name): run for name, run in record["runs"].items()}
    (fewest, first), *_ = runs.items()
    rows = []
    for processes, run in runs.items():
        share = first["seconds"] / run["seconds"]  # every process has a batch of its own
        rate = processes * batch / run["seconds"]
        rows.append([str(processes), run["seconds"], run["cpu_seconds"], rate, share])
    columns = ["processes", "wall s", "processor s, all", "pairs/s"]
    yield from table([*columns, f"of N / {fewest} times the first rate"], rows)


def _steps(arguments: argparse.Namespace, folder: str) -> None:
    """What a process does: a warm-up and `repetitions` steps on texts of its own."""
    dim = {"moco": 128, "barlow_twins": 8192}[arguments.projector]
    model = build_model(build_config(arguments, projector=arguments.projector, projection_dim=dim))
    tokenizer = build_tokenizer()
    rank = join_processes({"use_cpu": True}).process_index
    texts = write_texts(tokenizer, arguments.batch * (rank + 1), arguments.words)[-arguments.batch :]
    batch = build_batch(tokenizer, texts, arguments.image_size)
    trainer = build_trainer(model, tokenizer, texts, folder, views=VIEWS["2 views"])
    wrapped = trainer.accelerator.prepare_model(trainer.model)

    def step() -> None:
        trainer.model.zero_grad(set_to_none=True)
        trainer.training_step(wrapped, batch)
        trainer.end_step()

    step()
    spent = median(timed(step) for _ in range(arguments.repetitions))
    Path(folder, f"{rank}.json").write_text(json.dumps(vars(spent)))


if __name__ == "__main__":
    sys.exit(main())
