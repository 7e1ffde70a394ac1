"""Measuring in turns: what the programs of this folder share.

Everything compared is run in one process, one after the other, round after round, so that a change of the
machine's load meets all alike. Processor time counts, wall-clock time stands beside it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Spent:
    """One run, or the medians of several."""

    seconds: float
    cpu_seconds: float


def timed(run: Callable[[], Any]) -> Spent:
    """What one run took."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Spent(time.perf_counter() - wall, time.process_time() - processor)


def median(spent: Iterable[Spent]) -> Spent:
    """Medians of both times."""
    spent = list(spent)
    return Spent(
        statistics.median(one.seconds for one in spent), statistics.median(one.cpu_seconds for one in spent)
    )


def in_turns(
    runs: dict[str, Callable[[], Any]], repetitions: int, warm_up: Sequence[str] | None = None
) -> dict[str, list[Spent]]:
    """What `repetitions` rounds of all runs took.

    Args:
        runs: What to measure, by name.
        repetitions: Rounds.
        warm_up: Runs that are run once before; default: all. The first call of each allocates memory.
    """
    for name in runs if warm_up is None else warm_up:
        runs[name]()
    spent: dict[str, list[Spent]] = {name: [] for name in runs}
    with tqdm(total=repetitions * len(runs), unit="run") as progress:
        for _ in range(repetitions):
            for name, run in runs.items():
                progress.set_description(name)
                spent[name].append(timed(run))
                progress.update()
    return spent


def medians_in_turns(runs: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, Spent]:
    """Medians of rounds in which every run was run once before."""
    return {name: median(spent) for name, spent in in_turns(runs, repetitions).items()}


def matrix_products(rows: int, config: Any) -> tuple[Callable[[], Any], int]:
    """A run that multiplies `rows` states by a weight of the MLP some times, and its operations.

    What this machine does best with the encoder's shapes; the rate that lower bounds are counted with.
    """
    states = torch.rand(rows, config.hidden_size)
    weight, times = torch.rand(config.intermediate_size, config.hidden_size), 20

    def run() -> None:
        for _ in range(times):
            torch.nn.functional.linear(states, weight)

    return run, times * 2 * states.numel() * len(weight)


def circumstances(packages: Sequence[str] = ("rmcl-hub", "torch", "transformers")) -> dict[str, Any]:
    """Machine and versions, for a record."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2),
        },
        "versions": {name: version(name) for name in packages},
    }


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all programs have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3, help="rounds, of which medians (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    return parser


def show(record: dict[str, Any], tables: Iterable[str], file: Path | None) -> None:
    """Print circumstances and tables; write the record to `file` if there is one."""
    for part in ("machine", "versions", "setting"):
        facts = ", ".join(f"{name} {value}" for name, value in record[part].items())
        sys.stdout.write(f"{part}: {facts}\n")
    sys.stdout.write("\n" + "\n".join(tables) + "\n")
    if file:
        file.write_text(json.dumps(record, indent=1) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    """Lines of a Markdown table; numbers get two decimals, or as many as they need."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(value) for value in row) + " |"
    yield ""


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
