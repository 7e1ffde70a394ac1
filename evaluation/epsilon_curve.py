"""Robust accuracy over the radius of the attack, in one call."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from tqdm.auto import tqdm

from rmcl_hub.attacks.apgd import APGD
from rmcl_hub.attacks.base import Batch, frozen
from rmcl_hub.attacks.threat_model import Norm

from .attack_loop import batches
from .intervals import wilson_interval
from .probes import right_answers_of
from .task_attack import task_objective
from .tasks import Task, build_task
from .victims import Victim, as_victim


class EpsilonCurve(TypedDict):
    """Robust accuracy per radius.

    Attributes:
        norm: `"linf"` or `"l2"`.
        epsilons: Radii for pixels in [0, 1], rising.
        robust_accuracy: Share right at the clean example and under every attack up to this radius: what is
            found within a radius counts for every larger one, so the curve never rises.
        low: Ends of its 95 % Wilson interval.
        high: The same.
        attack_alone: The share under the attack of this radius alone; where it rises by more than the
            interval, the attack is at fault.
        num_examples: Behind every point.
        num_steps: Of APGD with the margin loss.
    """

    norm: str
    epsilons: list[float]
    robust_accuracy: list[float]
    low: list[float]
    high: list[float]
    attack_alone: list[float]
    num_examples: int
    num_steps: int


def epsilon_curve(
    model: Any,
    processor: Any,
    dataset: Any,
    task: str | Task,
    epsilons: Sequence[float],
    *,
    norm: Norm = "linf",
    num_steps: int = 20,
    batch_size: int = 32,
) -> EpsilonCurve:
    """Attack the same examples at rising radii (APGD, margin loss).

    Args:
        model: A model in eval mode, or a `Victim`; see `victims.as_victim`.
        processor: The processor that it was trained with.
        dataset: Rows of the task.
        task: As in `robustness.evaluate_robustness`.
        epsilons: Radii for pixels in [0, 1]; 0 gives the clean accuracy.
        norm: Of the radii.
        num_steps: Gradient steps per radius.
        batch_size: Examples per batch.

    Raises:
        ValueError: If there are no radii or no examples.
    """
    task = task if isinstance(task, Task) else build_task(task, model, processor)
    victim = as_victim(model, processor, task.name)
    with frozen(victim.module):
        prepared = [batch for _, batch in batches(victim, dataset, task.collate, batch_size)]
    return curve_of_batches(victim, prepared, epsilons, norm, num_steps)


def curve_of_batches(
    victim: Victim, prepared: Sequence[Batch], epsilons: Sequence[float], norm: Norm, num_steps: int
) -> EpsilonCurve:
    """As `epsilon_curve`, of batches that are there already."""
    if not epsilons or not prepared:
        raise ValueError(
            f"a curve needs radii and examples, got {len(epsilons)} and {len(prepared)} batches."
        )
    radii = sorted(epsilons)
    pixels: dict[str, Any] = {"image_mean": victim.image_mean, "image_std": victim.image_std, "norm": norm}
    objective = task_objective(victim, "margin")
    alone: list[torch.Tensor] = []
    with frozen(victim.module):
        clean = torch.cat([right_answers_of(victim, batch) for batch in prepared])  # (examples,)
        for radius in tqdm(radii, desc="epsilon curve", unit="radius"):
            attack = APGD(radius, num_steps, **pixels)
            attacked = [attack(batch, objective).batch for batch in prepared]
            alone.append(clean & torch.cat([right_answers_of(victim, batch) for batch in attacked]))
    robust = torch.stack(alone).int().cummin(dim=0).values  # (radii, examples)
    intervals = [wilson_interval(int(row.sum()), len(row)) for row in robust]
    return {
        "norm": norm,
        "epsilons": [float(radius) for radius in radii],
        "robust_accuracy": robust.float().mean(dim=1).tolist(),
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
        "attack_alone": torch.stack(alone).float().mean(dim=1).tolist(),
        "num_examples": len(clean),
        "num_steps": num_steps,
    }
