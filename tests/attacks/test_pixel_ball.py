"""What every attack on pixels promises, and the ball that they share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmcl_hub.attacks.apgd import APGD
from rmcl_hub.attacks.base import frozen
from rmcl_hub.attacks.noise import RandomNoise
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.pixel_ball import PixelBall, direction
from rmcl_hub.attacks.square import SquareAttack
from rmcl_hub.attacks.universal import UniversalPerturbation

EPSILON = 8 / 255
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RULES = ["sign", "l2", "linf"]
ATTACKS: dict[str, Callable[..., Any]] = {
    "pgd": lambda epsilon, **options: PGD(epsilon, epsilon / 2 or 1.0, 3, **options),
    "pgd-random": lambda epsilon, **options: PGD(epsilon, epsilon or 1.0, 2, random_start=True, **options),
    "apgd": lambda epsilon, **options: APGD(epsilon, 6, **options),
    "square": lambda epsilon, **options: SquareAttack(epsilon, 30, **options),
    "noise": RandomNoise,
    "universal": lambda epsilon, **options: UniversalPerturbation(epsilon, 5, **options),
}
SEARCHES = [name for name in ATTACKS if name not in ("noise", "universal")]
EVERY_ATTACK = pytest.mark.parametrize("name", ATTACKS)
BOTH_NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(adversarial: Tensor, clean: Tensor, norm: str, std: Tensor | float = 0.5) -> Tensor:
    """Exact size of each example's perturbation in [0, 1] pixels."""
    delta = (adversarial.double() - clean.double()) * torch.as_tensor(std).double()
    return torch.linalg.vector_norm(delta.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)


@EVERY_ATTACK
@BOTH_NORMS
@pytest.mark.parametrize("size", [0.0025, 4 / 255, 0.1, 0.3])
def test_stays_in_the_ball_and_in_the_valid_range_to_the_last_bit(
    name: str, norm: str, size: float, pixels: Any, linear_pixels: Any
) -> None:
    clean = pixels(4, 3, 16, 16)
    clean[0, :, :4] = 1.0
    clean[0, :, 4:8] = -1.0
    clean[1] *= 1e-6  # where adding the radius rounds most
    weight = torch.randn(4, 3, 16, 16, generator=seeded(4))
    epsilon = size if norm == "linf" else 10 * size

    result = ATTACKS[name](epsilon, norm=norm)({"pixel_values": clean}, linear_pixels(weight))

    adversarial = result.batch["pixel_values"]
    assert distance(adversarial, clean, norm).max() <= epsilon
    assert adversarial.min() >= -1
    assert adversarial.max() <= 1
    assert (distance(adversarial, clean, norm)[1:3] > 0.8 * epsilon).all()  # it uses what it may


@EVERY_ATTACK
@BOTH_NORMS
def test_normalisation_is_per_channel(name: str, norm: str, linear_pixels: Any) -> None:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    clean = (torch.rand(3, 3, 8, 8, generator=seeded(1)) - mean) / std
    weight = torch.randn(3, 8, 8, generator=seeded(2))
    epsilon = EPSILON if norm == "linf" else 0.4
    attack = ATTACKS[name](epsilon, norm=norm, image_mean=MEAN, image_std=STD)

    result = attack({"pixel_values": clean}, linear_pixels(weight, mean, std))

    adversarial = result.batch["pixel_values"]
    size = distance(adversarial, clean, norm, std)
    assert size.max() <= epsilon
    assert size.min() > 0.9 * epsilon
    raw = adversarial * std + mean
    assert -1e-6 <= raw.min() <= raw.max() <= 1 + 1e-6
    if norm == "linf" and name != "universal":
        for channel in range(3):
            alone = distance(adversarial[:, channel], clean[:, channel], norm, std[channel])
            assert alone.max() > 0.99 * epsilon


