"""Does a run that was killed end with the weights of one that was not? Bit for bit, or it does not count.

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --kills 20 --json kill_and_resume.json

Streaming RMCL runs of toy size with attacks on pixels and words, with MoCo and Barlow Twins, in one process
and in two under torchrun, are killed (SIGKILL) at a random moment of their training: every second time while
a checkpoint is being written. Of two processes sometimes one is killed, and what the launcher needs to end
the other is noted, sometimes all. Then the same command goes on to the end. What must be equal to the
uninterrupted run's: the saved model, optimiser, learning-rate schedule and random states of every process,
momentum encoder, queue and pointer, the counted encoder passes and the logged curves. Linux only.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tqdm.auto import tqdm

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.trainers.checkpoints import MARKER, checkpoint_folders, newest_complete

SCRIPT = Path(__file__).parents[1] / "trainers" / "pretrain.py"
STEPS, SAVE_STEPS = 18, 3
WRITING, ANY = "while a checkpoint is written", "at any moment"
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "projection_dim": 16,
    "projection_hidden_size": 32,
    "queue_size": 24,
    "momentum": 0.9,
}
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.001,
    "warmup_steps": 4,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "save_total_limit": 2,
    "logging_steps": 2,  # not in step with save_steps
    "dataloader_num_workers": 1,
    "disable_tqdm": True,
    "use_cpu": True,
}


def main(argv: list[str] | None = None) -> int:
    """Kill, resume, compare and write the table; returns 0 if all runs ended alike."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="over all four settings in turns (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.kills, arguments.seed)
    record = {"versions": versions(), "load": os.getloadavg(), "kills": rows}
    sys.stdout.write("\n".join(table(record)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["equal"] for row in rows) else 1


def measure(folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """One row a kill; below `folder` the data, an uninterrupted run of every setting, and a run a kill."""
    write_coco_captions(folder / "published")
    shards = folder / "shards"
    prepare(CocoCaptions, folder / "published", shards, ["train"], 8, num_workers=1, unofficial=True)
    moments, whole, rows = random.Random(seed), {}, []
    settings = [(projector, number) for number in (1, 2) for projector in ("moco", "barlow_twins")]
    for index in tqdm(range(kills), desc="kills"):
        projector, processes = settings[index % 4]
        recipe = write_recipe(folder / f"{projector}.yaml", projector, shards)
        if (projector, processes) not in whole:
            whole[projector, processes] = folder / f"whole-{projector}-{processes}"
            finish(recipe, whole[projector, processes], processes)
        moment = WRITING if index // 4 % 2 else ANY
        run = folder / f"killed-{index}"
        row = kill(recipe, run, processes, moment, moments)
        newest = newest_complete(run)
        finish(recipe, run, processes)
        different = differences(whole[projector, processes], run)
        rows.append(
            {
                "projector": projector,
                "processes": processes,
                "moment": moment,
                **row,
                "resumed_from": None if newest is None else newest.name,
                "equal": not different,
                "different": different,
            }
        )
    return rows


def write_recipe(path: Path, projector: str, shards: Path) -> Path:
    """A recipe of toy size with attacks that draw at random."""
    recipe = {
        "stage": "rmcl",
        "image_size": 32,
        "model": {**MODEL, "projector": projector},
        "data": {
            "corpora": {"coco": {"location": str(shards)}},
            "streaming": True,
            "buffer_size": 5,
            "max_text_length": 16,
        },
        "attack": {
            "image": {"epsilon": 0.03, "step_size": 0.02, "num_steps": 2, "random_start": True},
            "text": {"max_change_share": 0.5},
        },
        "training": TRAINING,
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, run: Path, processes: int) -> subprocess.Popen:
    """The same command every time: it begins a run, or goes on with it."""
    run.mkdir(exist_ok=True)
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [str(SCRIPT), str(recipe), "--output_dir", str(run), "--training.resume_from_checkpoint", "true"]
    log = (run / "log.txt").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*launch, *words], stdout=log, stderr=log, env=environment, start_new_session=True
    )


def finish(recipe: Path, run: Path, processes: int) -> None:
    """Run to the end.

    Raises:
        RuntimeError: If it fails.
    """
    process = start(recipe, run, processes)
    if process.wait(timeout=600):
        raise RuntimeError(f"{run} ended with status {process.returncode}:\n{(run / 'log.txt').read_text()}")


