"""Did the treatment help? Paired differences between two models tested on the same examples, and the sentence
for it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .intervals import UndefinedStatisticError, mcnemar, paired_bootstrap
from .outcomes import (
    Outcome,
    attack_success_rate_of,
    clean_accuracy_of,
    correctness,
    robust_accuracy_of,
)
from .results import Comparison, Difference

STATISTICS: dict[str, Callable[[NDArray], float]] = {
    "attack_success_rate": attack_success_rate_of,
    "robust_accuracy": robust_accuracy_of,
    "clean_accuracy": clean_accuracy_of,
}
MEASURES = {
    "clean_accuracy": "clean accuracy",
    "robust_accuracy": "robust accuracy",
    "attack_success_rate": "attack success",
}
RETENTION_MEASURES = {
    "clean_accuracy": "clean retention",
    "robust_accuracy": "retention under attack",
    "attack_success_rate": "loss of embeddings",
}
RETENTION = "retention"
"""Task name of `robustness.embedding_retention`, whose rates are called otherwise in sentences."""

Runs = Mapping[int, Sequence[Outcome]]


def compare_models(
    control: Runs,
    treated: Runs,
    *,
    task: str,
    protocol: str,
    names: tuple[str, str] = ("control", "rmcl"),
    labels: tuple[str, str] = ("the control", "RMCL"),
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare two models under every attack, with 95 % intervals of treated minus control.

    Seeds are pooled. The interval resamples test concepts and, with more than one seed, training seeds
    (crossed, see `intervals.bootstrap`): it is about retraining both models and testing them on new concepts.
    With one seed it is about these two trained models only, and the sentence says so. Intervals are per
    comparison, not corrected for their number.

    Args:
        control: Training seed to outcomes of the control.
        treated: The same seeds and examples for the treated model.
        task: Name of the task.
        protocol: How the head was trained.
        names: Keys of control and treated model in `results.json`.
        labels: Their names in sentences.
        num_resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        One comparison per attack, in the order of the control's outcomes.

    Raises:
        ValueError: If seeds, attacks, examples or labels of the two models differ.
    """
    if set(control) != set(treated) or not control:
        raise ValueError(
            f"control has seeds {sorted(control)}, treated {sorted(treated)}; both need the same, at least "
            "one."
        )
    attacks = list(dict.fromkeys(row.attack for row in next(iter(control.values()))))
    return [
        _compare_attack(
            {run: _matched(control[run], treated[run], attack, run) for run in control},
            {"task": task, "protocol": protocol, "attack": attack, "control": names[0], "treated": names[1]},
            labels,
            num_resamples,
            seed,
        )
        for attack in attacks
    ]


def _matched(
    control: Sequence[Outcome], treated: Sequence[Outcome], attack: str, run: int
) -> tuple[list[Outcome], list[Outcome]]:
    a = sorted((row for row in control if row.attack == attack), key=lambda row: row.id)
    b = sorted((row for row in treated if row.attack == attack), key=lambda row: row.id)
    if [(row.id, row.label, row.text) for row in a] != [(row.id, row.label, row.text) for row in b]:
        raise ValueError(
            f"control and treated were not tested on the same examples under {attack!r} with seed {run} "
            f"({len(a)} and {len(b)} outcomes); evaluate both with the same data set and task."
        )
    return a, b


def _compare_attack(
    runs: dict[int, tuple[list[Outcome], list[Outcome]]],
    identity: dict[str, str],
    labels: tuple[str, str],
    num_resamples: int,
    seed: int,
) -> Comparison:
    a = np.concatenate([correctness(control) for control, _ in runs.values()])
    b = np.concatenate([correctness(treated) for _, treated in runs.values()])
    clusters = np.array([row.cluster for control, _ in runs.values() for row in control])
    run_of_row = np.repeat(list(runs), [len(control) for control, _ in runs.values()])

    def difference(statistic: Callable[[NDArray], float]) -> Difference | None:
        try:
            estimate = paired_bootstrap(
                b, a, clusters, statistic, seed=seed, runs=run_of_row, num_resamples=num_resamples
            )
        except UndefinedStatisticError:
            return None
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    differences = {name: difference(statistic) for name, statistic in STATISTICS.items()}
    comparison = Comparison(
        **identity,
        differences=differences,
        per_seed={str(run): _point_differences(*rows) for run, rows in runs.items()},
        mcnemar_p={
            str(run): mcnemar(correctness(treated).all(axis=1), correctness(control).all(axis=1))
            for run, (control, treated) in runs.items()
        },
        num_examples=len(next(iter(runs.values()))[0]),
        num_clusters=len(np.unique(clusters)),
        conclusion=conclude(differences),
        verdict="",
    )
    comparison["verdict"] = verdict(comparison, labels)
    return comparison