@BOTH_NORMS
def test_what_is_inside_stays_and_the_rest_is_scaled_example_by_example(norm: str, pixels: Any) -> None:
    clean = 0.2 * pixels(3, 2, 3, 4, 4)  # far from the limits of the valid range
    away = torch.randn(clean.shape, generator=seeded(1))
    lengths = torch.tensor([0.5, 2.0, 50.0])  # of the radius
    epsilon = 0.1
    away = epsilon * lengths.view(3, 1, 1, 1, 1) * direction(away, norm)
    ball = PixelBall({"pixel_values": clean}, epsilon, norm)

    projected = ball.project(clean + 2 * away)

    torch.testing.assert_close(projected[0], clean[0] + 2 * away[0])
    if norm == "l2":
        expected = away / lengths.clamp(min=1).view(3, 1, 1, 1, 1)
    else:
        expected = away.clamp(-epsilon, epsilon)
    torch.testing.assert_close((projected - clean) / 2, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ball.step(clean, away), projected)
    some = torch.tensor([2, 0])
    assert torch.equal(ball.narrowed(some).project((clean + 2 * away)[some]), projected[some])


def test_an_l2_point_outside_the_valid_range_is_clipped_towards_the_clean_image() -> None:
    clean = torch.full((1, 3, 2, 2), 0.9)
    ball = PixelBall({"pixel_values": clean}, 1.0, "l2")
    target = clean.clone()
    target[0, 0] += 4.0
    projected = ball.project(target)
    assert torch.equal(projected[0, 0], torch.ones(2, 2))
    assert torch.equal(projected[0, 1:], clean[0, 1:])


def test_random_points_are_uniform_in_the_ball() -> None:
    clean = torch.zeros(4000, 3, 1, 2)
    batch = {"pixel_values": clean}
    cube = PixelBall(batch, 0.1).random_point(seeded(0)) / 2
    assert cube.abs().max() <= 0.1
    assert cube.mean().abs() < 0.002
    assert cube.square().mean().sqrt() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    ball = PixelBall(batch, 0.1, "l2")
    radius = distance(ball.random_point(seeded(0)), clean, "l2")
    # Uniform in six dimensions: the share of points within r is (r / epsilon) ** 6.
    assert ((radius / 0.1) ** 6).mean() == pytest.approx(0.5, abs=0.02)
    assert ((radius / 0.1) ** 6).std() == pytest.approx(1 / 12**0.5, abs=0.02)
    torch.testing.assert_close(ball.sphere(seeded(0)).flatten(1).norm(dim=1), torch.ones(4000))
    assert ball.sphere(seeded(0)).mean().abs() < 0.01
    generator = seeded(0)
    assert not torch.equal(ball.random_point(generator), ball.random_point(generator))


def test_directions_are_taken_example_by_example() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.5], [0.0, 0.0]]).view(3, 1, 1, 2)
    expected = {
        "sign": [[1.0, -1.0], [0.0, 1.0], [0.0, 0.0]],
        "l2": [[0.6, -0.8], [0.0, 1.0], [0.0, 0.0]],
        "linf": [[0.75, -1.0], [0.0, 1.0], [0.0, 0.0]],
    }
    for rule in RULES:
        unit = direction(gradient, rule)  # type: ignore[arg-type]
        torch.testing.assert_close(unit.view(3, 2), torch.tensor(expected[rule]))


def test_padding_does_not_use_up_the_l2_ball() -> None:
    mask = torch.zeros(2, 6, 6, dtype=torch.long)
    mask[:, :2] = 1
    ball = PixelBall({"pixel_values": torch.zeros(2, 3, 6, 6), "pixel_mask": mask}, 0.5, "l2")
    sphere = ball.sphere(seeded(0))
    torch.testing.assert_close(sphere[:, :, :2].flatten(1).norm(dim=1), torch.ones(2))
    assert not sphere[:, :, 2:].any()


@EVERY_ATTACK
@BOTH_NORMS
def test_padding_is_untouched(name: str, norm: str, pixels: Any, linear_pixels: Any) -> None:
    clean = pixels(3, 2, 3, 8, 9)
    mask = torch.zeros(3, 2, 8, 9, dtype=torch.long)
    mask[0, :, :6, :5] = 1
    mask[1, :, :, :4] = 1
    mask[2, 0] = 1
    weight = torch.randn(2, 3, 8, 9, generator=seeded(5)) * (1 + 50 * (mask[0] == 0).unsqueeze(1))
    result = ATTACKS[name](0.05, norm=norm)(
        {"pixel_values": clean, "pixel_mask": mask}, linear_pixels(weight)
    )
    outside = (mask == 0).unsqueeze(2).expand_as(clean)
    assert torch.equal(result.batch["pixel_values"][outside], clean[outside])
    assert not torch.equal(result.batch["pixel_values"], clean)


