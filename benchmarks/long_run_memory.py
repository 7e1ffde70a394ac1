"""Does memory stay flat over many RMCL steps? Resident memory of toy runs at even intervals.

    OMP_NUM_THREADS=1 python benchmarks/long_run_memory.py --steps 200 --json long_run_memory.json

One run with MoCo and one with Barlow Twins, each in a process of its own, with attacks on pixels and words,
on the embedded pairs. The first tenth is warm-up; flat means that what the rest adds is noise of the
allocator, not a line. Linux only.
"""

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression
from typing import Any

INTERVALS = 20
MODEL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def main(argv: list[str] | None = None) -> int:
    """Run and write the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of each run (default: 200)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {"torch": version("torch"), "transformers": version("transformers")}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as alone:
        for projector in ("moco", "barlow_twins"):
            record[projector] = alone.submit(memory_of_run, projector, arguments.steps).result()
    sys.stdout.write("\n".join(table(record)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def memory_of_run(projector: str, steps: int) -> list[tuple[int, float]]:
    """Pairs of step and resident megabytes of a run."""
    from rmcl_hub.trainers import pretrain
    from rmcl_hub.trainers.recipe import AttackRecipe, DataRecipe, PretrainRecipe
    from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

    readings: list[tuple[int, float]] = []
    end_step, interval = RMCLTrainer.end_step, max(steps // INTERVALS, 1)

    def noted(trainer: RMCLTrainer) -> None:
        end_step(trainer)
        if (step := trainer.state.global_step) % interval == 0:
            readings.append((step, resident_megabytes()))

    RMCLTrainer.end_step = noted  # in a process of its own
    with tempfile.TemporaryDirectory() as folder:
        recipe = PretrainRecipe(
            output_dir=folder,
            image_size=64,
            model={**MODEL, "projector": projector, "projection_dim": 64, "queue_size": 4096},
            data=DataRecipe(max_text_length=24),
            attack=AttackRecipe(
                image={"preset": "standard", "epsilon": 0.03}, text={"max_change_share": 0.2}
            ),
            training={
                "max_steps": steps,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-4,
                "use_cpu": True,
                "logging_steps": interval,
                "save_strategy": "steps",
                "save_steps": steps // 4 or 1,
                "save_total_limit": 1,
            },
        )
        pretrain.pretrain(recipe)
    return readings


def resident_megabytes() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def table(record: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"torch {record['torch']}, transformers {record['transformers']}",
        "",
        "| projector | steps | after warm-up, MB | at the end, MB | highest, MB | MB per 100 steps |",
        "|---|---|---|---|---|---|",
    ]
    for projector in ("moco", "barlow_twins"):
        steps, resident = zip(*record[projector][len(record[projector]) // 10 :], strict=True)
        slope = linear_regression(steps, resident).slope * 100
        lines.append(
            f"| {projector} | {steps[-1]} | {resident[0]:.0f} | {resident[-1]:.0f} | {max(resident):.0f} | "
            f"{slope:+.1f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