def _point_differences(control: list[Outcome], treated: list[Outcome]) -> dict[str, float | None]:
    a, b = correctness(control), correctness(treated)
    points = {name: statistic(b) - statistic(a) for name, statistic in STATISTICS.items()}
    return {name: None if np.isnan(point) else point for name, point in points.items()}


def conclude(differences: Mapping[str, Difference | None]) -> str:
    """Judge attack success and robust accuracy together, never one alone.

    Attack success falls also when a model merely answers less; robust accuracy rises also when it merely
    answers better.

    Returns:
        "better": success lower and robust accuracy higher, both intervals exclude 0. "worse": one of them
        clearly worse and the other not clearly better. "none": neither interval excludes 0. "unclear":
        anything else.
    """
    success, robust = differences["attack_success_rate"], differences["robust_accuracy"]
    gains = [-_sign(success), _sign(robust)]
    if gains == [1, 1]:
        return "better"
    if gains == [0, 0]:
        return "none"
    return "worse" if max(gains) <= 0 else "unclear"


def measure_names(task: str) -> dict[str, str]:
    """What the measures are called in tables and sentences about a task."""
    return RETENTION_MEASURES if task == RETENTION else MEASURES


def verdict(comparison: Comparison, labels: tuple[str, str] = ("the control", "RMCL")) -> str:
    """Say in words what a comparison shows, whichever way it went."""
    control, treated = labels
    names = measure_names(comparison["task"])
    differences = comparison["differences"]
    parts = [
        _phrase(
            names["attack_success_rate"], differences["attack_success_rate"], f"under {comparison['attack']} "
        ),
        _phrase(names["robust_accuracy"], differences["robust_accuracy"]),
        _phrase(names["clean_accuracy"], differences["clean_accuracy"]),
    ]
    where = ", ".join(filter(None, [comparison["task"], comparison["protocol"]]))
    seeds = len(comparison["per_seed"])
    basis = f"{seeds} seeds" if seeds > 1 else "one seed: new training runs may differ"
    return (
        f"{where}: compared with {control}, {treated} {'; '.join(parts)}. "
        f"{_conclusion(comparison, control, treated)} "
        f"({comparison['num_examples']} examples of {comparison['num_clusters']} concepts, {basis}.)"
    )


def count_conclusions(comparisons: Sequence[Comparison], treated: str = "RMCL") -> str:
    """One sentence over all comparisons, with the number of differences to expect by chance.

    Raises:
        ValueError: If there are no comparisons.
    """
    if not comparisons:
        raise ValueError("no comparisons to count; run compare_models first.")
    found = [row["conclusion"] for row in comparisons]
    return (
        f"Of {len(found)} comparisons {treated} is better in {found.count('better')}, worse in "
        f"{found.count('worse')}, mixed in {found.count('unclear')}, and without a clear difference in "
        f"{found.count('none')}. Intervals are not corrected for the number of comparisons: at 95 % about "
        "one in twenty excludes 0 by chance alone."
    )


def _sign(difference: Difference | None) -> int:
    """+1 or -1 where the interval excludes 0, else 0."""
    if difference is None:
        return 0
    return int(difference["low"] > 0) - int(difference["high"] < 0)


def _phrase(name: str, difference: Difference | None, where: str = "") -> str:
    if difference is None:
        return f"has too few initially correct examples to bound {name} {where}".rstrip()
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    sign = _sign(difference)
    if sign == 0:
        return f"shows no clear change of {name} {where}({value:+.1f} points [{low:+.1f}, {high:+.1f}])"
    size = sorted([sign * low, sign * high])
    verb = "raises" if sign > 0 else "lowers"
    return f"{verb} {name} {where}by {abs(value):.1f} points [{size[0]:.1f}, {size[1]:.1f}]"


def _conclusion(comparison: Comparison, control: str, treated: str) -> str:
    match comparison["conclusion"]:
        case "better":
            return f"{treated} is more robust here."
        case "worse":
            return f"{treated} is less robust here."
        case "none":
            robust = comparison["differences"]["robust_accuracy"]
            half_width = 50 * (robust["high"] - robust["low"]) if robust else 0.0
            unseen = f"; one below about {half_width:.0f} points could not be seen" if half_width >= 1 else ""
            return f"No effect on robustness is shown{unseen}."
        case _:
            return (
                f"The two measures do not agree, so {treated} is not shown to be more robust than {control}: "
                "attack success also falls when a model is right less often, and robust accuracy also rises "
                "when it is right more often."
            )
