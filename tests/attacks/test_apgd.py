import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor

from rmcl_hub.attacks.apgd import APGD, checkpoints_of

BOTH_NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Wave:
    """A smooth objective with many local maxima, one of raw pixels: `sum cos(a . x + b)` and its gradient."""

    def __init__(self, size: int, waves: int = 6) -> None:
        generator = np.random.default_rng(0)
        self.a = 5 * generator.standard_normal((waves, size))
        self.b = generator.uniform(0, 6, waves)

    def value(self, x: np.ndarray) -> float:
        return float(np.cos(self.a @ x + self.b).sum())

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return -(self.a * np.sin(self.a @ x + self.b)[:, None]).sum(axis=0)

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        x = (batch["pixel_values"] / 2 + 0.5).flatten(1)
        return torch.cos(x @ torch.as_tensor(self.a).T + torch.as_tensor(self.b)).sum(dim=1)


def check_algorithm_1(
    wave: Wave, clean: np.ndarray, seen: np.ndarray, epsilon: float, norm: str, num_steps: int, rho: float
) -> list[bool]:
    """The paper's Algorithm 1 for one example, literally: each iterate seen must follow from those before it.

    It goes on from the iterates seen, because rounding errors grow tenfold every few steps.

    Returns:
        For every checkpoint, whether the step was halved there.
    """

    def project(x: np.ndarray) -> np.ndarray:
        if norm == "l2" and np.linalg.norm(x - clean) > epsilon:
            x = clean + epsilon * (x - clean) / np.linalg.norm(x - clean)
        elif norm == "linf":
            x = np.clip(x, clean - epsilon, clean + epsilon)
        return np.clip(x, 0, 1)

    def ascent(x: np.ndarray) -> np.ndarray:
        gradient = wave.gradient(x)
        return np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [int(np.ceil(round(share * num_steps, 9))) for share in p]

    x, eta = [seen[0]], [2 * epsilon]
    f = [wave.value(x[0])]
    maximum, argmax = f[0], x[0]
    rose, halved, at_checkpoints, j = [], [], [(eta[0], maximum)], 1
    for k in range(num_steps):
        z = project(x[k] + eta[k] * ascent(x[k]))
        following = project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])) if k else z
        np.testing.assert_allclose(seen[k + 1], following, atol=1e-9)
        following, value = seen[k + 1], wave.value(seen[k + 1])
        rose.append(value > f[k])
        if value > maximum:
            maximum, argmax = value, following
        step = eta[k]
        if k + 1 == w[j]:
            condition_1 = sum(rose[w[j - 1] :]) < rho * (w[j] - w[j - 1])
            condition_2 = at_checkpoints[-1] == (eta[k], maximum)
            at_checkpoints.append((eta[k], maximum))
            halved.append(condition_1 or condition_2)
            if halved[-1]:
                step, following, value = eta[k] / 2, argmax, maximum
            j += 1
        x.append(following)
        f.append(value)
        eta.append(step)
    return halved


@BOTH_NORMS
@pytest.mark.parametrize(("num_steps", "rho"), [(1, 0.75), (7, 0.75), (50, 0.75), (100, 0.75), (100, 0.0)])
def test_iterates_are_those_of_algorithm_1(norm: str, num_steps: int, rho: float) -> None:
    epsilon = 0.3 if norm == "linf" else 1.0
    clean = torch.rand(6, 3, 2, 2, generator=seeded(1), dtype=torch.float64) * 2 - 1
    wave = Wave(size=12)
    seen: list[Tensor] = []

    def objective(batch: dict[str, Any]) -> Tensor:
        seen.append(batch["pixel_values"].detach() / 2 + 0.5)
        return wave(batch)

    APGD(epsilon, num_steps, norm, rho=rho)({"pixel_values": clean}, objective)  # type: ignore[arg-type]

    raw, iterates = seen[0].flatten(1).numpy(), torch.stack(seen[1:]).flatten(2).numpy()
    assert len(iterates) == num_steps + 1
    halved = [
        check_algorithm_1(wave, raw[row], iterates[:, row], epsilon, norm, num_steps, rho) for row in range(6)
    ]
    if num_steps == 100:
        assert {True, False} == {outcome for example in halved for outcome in example[:-1]}
    if rho == 0:  # only the second condition is left, which spares a step that was just halved
        assert not any(
            first and second for example in halved for first, second in itertools.pairwise(example)
        )


