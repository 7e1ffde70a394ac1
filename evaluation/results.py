"""Layout of `results.json`: everything the report and the model card say, and nothing they have to compute.

All shares are in [0, 1], differences in shares too (the report multiplies by 100), epsilons and pixel changes
on the [0, 1] scale, times in seconds.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from .outcomes import AttackNumbers
from .pictures import AttackedPair

RESULTS_FILE = "results.json"


class AttackCostEntry(TypedDict):
    """Work of one attack per example: rows sent forward, rows differentiated, wall-clock seconds."""

    forwards: float
    backwards: float
    seconds: float


class ModelEntry(TypedDict):
    """One of the compared models.

    Attributes:
        name: For tables, such as "RMCL (MoCo)".
        description: One sentence: how it was trained, from what, for how much compute.
        tasks: task -> protocol ("frozen", "fine-tuned") -> attack -> "overall" or question type -> numbers.
        retention: attack -> "overall" -> numbers of `robustness.embedding_retention`; `robust_accuracy` is
            the share of attacked pairs that still find their own clean embedding.
        retrieval: gallery name -> `retrieval.RetrievalNumbers`.
        weights: SHA-256 of the safetensors files that were measured, of all seeds, stages and protocols.
    """

    name: str
    description: str
    tasks: dict[str, dict[str, dict[str, dict[str, AttackNumbers]]]]
    retention: NotRequired[dict[str, dict[str, AttackNumbers]]]
    retrieval: NotRequired[dict[str, Any]]
    weights: NotRequired[list[str]]


class Difference(TypedDict):
    """Treated minus control with its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(TypedDict):
    """Treated against control under one attack, on the same examples; see `compare.compare_models`.

    Attributes:
        task: Name of the task.
        protocol: How the head was trained.
        attack: Name of the attack.
        control: Key of the control in `models`.
        treated: Key of the treated model in `models`.
        differences: `clean_accuracy`, `robust_accuracy`, `attack_success_rate`; None where undefined.
        per_seed: The same differences seed by seed, without interval.
        mcnemar_p: Exact McNemar p-value for robust correctness, seed by seed.
        num_examples: Examples per seed.
        num_clusters: Concepts or pictures they come from.
        conclusion: "better", "worse", "unclear" or "none", see `compare.conclude`.
        verdict: The sentence.
    """

    task: str
    protocol: str
    attack: str
    control: str
    treated: str
    differences: dict[str, Difference | None]
    per_seed: dict[str, dict[str, float | None]]
    mcnemar_p: dict[str, float]
    num_examples: int
    num_clusters: int
    conclusion: str
    verdict: str


class Curve(TypedDict):
    """One diagram of training: `series` maps a name to its points [x, y]."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[list[float]]]


def curve_from_logs(
    title: str, y_label: str, key: str, logs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Curve:
    """One diagram from Trainer logs.

    Args:
        title: Of the diagram.
        y_label: Quantity and unit.
        key: Logged name, such as "loss".
        logs: Name of the series to `trainer.state.log_history`; entries without the key, or not finite, are
            left out.
    """
    return {
        "title": title,
        "x_label": "step",
        "y_label": y_label,
        "series": {
            name: [
                [float(entry["step"]), float(entry[key])]
                for entry in log
                if key in entry and isfinite(entry[key])
            ]
            for name, log in logs.items()
        },
    }


class Example(AttackedPair):
    """An attacked pair with what it belongs to, and its answers in words."""

    model: str
    task: str
    protocol: str
    answers: list[str]


class Results(TypedDict):
    """The file.

    Attributes:
        title: Of the report.
        summary: Sentences for the top: what was run and whether it helped.
        config: The recipe, as read.
        seeds: Of the training runs.
        versions: Library -> version.
        revision: "git" and "data": hashes.
        data: Split or task -> what is counted -> number.
        baselines: task -> name ("majority", "chance") -> share.
        threat_models: attack -> the sentence of its threat model.
        cost: attack -> work per example.
        seconds: stage -> wall-clock seconds.
        models: key -> entry; "control" first.
        comparisons: Treated against control.
        curves: Training curves.
        examples: Attacked pairs.
        notes: Limits the reader must know.
    """

    title: str
    summary: list[str]
    config: dict[str, Any]
    seeds: list[int]
    versions: dict[str, str]
    revision: dict[str, str]
    data: dict[str, dict[str, int]]
    baselines: dict[str, dict[str, float]]
    threat_models: dict[str, str]
    cost: dict[str, AttackCostEntry]
    seconds: dict[str, float]
    models: dict[str, ModelEntry]
    comparisons: list[Comparison]
    curves: list[Curve]
    examples: list[Example]
    notes: list[str]


def write_results(results: Results, folder: str | Path) -> Path:
    """Check the layout's fields and write `results.json`, whole or not at all.

    Raises:
        ValueError: If a field of `Results` is missing or a number is NaN or infinite (not JSON).
        OSError: If the folder cannot be written.
    """
    check_fields(results)
    try:
        text = json.dumps(results, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            "results hold NaN or infinity, which is not JSON; store None where a number is undefined."
        ) from error
    return write_atomically(Path(folder) / RESULTS_FILE, text)


def read_results(path: str | Path) -> Results:
    """Read a `results.json`, or the one in a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If fields are missing.
    """
    file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; run the quickstart or an evaluation first.")
    results = json.loads(file.read_text(encoding="utf-8"))
    check_fields(results)
    return results


def check_fields(results: Results) -> None:
    """Raise a ValueError that names what is missing from the layout.

    Raises:
        ValueError: If a field of `Results` is missing.
    """
    missing = sorted(Results.__required_keys__ - set(results))
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}; see evaluation/results.py for the layout.")


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file so that a reader sees the old one or the whole new one, never a part.

    Raises:
        OSError: If the folder cannot be created or written; the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=False)
    except OSError as error:
        raise OSError(
            f"cannot write to {path.parent} ({error}); choose a folder that you may write."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)  # mkstemp makes it private
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
