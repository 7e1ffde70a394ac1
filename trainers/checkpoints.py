"""Which checkpoints of a run are whole: a marker, written last, lists their files and what made them."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MARKER = "complete.json"


def mark_complete(checkpoint: Path, run: dict[str, Any]) -> None:
    """Write the marker, once all files of the checkpoint are on the disk and not only in its cache.

    Args:
        checkpoint: Folder that is written to no more.
        run: What the run was, JSON-ready, for `recorded_run`.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    unfinished = checkpoint / f"{MARKER}.unfinished"
    unfinished.write_text(json.dumps({"files": sizes, "run": run}, indent=1) + "\n")
    _flush(unfinished)
    unfinished.replace(checkpoint / MARKER)  # from one moment to the next


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fault(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, None if it is whole."""
    marker = checkpoint / MARKER
    if not marker.is_file():
        return f"it has no {MARKER}, which is written last"
    for name, size in json.loads(marker.read_text())["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def recorded_run(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` was told about the run."""
    return json.loads((checkpoint / MARKER).read_text())["run"]


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """Checkpoints of a run, whole or not, the newest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in Path(output_dir).glob("checkpoint-*")}
    return sorted((path for path in steps if steps[path].isdigit()), key=lambda path: -int(steps[path]))


def newest_complete(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint, None if there is none; those that it passes over are logged."""
    for checkpoint in checkpoint_folders(output_dir):
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("Passing over %s: %s.", checkpoint, reason)
    return None


def delete_older(checkpoint: Path, limit: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints beside a new one, and those that were never finished.

    Args:
        checkpoint: The new one, complete.
        limit: How many stay, the new one and the best included; None and 0: all.
        best: Stays in any case; hence of a limit of 1 two can be left.
    """
    if not limit:
        return
    others = [folder for folder in checkpoint_folders(checkpoint.parent) if folder != checkpoint]
    kept = [folder for folder in others if best is not None and folder == Path(best)]
    for folder in others:
        if folder in kept:
            continue
        if len(kept) < limit - 1 and fault(folder) is None:
            kept.append(folder)
        else:
            discard(folder)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its marker first, so that a half-deleted one is not taken for whole."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
