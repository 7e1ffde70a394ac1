"""What an attack did to every example, and the numbers that follow from it.

The per-example table is kept (parquet), so that any rate, interval or paired comparison can be recomputed by
others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .intervals import bootstrap, wilson_interval

OVERALL = "overall"


@dataclass(frozen=True)
class Outcome:
    """One example under one attack.

    Attributes:
        id: Of the example, unique within the evaluation.
        cluster: Concept or picture that examples share; resampled as a whole.
        question_type: Stratum of the task.
        attack: Name of the attack, or of the union of attacks.
        found_by: Name of the attack; of a union, the member whose outcome is the worst.
        label: Index of the right answer.
        clean_prediction: Index of the predicted answer before the attack.
        adversarial_prediction: The same under attack.
        clean_correct: Whether the clean prediction is right.
        adversarial_correct: Whether the adversarial one is.
        loss_before: Objective of the attack on the clean example.
        loss_after: The same on the attacked one; both recomputed here, not taken from the attack.
        correct_8bit: Whether the prediction is right when the attacked pixels are rounded to 256 levels, as a
            stored picture is.
        delta_linf: Largest change of a pixel on the [0, 1] scale, recomputed from the two tensors.
        delta_l2: L2 norm of the change of all pixels on the same scale.
        words_changed: Word edits between the two texts.
        num_words: Words of the clean text.
        text: The clean text.
        adversarial_text: The attacked text.
        clean_score: Soft score of the clean prediction, in [0, 1]; None for tasks without.
        adversarial_score: The same under attack; of a union the lowest of its members.
    """

    id: str
    cluster: str
    question_type: str
    attack: str
    found_by: str
    label: int
    clean_prediction: int
    adversarial_prediction: int
    clean_correct: bool
    adversarial_correct: bool
    loss_before: float
    loss_after: float
    correct_8bit: bool
    delta_linf: float
    delta_l2: float
    words_changed: int
    num_words: int
    text: str
    adversarial_text: str
    clean_score: float | None = None
    adversarial_score: float | None = None


@dataclass(frozen=True)
class AttackCost:
    """Mean work of one attack per example: forward and backward passes of single rows, and wall-clock
    seconds.
    """

    forwards: float
    backwards: float
    seconds: float


class Rate(TypedDict):
    """A share with its 95 % interval; `value` is None where the denominator `n` is 0."""

    value: float | None
    low: float
    high: float
    n: int
    method: str


class AttackNumbers(TypedDict):
    """Numbers of one attack on one stratum; see `metrics` for the definitions."""

    clean_accuracy: Rate
    robust_accuracy: Rate
    robust_accuracy_8bit: Rate
    attack_success_rate: Rate
    flip_rate: Rate
    word_change_rate: float
    max_delta_linf: float
    max_delta_l2: float
    mean_loss_before: float
    mean_loss_after: float


def correctness(outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Clean and adversarial correctness, shape `(N, 2)`."""
    return np.array([(row.clean_correct, row.adversarial_correct) for row in outcomes], dtype=bool).reshape(
        -1, 2
    )


def clean_accuracy_of(rows: NDArray) -> float:
    """Statistic on the rows of `correctness`: share right before the attack."""
    return float(rows[:, 0].mean())


def robust_accuracy_of(rows: NDArray) -> float:
    """Statistic on the rows of `correctness`: `metrics.robust_accuracy`."""
    return metrics.robust_accuracy(rows[:, 0], rows[:, 1])


def attack_success_rate_of(rows: NDArray) -> float:
    """Statistic on the rows of `correctness`: `metrics.attack_success_rate`, NaN when nothing was initially
    correct.
    """
    return metrics.attack_success_rate(rows[:, 0], rows[:, 1]) if rows[:, 0].any() else float("nan")


def summarise(outcomes: Mapping[int, Sequence[Outcome]]) -> dict[str, dict[str, AttackNumbers]]:
    """Numbers per attack, overall and per question type.

    One run has Wilson intervals. Several runs (seeds) tested on the same examples are pooled, and their
    intervals come from the bootstrap over concepts and runs: Wilson would take the same example three times
    for three examples.

    Args:
        outcomes: Per seed, the outcomes of the model trained with it.

    Returns:
        `{attack: {"overall" or question type: AttackNumbers}}`.

    Raises:
        ValueError: If there are no outcomes.
    """
    pooled = [(run, row) for run, rows in outcomes.items() for row in rows]
    if not pooled:
        raise ValueError("no outcomes to summarise; the evaluation saw no example.")
    summary: dict[str, dict[str, AttackNumbers]] = {}
    for attack in dict.fromkeys(row.attack for _, row in pooled):
        of_attack = [(run, row) for run, row in pooled if row.attack == attack]
        strata = {OVERALL: of_attack}
        for run, row in of_attack:
            strata.setdefault(row.question_type, []).append((run, row))
        summary[attack] = {stratum: _numbers(rows) for stratum, rows in strata.items()}
    return summary


def _numbers(pooled: list[tuple[int, Outcome]]) -> AttackNumbers:
    runs, rows = np.array([run for run, _ in pooled]), [row for _, row in pooled]
    correct = correctness(rows)
    flipped = np.array([row.clean_prediction != row.adversarial_prediction for row in rows])
    eight_bit = np.array([row.correct_8bit for row in rows])
    initially_correct = correct[:, 0]
    clusters = np.array([row.cluster for row in rows])

    def rate(values: NDArray[np.bool_], over: NDArray[np.bool_]) -> Rate:
        return _rate(values[over], clusters[over], runs[over])

    everyone = np.ones(len(rows), dtype=bool)
    return {
        "clean_accuracy": rate(initially_correct, everyone),
        "robust_accuracy": rate(correct[:, 0] & correct[:, 1], everyone),
        "robust_accuracy_8bit": rate(initially_correct & eight_bit, everyone),
        "attack_success_rate": rate(~correct[:, 1], initially_correct),
        "flip_rate": rate(flipped, everyone),
        "word_change_rate": float(np.mean([row.words_changed / max(row.num_words, 1) for row in rows])),
        "max_delta_linf": max(row.delta_linf for row in rows),
        "max_delta_l2": max(row.delta_l2 for row in rows),
        "mean_loss_before": float(np.mean([row.loss_before for row in rows])),
        "mean_loss_after": float(np.mean([row.loss_after for row in rows])),
    }


def _rate(values: NDArray[np.bool_], clusters: NDArray, runs: NDArray) -> Rate:
    n = len(values)
    if n == 0:
        return {"value": None, "low": 0.0, "high": 1.0, "n": 0, "method": "undefined"}
    if len(np.unique(runs)) > 1:
        estimate = bootstrap(values, np.mean, clusters=clusters, runs=runs, num_resamples=1000)
        method = "bootstrap over concepts and seeds"
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n, "method": method}
    low, high = wilson_interval(int(values.sum()), n)
    return {"value": float(values.mean()), "low": low, "high": high, "n": n, "method": "Wilson"}


def save_outcomes(outcomes: Sequence[Outcome], path: str | Path) -> None:
    """Write the per-example table as parquet, one row per example and attack."""
    import datasets  # slow to import, and needed for the files only

    datasets.Dataset.from_list([asdict(row) for row in outcomes]).to_parquet(str(path))


def load_outcomes(path: str | Path) -> list[Outcome]:
    """Read what `save_outcomes` wrote."""
    import datasets

    table = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
    return [Outcome(**row) for row in table.to_list()]
