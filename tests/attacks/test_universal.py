import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.universal import UniversalPerturbation

BOTH_NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class EveryoneHasAWeight:
    """Each example's loss is `w_i . x`: the best shared perturbation follows the mean of the weights."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        return ((batch["pixel_values"] / 2 + 0.5) * self.weight[batch["row"]]).flatten(1).sum(dim=1)


@BOTH_NORMS
def test_a_linear_objective_gives_the_optimum_of_the_mean(norm: str, pixels: Any) -> None:
    batch = {"pixel_values": 0.5 * pixels(6, 3, 5, 5), "row": torch.arange(6)}
    weight = torch.randn(6, 3, 5, 5, generator=seeded(1))
    weight[0] = -weight[1:].mean(dim=0)  # against the others
    attack = UniversalPerturbation(0.1, 8, norm=norm)  # type: ignore[arg-type]
    result = attack(batch, EveryoneHasAWeight(weight))
    mean = weight.mean(dim=0)
    unit = mean.sign() if norm == "linf" else mean / mean.norm()
    expected = batch["pixel_values"] + 2 * 0.1 * unit
    torch.testing.assert_close(result.batch["pixel_values"], expected, atol=1e-6, rtol=0)
    assert result.loss_after.mean() > result.loss_before.mean()
    assert result.loss_after[0] < result.loss_before[0]  # one perturbation serves all, and harms some
    torch.testing.assert_close(result.loss_after, EveryoneHasAWeight(weight)(result.batch))


def test_steps_are_shared_and_clipped_to_each_valid_range(pixels: Any) -> None:
    batch = {"pixel_values": pixels(6, 3, 5, 5), "row": torch.arange(6)}
    weight = torch.randn(6, 3, 5, 5, generator=seeded(1))
    mask = torch.ones(6, 5, 5, dtype=torch.long)
    mask[2, 3:] = 0
    result = UniversalPerturbation(0.1, 2, step_size=0.03)(
        {**batch, "pixel_mask": mask}, EveryoneHasAWeight(weight)
    )
    # Padding has no gradient, so that of example 2 does not count there.
    mean = (weight * mask.unsqueeze(1)).mean(dim=0)
    expected = (batch["pixel_values"] + 2 * 0.06 * mean.sign()).clamp(-1, 1)
    expected = torch.where(mask.unsqueeze(1) == 1, expected, batch["pixel_values"])
    torch.testing.assert_close(result.batch["pixel_values"], expected, atol=1e-6, rtol=0)
    assert (expected.abs() == 1).float().mean() > 0.02


@BOTH_NORMS
def test_the_iterate_with_the_best_mean_is_kept(norm: str) -> None:
    batch = {"pixel_values": torch.zeros(2, 1, 1, 1)}
    peak = torch.tensor([0.1, 0.14])  # of the mean: 0.12; the iterates go 0 -> 0.1 -> 0.2 -> 0.1 ...

    def objective(batch: dict[str, Any]) -> Tensor:
        return -(batch["pixel_values"].flatten() - peak).square()

    attack = UniversalPerturbation(0.2, 4, step_size=0.05, norm=norm)  # type: ignore[arg-type]
    result = attack(batch, objective)
    torch.testing.assert_close(result.batch["pixel_values"].flatten(), torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(result.loss_after, objective(result.batch))
    peak = peak - 0.08  # of the mean: 0.04, and the last iterate is at 0.1
    attack = UniversalPerturbation(0.2, 5, step_size=0.05, norm=norm)  # type: ignore[arg-type]
    assert torch.equal(attack(batch, objective).batch["pixel_values"], batch["pixel_values"])


@BOTH_NORMS
def test_the_perturbation_does_not_grow_beyond_the_ball_unseen(norm: str) -> None:
    calls = itertools.count()

    def objective(batch: dict[str, Any]) -> Tensor:  # eight steps up, at whose end it turns round
        x = batch["pixel_values"].flatten()
        return x if next(calls) < 8 else 100 - x

    attack = UniversalPerturbation(0.2, 12, step_size=0.05, norm=norm)  # type: ignore[arg-type]
    result = attack({"pixel_values": torch.zeros(2, 1, 1, 1)}, objective)
    torch.testing.assert_close(result.batch["pixel_values"].flatten(), torch.zeros(2))


def test_one_example_gives_pgd(toy_classifier: Any) -> None:
    toy = toy_classifier()
    alone = {name: values[:1] for name, values in toy.batch.items()}
    for norm in ("linf", "l2"):
        universal = UniversalPerturbation(0.05, 6, step_size=0.01, norm=norm)(alone, toy.cross_entropy)
        pgd = PGD(0.05, 0.01, 6, norm=norm)(alone, toy.cross_entropy)
        torch.testing.assert_close(
            universal.batch["pixel_values"], pgd.batch["pixel_values"], atol=1e-3, rtol=0
        )


def test_a_shared_perturbation_fools_fewer_than_one_each(toy_classifier: Any) -> None:
    toy = toy_classifier()
    shared = UniversalPerturbation(0.03)(toy.batch, toy.cross_entropy)
    each = PGD(0.03, 0.03 / 4, 20)(toy.batch, toy.cross_entropy)
    fooled, also = (toy.fooled(result.batch["pixel_values"] / 2 + 0.5) for result in (shared, each))
    assert 0.02 < fooled.float().mean() < also.float().mean()
    delta = shared.batch["pixel_values"] - toy.batch["pixel_values"]
    free = toy.batch["pixel_values"].abs() < 0.94
    for other in (1, 50, 199):
        both = free[0] & free[other]
        torch.testing.assert_close(delta[0][both], delta[other][both], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 6])
def test_work_is_what_the_formula_says(num_steps: int, pixels: Any, counted_pixels: Any) -> None:
    result = UniversalPerturbation(0.1, num_steps)({"pixel_values": pixels(7, 3, 4, 4)}, counted_pixels)
    assert (result.forwards, result.backwards) == (7 * (num_steps + 1), 7 * num_steps)
    assert (counted_pixels.forwards, counted_pixels.backwards) == (7 * (num_steps + 1), 7 * num_steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"step_size": 0.0}, "step_size is 0.0; expected a positive length"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniversalPerturbation(0.1, **options)
