"""Whether an attack could work at all: hidden gradients, randomness, ends of the scale.

Each probe takes a victim and a few batches (`attack_loop.batches`), and returns plain numbers for the audit.
What to look for is in Athalye et al. (arXiv:1802.00420), Carlini et al. (arXiv:1902.06705) and Pintor et al.
(arXiv:2106.09947).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen, isolated_rng, select_rows
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.pixel_ball import Direction, direction
from rmcl_hub.attacks.threat_model import Norm

from .task_attack import task_objective
from .task_losses import is_correct
from .victims import Victim

SURFACE_STEPS = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of epsilon at which the loss surface is looked at."""


def answer_spread(victim: Victim, batch: Batch, repeats: int = 5) -> float:
    """Largest difference of a logit between repeated forwards of the same batch."""
    with frozen(victim.module):
        answers = torch.stack([victim.predict(batch) for _ in range(repeats)])  # (repeats, batch, classes)
    return float((answers.amax(dim=0) - answers.amin(dim=0)).max())


def batch_dependence(victim: Victim, collate: Any, rows: Sequence[Any], batch: Batch) -> float:
    """Largest difference of a logit between an example alone and in its (padded) batch."""
    differences = []
    with frozen(victim.module):
        together = victim.predict(batch)
        for index, row in enumerate(rows):
            alone = victim.on_device(collate([row]))
            differences.append(float((victim.predict(alone)[0] - together[index]).abs().max()))
    return max(differences)


def gradient_health(victim: Victim, batches: Sequence[Batch]) -> dict[str, Any]:
    """Whether the margin has a gradient with respect to the pixels where the model is right.

    Returns:
        `zero_share`: share of those examples whose gradient is zero or not finite everywhere; None if the
        model is right nowhere. `probabilities`: whether the logits are probabilities, rows in [0, 1] that sum
        to one.
    """
    objective = task_objective(victim, "margin")
    dead, probabilities = [], []
    with frozen(victim.module):
        for batch in batches:
            logits = victim.predict(batch)
            right = is_correct(logits.argmax(dim=-1), batch["labels"])
            gradient = pixel_gradient(objective, batch).flatten(1)
            dead += (~(torch.isfinite(gradient) & (gradient != 0)).any(dim=1))[right].tolist()
            sums = (logits.sum(dim=-1) - 1).abs().max() < 1e-4
            probabilities.append(bool(sums and logits.min() >= 0))
    return {
        "zero_share": sum(dead) / len(dead) if dead else None,
        "probabilities": all(probabilities),
        "num_examples": len(dead),
    }


def loss_surface(victim: Victim, batches: Sequence[Batch], epsilon: float, norm: Norm) -> dict[str, Any]:
    """Mean cross entropy along its steepest ascent in the norm and along a random one, at shares of epsilon.

    Returns:
        `shares`, `along_gradient`, `along_random`, and `agree_share`: the share of examples whose loss rises
        over the first stretch along the gradient, near 1 where gradients tell the truth.
    """
    objective = task_objective(victim, "cross-entropy")
    ascent: Direction = "sign" if norm == "linf" else "l2"
    lines: dict[str, list[Tensor]] = {"along_gradient": [], "along_random": []}
    with frozen(victim.module), isolated_rng(batches[0]["pixel_values"]):
        generator = torch.Generator().manual_seed(0)
        for batch in batches:
            pixels = batch["pixel_values"]
            noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
            directions = {"along_gradient": pixel_gradient(objective, batch), "along_random": noise}
            for name, along_it in directions.items():
                real = along_it * (batch["pixel_mask"] != 0).unsqueeze(-3)
                lines[name].append(_line(victim, objective, batch, direction(real, ascent), epsilon))
    along = {name: torch.cat(parts, dim=1) for name, parts in lines.items()}  # (shares, examples)
    rises = along["along_gradient"][1] > along["along_gradient"][0]
    return {
        "shares": list(SURFACE_STEPS),
        **{name: values.mean(dim=1).tolist() for name, values in along.items()},
        "agree_share": float(rises.float().mean()),
    }


def _line(victim: Victim, objective: JointObjective, batch: Batch, unit: Tensor, epsilon: float) -> Tensor:
    """Loss at the shares of epsilon along a direction, `(shares, batch)`; not clipped to the valid range."""
    std = torch.as_tensor(victim.image_std, device=unit.device).reshape(-1, 1, 1)
    step = epsilon / std * unit
    with torch.no_grad():
        return torch.stack(
            [
                objective({**batch, "pixel_values": batch["pixel_values"] + share * step})
                for share in SURFACE_STEPS
            ]
        )


def robust_share(victim: Victim, batches: Sequence[Batch], attack: Attack, objective: Any) -> float:
    """Share of examples that are right before and after an attack."""
    kept = []
    with frozen(victim.module):
        for batch in batches:
            attacked = attack(batch, objective).batch
            kept += (right_answers_of(victim, batch) & right_answers_of(victim, attacked)).tolist()
    return sum(kept) / len(kept)


def right_answers_of(victim: Victim, batch: Batch) -> Tensor:
    """Whether each example is answered right, bool `(batch,)`."""
    return is_correct(victim.predict(batch).argmax(dim=-1), batch["labels"])


def changed_at_zero(victim: Victim, batches: Sequence[Batch]) -> int:
    """Predictions that differ from the clean ones after an attack of radius zero: must be none, exactly."""
    attack = PGD(0.0, 1.0, 1, image_mean=victim.image_mean, image_std=victim.image_std)
    objective, changed = task_objective(victim, "margin"), 0
    with frozen(victim.module):
        for batch in batches:
            attacked = attack(batch, objective).batch
            changed += int((victim.predict(attacked) != victim.predict(batch)).any(dim=-1).sum())
    return changed


def other_images(victim: Victim, batches: Sequence[Batch]) -> float:
    """Share of examples that stay right whatever image of their batch stands in for their own.

    The bound that no attack on pixels of radius one should stay above: a gradient that cannot do what a
    change of picture does is hidden.
    """
    kept = []
    with frozen(victim.module):
        for batch in batches:
            right = right_answers_of(victim, batch)
            size = len(right)
            for shift in range(1, size):
                rows = [(row + shift) % size for row in range(size)]
                images = select_rows({name: batch[name] for name in ("pixel_values", "pixel_mask")}, rows)
                right &= right_answers_of(victim, {**batch, **images})
            kept += right.tolist()
    return sum(kept) / len(kept)


def restart_spread(
    victim: Victim, batches: Sequence[Batch], epsilon: float, norm: Norm, seeds: Sequence[int] = (0, 1, 2)
) -> list[float]:
    """Robust share under PGD from random starts, seed by seed."""
    objective = task_objective(victim, "cross-entropy")
    return [
        robust_share(
            victim,
            batches,
            PGD.preset(
                "standard",
                epsilon,
                norm,
                image_mean=victim.image_mean,
                image_std=victim.image_std,
                generator=torch.Generator().manual_seed(seed),
            ),
            objective,
        )
        for seed in seeds
    ]


def pixel_gradient(objective: JointObjective, batch: Batch) -> Tensor:
    """Gradient of each example's objective with respect to its `pixel_values`."""
    pixels = batch["pixel_values"].detach().requires_grad_()
    with torch.enable_grad():
        loss = objective({**batch, "pixel_values": pixels}).sum()
        if not loss.requires_grad:
            return torch.zeros_like(pixels)
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient


def first_rows(batch: Batch, limit: int) -> Batch:
    """The first examples of a batch."""
    return select_rows(batch, range(min(limit, len(batch["text"]))))