def kill(recipe: Path, run: Path, processes: int, moment: str, moments: random.Random) -> dict[str, Any]:
    """Start a run, and kill it when `moment` has come: of several processes sometimes only the last one."""
    step = moments.randrange(1, STEPS // SAVE_STEPS) * SAVE_STEPS
    delay = moments.uniform(0, 0.02 if moment == WRITING else 2.0)
    process = start(recipe, run, processes)
    if moment == WRITING:
        wait_for(process, (run / f"checkpoint-{step}").is_dir)
    else:
        wait_for(process, lambda: "'loss'" in (run / "log.txt").read_text())
    time.sleep(delay)
    family = descendants(process.pid)
    trainers = [pid for pid in family if is_trainer(pid)]
    alone = processes > 1 and len(trainers) == processes and moments.random() < 0.5
    killed_at = time.perf_counter()
    for pid in trainers[-1:] if alone else [process.pid, *family]:
        kill_if_alive(pid)
    process.wait(timeout=120)
    ended = time.perf_counter() - killed_at
    for pid in family:
        kill_if_alive(pid)
    unfinished = [path.name for path in checkpoint_folders(run) if not (path / MARKER).is_file()]
    return {
        "killed": "one process" if alone else "all processes" if processes > 1 else "the process",
        "seconds_to_end": round(ended, 2),
        "unfinished": unfinished,
    }


def wait_for(process: subprocess.Popen, condition: Any) -> None:
    """Poll until the condition holds.

    Raises:
        RuntimeError: If the process ends before.
    """
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"The run ended with status {process.returncode} before it could be killed.")
        time.sleep(0.0005)


def descendants(pid: int) -> list[int]:
    """Processes below a process, of all generations."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def is_trainer(pid: int) -> bool:
    """Whether a process runs the training script itself and is no worker of a data loader."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text()
        parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
        return SCRIPT.name in words and "torch.distributed.run" in Path(f"/proc/{parent}/cmdline").read_text()
    except OSError:
        return False


def kill_if_alive(pid: int) -> None:
    """SIGKILL."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same, bit for bit, at the end of two runs."""
    different = []
    for name in load_file(one / "model.safetensors"):
        tensors = [load_file(run / "model.safetensors")[name] for run in (one, other)]
        if not same(*tensors):
            different.append(f"model.safetensors {name}")
    last = f"checkpoint-{STEPS}"
    for path in sorted((one / last).glob("*.pt*")):
        contents = [torch.load(run / last / path.name, weights_only=False) for run in (one, other)]
        if path.name != "training_args.bin" and not same(*contents):
            different.append(path.name)
    curves = [
        json.loads((run / last / "trainer_state.json").read_text())["log_history"] for run in (one, other)
    ]
    if curves[0] != curves[1]:
        different.append("logged curves")
    return different


def same(one: Any, other: Any) -> bool:
    """Equality of nested containers of tensors and arrays; the bits count, so that NaN equals NaN."""
    if isinstance(one, torch.Tensor):
        bits = [
            value.contiguous().view(torch.uint8) if value.ndim else value[None].view(torch.uint8)
            for value in (one, other)
        ]
        return one.dtype == other.dtype and torch.equal(*bits)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "tobytes"):
        return one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


def versions() -> dict[str, str]:
    """Of what computes."""
    names = ("torch", "transformers", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def table(record: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    rows = record["kills"]
    lines = [
        ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f"; load {record['load'][0]:.1f} on {os.cpu_count()} cores",
        "",
        "| kill | projector | processes | when | killed | ended after | unfinished | resumed from | equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows, start=1):
        unfinished = ", ".join(row["unfinished"]) or "-"
        resumed_from = row["resumed_from"] or "the start"
        verdict = "yes" if row["equal"] else f"no: {', '.join(row['different'][:3])}"
        lines.append(
            f"| {index} | {row['projector']} | {row['processes']} | {row['moment']} | {row['killed']} | "
            f"{row['seconds_to_end']:.1f} s | {unfinished} | {resumed_from} | {verdict} |"
        )
    equal = sum(row["equal"] for row in rows)
    return [*lines, "", f"{equal} of {len(rows)} killed runs end bit-identical to the uninterrupted one."]


if __name__ == "__main__":
    sys.exit(main())