@pytest.mark.parametrize("rule", RULES)
@BOTH_NORMS
def test_padding_has_no_influence(rule: str, norm: str, pixels: Any, linear_pixels: Any) -> None:
    small, weight = pixels(2, 3, 6, 5), torch.randn(3, 6, 5, generator=seeded(5))
    padded = torch.full((2, 3, 8, 9), 0.25)
    padded[..., :6, :5] = small
    mask = torch.zeros(2, 8, 9, dtype=torch.long)
    mask[:, :6, :5] = 1
    padded_weight = torch.full((3, 8, 9), 50.0)  # the objective would love to change the padding
    padded_weight[:, :6, :5] = weight
    attack = PGD(EPSILON, 0.02, 3, rule, norm=norm)  # type: ignore[arg-type]
    alone = attack({"pixel_values": small}, linear_pixels(weight)).batch["pixel_values"]
    result = attack({"pixel_values": padded, "pixel_mask": mask}, linear_pixels(padded_weight)).batch
    torch.testing.assert_close(result["pixel_values"][..., :6, :5], alone, atol=1e-6, rtol=0)
    assert not torch.equal(alone, small)


def test_padding_may_hold_any_value(linear_pixels: Any) -> None:
    clean = torch.zeros(1, 3, 2, 2)
    clean[..., 1] = 7.0
    batch = {"pixel_values": clean, "pixel_mask": torch.tensor([[[1, 0], [1, 0]]])}
    result = PGD(0.1, 0.1, 1)(batch, linear_pixels(torch.ones(3, 2, 2)))
    torch.testing.assert_close(result.batch["pixel_values"][..., 0], torch.full((1, 3, 2), 0.2))
    assert (result.batch["pixel_values"][..., 1] == 7.0).all()


def test_two_images_per_example_share_one_ball(pixels: Any, linear_pixels: Any) -> None:
    clean = 0.5 * pixels(2, 2, 3, 4, 4)
    mask = torch.ones(2, 2, 4, 4, dtype=torch.long)
    mask[1, 0, 2:] = 0
    weight = torch.randn(2, 2, 3, 4, 4, generator=seeded(6))
    batch = {"pixel_values": clean, "pixel_mask": mask}
    real = mask.bool().unsqueeze(2)

    cube = PGD(EPSILON, EPSILON, 1)(batch, linear_pixels(weight)).batch["pixel_values"]
    expected = torch.where(real, clean + 2 * EPSILON * weight.sign(), clean)
    torch.testing.assert_close(cube, expected, atol=1e-6, rtol=0)

    sphere = PGD(0.2, 0.2, 1, norm="l2")(batch, linear_pixels(weight)).batch["pixel_values"]
    free = weight * real
    norm = free.flatten(1).norm(dim=1).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(sphere, clean + 2 * 0.2 * free / norm, atol=1e-6, rtol=0)


@EVERY_ATTACK
@BOTH_NORMS
def test_zero_radius_is_the_identity(name: str, norm: str, pixels: Any, counted_pixels: Any) -> None:
    clean = pixels(3, 3, 4, 4)
    result = ATTACKS[name](0.0, norm=norm)({"pixel_values": clean}, counted_pixels)
    assert torch.equal(result.batch["pixel_values"], clean)
    assert result.batch["pixel_values"] is not clean
    assert torch.equal(result.loss_before, result.loss_after)
    assert (
        (result.forwards, result.backwards) == (3, 0) == (counted_pixels.forwards, counted_pixels.backwards)
    )


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 1.0), ("l2", 1000.0)])
@pytest.mark.parametrize("name", ["pgd", "pgd-random", "apgd", "universal"])
def test_the_largest_radius_reaches_the_corner(
    name: str, norm: str, epsilon: float, pixels: Any, linear_pixels: Any
) -> None:
    weight = torch.randn(3, 4, 4, generator=seeded(1))
    result = ATTACKS[name](epsilon, norm=norm)({"pixel_values": pixels(3, 3, 4, 4)}, linear_pixels(weight))
    torch.testing.assert_close(result.batch["pixel_values"], weight.sign().expand(3, -1, -1, -1))