def test_checkpoints_are_the_papers() -> None:
    assert list(itertools.islice(checkpoints_of(100), 8)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(itertools.islice(checkpoints_of(10), 6)) == [3, 5, 6, 7, 8, 9]


@BOTH_NORMS
def test_random_starts_are_on_the_surface_of_the_ball(norm: str) -> None:
    clean = torch.zeros(500, 2, 3, 2, 2)
    mask = torch.ones(500, 2, 2, 2, dtype=torch.long)
    mask[:250, 1] = 0
    seen: list[Tensor] = []

    def objective(batch: dict[str, Any]) -> Tensor:
        seen.append(batch["pixel_values"].detach())
        return batch["pixel_values"].flatten(1).sum(dim=1)

    APGD(0.1, 1, norm, restarts=2)({"pixel_values": clean, "pixel_mask": mask}, objective)  # type: ignore[arg-type]

    assert torch.equal(seen[0], clean)
    start, again = seen[1] / 2, seen[3] / 2
    assert not torch.equal(start, again)
    size = start.flatten(1).norm(dim=1) if norm == "l2" else start.flatten(1).abs().amax(dim=1)
    torch.testing.assert_close(size, torch.full_like(size, 0.1))
    assert start.mean().abs() < 0.002
    if norm == "linf":  # uniform before it is stretched
        assert start[250:].abs().median() == pytest.approx(0.05, abs=0.005)


@BOTH_NORMS
def test_a_linear_objective_is_solved_also_where_the_box_binds(
    norm: str, pixels: Any, linear_pixels: Any
) -> None:
    clean = pixels(4, 3, 5, 5)
    weight = torch.randn(4, 3, 5, 5, generator=seeded(1))
    epsilon = 0.3 if norm == "linf" else 3.0
    result = APGD(epsilon, norm=norm)({"pixel_values": clean}, linear_pixels(weight))

    raw = clean / 2 + 0.5
    if norm == "linf":
        best = (raw + epsilon * weight.sign()).clamp(0, 1)
        torch.testing.assert_close(result.batch["pixel_values"], 2 * best - 1, atol=1e-6, rtol=0)
    else:  # the best point is clip(clean + s * weight) with the s at which its distance is epsilon
        low, high = torch.zeros(4, 1, 1, 1), torch.full((4, 1, 1, 1), 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            best = (raw + middle * weight).clamp(0, 1)
            short = (best - raw).flatten(1).norm(dim=1).view(4, 1, 1, 1) < epsilon
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        gain = ((best - raw) * weight).flatten(1).sum(dim=1)
        assert (result.loss_after - result.loss_before > 0.985 * gain).all()
    assert ((best == 0) | (best == 1)).float().mean() > 0.2
    free = 0.4 * clean  # far from the limits
    inside = APGD(0.1, norm=norm)({"pixel_values": free}, linear_pixels(weight)).batch["pixel_values"]
    unit = weight.sign() if norm == "linf" else weight / weight.flatten(1).norm(dim=1).view(4, 1, 1, 1)
    torch.testing.assert_close(inside, free + 2 * 0.1 * unit, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.01), ("linf", 0.02), ("l2", 0.1), ("l2", 0.2)])
def test_agrees_with_torchattacks(norm: str, epsilon: float, toy_classifier: Any) -> None:
    """torchattacks copies AutoAttack's code, from which the class differs as its docstring says; the start is
    another draw, and its result is the last misclassified iterate, not that of the largest loss.
    """
    toy = toy_classifier()
    theirs = torchattacks.APGD(toy.network, {"linf": "Linf", "l2": "L2"}[norm], epsilon, steps=25)
    expected = toy.fooled(theirs(toy.raw, toy.labels))
    result = APGD(epsilon, 25, norm)(toy.batch, toy.cross_entropy)  # type: ignore[arg-type]
    ours = toy.fooled(result.batch["pixel_values"] / 2 + 0.5)
    assert (ours != expected).sum() <= 1
    assert 0.2 < expected.float().mean() < 0.9


@pytest.mark.parametrize(("norm", "classes"), [("l2", 2), ("linf", 2), ("linf", 4)])
def test_the_margin_fools_whatever_cross_entropy_does(norm: str, classes: int, toy_classifier: Any) -> None:
    toy = toy_classifier(classes=classes)
    epsilon = 0.01 if norm == "linf" else 0.1
    by_margin = APGD(epsilon, 25, norm)(toy.batch, toy.margin)  # type: ignore[arg-type]
    by_entropy = APGD(epsilon, 25, norm)(toy.batch, toy.cross_entropy)  # type: ignore[arg-type]
    fooled, also = (toy.fooled(result.batch["pixel_values"] / 2 + 0.5) for result in (by_margin, by_entropy))
    assert torch.equal(by_margin.loss_after > 0, fooled)
    assert (also & ~fooled).sum() <= 1
    assert 0.2 < fooled.float().mean() < 0.9
    if classes == 2:  # the two losses are one function of the other
        assert (fooled != also).sum() <= 1


def test_restarts_keep_the_best() -> None:
    wave = Wave(size=12)
    batch = {"pixel_values": torch.rand(30, 3, 2, 2, generator=seeded(1), dtype=torch.float64) * 2 - 1}

    def attack(seed: int, restarts: int = 1) -> Tensor:
        return APGD(0.3, 20, restarts=restarts, generator=seeded(seed))(batch, wave).loss_after

    once, again, other, many = attack(1), attack(1), attack(2), attack(1, restarts=4)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert (many >= once).all()
    assert (many > once).float().mean() > 0.3


def test_a_start_without_a_number_is_not_returned_to() -> None:
    losses: list[Tensor] = []

    def objective(batch: dict[str, Any]) -> Tensor:  # rises everywhere, but is no number below zero
        x = batch["pixel_values"].flatten()
        losses.append(x + torch.where(x < 0, torch.nan, 0.0))
        return losses[-1]

    result = APGD(0.1)({"pixel_values": torch.zeros(16, 1, 1, 1)}, objective)
    times = torch.stack(losses).isnan().sum(dim=0)  # with one pixel, every start is -epsilon or +epsilon
    assert times.unique().tolist() == [0, 1]
    torch.testing.assert_close(result.loss_after, torch.full((16,), 0.2))


@pytest.mark.parametrize(("num_steps", "restarts"), [(1, 1), (7, 1), (5, 3)])
def test_work_is_what_the_formula_says(
    num_steps: int, restarts: int, pixels: Any, counted_pixels: Any
) -> None:
    result = APGD(0.1, num_steps, restarts=restarts)({"pixel_values": pixels(7, 3, 4, 4)}, counted_pixels)
    expected = (7 * (1 + restarts * (num_steps + 1)), 7 * restarts * num_steps)
    assert (counted_pixels.forwards, counted_pixels.backwards) == expected
    assert (result.forwards, result.backwards) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"restarts": 0}, "restarts is 0; expected at least 1"),
        ({"rho": 1.5}, r"rho is 1.5; expected a share of steps, in \[0, 1\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        APGD(0.1, **options)