@pytest.mark.parametrize("name", SEARCHES)
@BOTH_NORMS
def test_never_below_the_clean_objective_and_as_stated(name: str, norm: str, pixels: Any) -> None:
    batch = {"pixel_values": pixels(6, 3, 8, 8)}
    peak = 0.2 * torch.randn(6, 3, 8, 8, generator=seeded(3)) * torch.arange(6).view(6, 1, 1, 1)

    def objective(batch: dict[str, Any]) -> Tensor:  # the first example is at its best already
        away = batch["pixel_values"] - pixels(6, 3, 8, 8) - peak
        return -away.flatten(1).norm(dim=1)

    result = ATTACKS[name](0.05 if norm == "linf" else 0.3, norm=norm)(batch, objective)
    assert torch.equal(result.loss_before, objective(batch))
    assert torch.equal(result.loss_after, objective(result.batch))
    assert (result.loss_after >= result.loss_before).all()
    assert torch.equal(result.batch["pixel_values"][0], batch["pixel_values"][0])
    assert (result.loss_after > result.loss_before).any()


def test_the_best_iterate_of_each_example_is_kept() -> None:
    clean = torch.zeros(3, 3, 1, 1)
    peak = torch.tensor([0.12, 0.05, -1.0]).view(3, 1, 1, 1)

    def objective(batch: dict[str, Any]) -> Tensor:
        return -(batch["pixel_values"] - peak).square().sum(dim=(1, 2, 3))

    # In normalised values the iterates go 0 -> 0.2 -> 0 ..., 0 -> 0.2 -> 0 ..., 0 -> -0.2 -> -0.4 -> -0.4.
    result = PGD(epsilon=0.2, step_size=0.1, num_steps=4)({"pixel_values": clean}, objective)
    best = result.batch["pixel_values"][:, 0, 0, 0]
    torch.testing.assert_close(best, torch.tensor([0.2, 0.0, -0.4]))  # passing by, clean, last
    torch.testing.assert_close(result.loss_after, objective(result.batch))
    torch.testing.assert_close(result.loss_before, objective({"pixel_values": clean}))


@pytest.mark.parametrize("name", SEARCHES)
@BOTH_NORMS
def test_examples_do_not_influence_each_other(name: str, norm: str, toy_classifier: Any) -> None:
    toy = toy_classifier()
    epsilon = 0.03 if norm == "linf" else 0.3
    batch = {field: values[:5] for field, values in toy.batch.items()}
    others = {field: values[5:10].clone() for field, values in toy.batch.items()}
    for field in others:
        others[field][2] = batch[field][2]  # the same place, because random numbers go by place
    together, elsewhere = (
        ATTACKS[name](epsilon, norm=norm)(rows, toy.cross_entropy) for rows in (batch, others)
    )
    torch.testing.assert_close(elsewhere.batch["pixel_values"][2], together.batch["pixel_values"][2])
    assert (together.loss_after > together.loss_before).all()


@EVERY_ATTACK
def test_nothing_of_the_callers_changes(name: str, pixels: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(48), nn.Linear(48, 4))
    model[3].weight.grad = torch.ones(4, 48)
    model[2].eval()
    batch = {"pixel_values": pixels(6, 3, 4, 4), "labels": torch.arange(6) % 4}
    kept = {field: value.clone() for field, value in {**batch, **model.state_dict()}.items()}
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)

    def objective(batch: dict[str, Any]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"], reduction="none")

    attack = ATTACKS[name](EPSILON)
    attack(batch, objective)  # dropout draws random numbers in here
    with frozen(model):
        assert not any(part.training for part in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        result = attack(batch, objective)

    assert not torch.equal(result.batch["pixel_values"], batch["pixel_values"])
    assert torch.equal(torch.rand(3), expected_draw)
    assert set(batch) == {"pixel_values", "labels"}
    assert not batch["pixel_values"].requires_grad
    for field, value in {**batch, **model.state_dict()}.items():
        assert torch.equal(value, kept[field]), field
    assert torch.equal(model[3].weight.grad, torch.ones(4, 48))
    assert model[3].bias.grad is None
    assert [part.training for part in model] == [True, True, False, True]
    assert all(parameter.requires_grad for parameter in model.parameters())


@EVERY_ATTACK
def test_works_where_the_caller_disabled_gradients(name: str, pixels: Any, counted_pixels: Any) -> None:
    attack = ATTACKS[name](EPSILON)
    with torch.no_grad():
        result = attack({"pixel_values": pixels(2, 3, 9, 9)}, counted_pixels)
    assert not result.loss_after.requires_grad
    assert not result.batch["pixel_values"].requires_grad
    assert (result.forwards, result.backwards) == (counted_pixels.forwards, counted_pixels.backwards)


def test_what_is_not_finite_never_wins() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, images: Tensor) -> Tensor:
            return images.sum(dim=(1, 2, 3))

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            gradient = torch.ones(3, 3, 2, 2)
            gradient[0] = torch.nan
            gradient[1, 0] = torch.inf
            return gradient

    clean = torch.zeros(3, 3, 2, 2)
    result = PGD(0.1, 0.1, 1)({"pixel_values": clean}, lambda batch: Broken.apply(batch["pixel_values"]))
    expected = torch.full((3, 3, 2, 2), 0.2)
    expected[0] = 0.0
    expected[1, 0] = 0.0
    torch.testing.assert_close(result.batch["pixel_values"], expected)


@EVERY_ATTACK
def test_an_objective_that_breaks_down_leaves_the_clean_image(name: str) -> None:
    clean = torch.zeros(3, 3, 4, 4)

    def nan_away_from_clean(batch: dict[str, Any]) -> Tensor:
        loss = batch["pixel_values"].sum(dim=(1, 2, 3))
        return torch.where(batch["pixel_values"].flatten(1).abs().amax(dim=1) > 1e-3, loss * torch.nan, loss)

    result = ATTACKS[name](0.1)({"pixel_values": clean}, nan_away_from_clean)
    if name == "noise":  # it selects nothing
        assert result.loss_after.isnan().all()
    else:
        assert torch.equal(result.batch["pixel_values"], clean)
        assert torch.equal(result.loss_after, torch.zeros(3))


@EVERY_ATTACK
@BOTH_NORMS
def test_the_threat_model_says_what_the_attack_may_do(name: str, norm: str) -> None:
    model = ATTACKS[name](0.3, norm=norm).threat_model
    assert (model.modality, model.norm, model.epsilon) == ("image", norm, 0.3)
    assert model.access == ("black-box" if name in ("square", "noise") else "white-box")
    assert model.knowledge == ("one perturbation for the whole batch" if name == "universal" else "objective")


@EVERY_ATTACK
@pytest.mark.parametrize(
    ("epsilon", "norm", "message"),
    [
        (4, "linf", r"epsilon is 4; expected a radius in \[0, 1\] pixel units. Divide grey levels by 255"),
        (-0.1, "linf", r"epsilon is -0.1; expected a radius in \[0, 1\]"),
        (-0.1, "l2", "epsilon is -0.1; expected an L2 norm >= 0"),
        (float("nan"), "linf", "epsilon is nan"),
        (0.1, "l1", "norm is 'l1'; expected 'linf' or 'l2'"),
    ],
)
def test_a_bad_radius_is_refused(name: str, epsilon: float, norm: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](epsilon, norm=norm)


@EVERY_ATTACK
@pytest.mark.parametrize(
    ("batch", "objective", "message"),
    [
        ({"images": 1}, None, r"needs pixel_values, but the batch has only \['images'\]"),
        (
            {"pixel_values": torch.full((1, 3, 2, 2), 2.0)},
            None,
            "range from 2 to 2; expected normalised values from -1",
        ),
        ({"pixel_values": torch.full((1, 3, 2, 2), torch.nan)}, None, "range from nan to nan"),
        ({"pixel_values": torch.zeros(1, 3, 2, 2).half()}, None, "are torch.float16; expected float32"),
        (
            {},
            lambda batch: batch["pixel_values"].mean(),
            r"shape \(2,\), but returned shape \(\); .*reduction='none'",
        ),
        ({}, lambda batch: 1.0, r"shape \(2,\), but returned a float"),
    ],
)
def test_bad_input_is_refused(name: str, batch: dict[str, Any], objective: Any, message: str) -> None:
    batch = batch or {"pixel_values": torch.zeros(2, 3, 2, 2)}
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](0.1)(batch, objective)


@pytest.mark.parametrize("name", ["pgd", "apgd", "universal"])
def test_an_objective_without_gradients_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="does not depend on pixel_values through gradients"):
        ATTACKS[name](0.1)({"pixel_values": torch.zeros(2, 3, 2, 2)}, lambda batch: torch.zeros(2))
