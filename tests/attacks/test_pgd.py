import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from rmcl_hub.attacks.base import frozen
from rmcl_hub.attacks.pgd import PGD

EPSILON = 8 / 255
RULES = ["sign", "l2", "linf"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    """Random normalised images."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def distance(adversarial: Tensor, clean: Tensor) -> Tensor:
    """Exact perturbation in [0, 1] pixels."""
    return (adversarial.double() - clean.double()) * 0.5


class LinearObjective:
    """Loss `w . x` of raw pixels x in [0, 1]: its PGD iterates are known in closed form."""

    def __init__(self, weight: Tensor, mean: Tensor | float = 0.5, std: Tensor | float = 0.5) -> None:
        self.weight, self.mean, self.std = weight, mean, std

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        raw = batch["pixel_values"] * self.std + self.mean
        return (raw * self.weight).flatten(1).sum(dim=1)


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(32, 4)).requires_grad_(False).eval()


def loss_of(network: nn.Module, labels: Tensor | None = None) -> Callable[[dict[str, Any]], Tensor]:
    def objective(batch: dict[str, Any]) -> Tensor:
        logits = network(batch["pixel_values"])
        target = batch["labels"] if labels is None else labels
        return nn.functional.cross_entropy(logits, target, reduction="none")

    return objective


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_iterates_of_a_linear_model_are_the_closed_form(rule: str, num_steps: int) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    raw = torch.rand(5, 3, 6, 6, generator=seeded(1))
    weight = torch.randn(5, 3, 6, 6, generator=seeded(2))
    mean_c, std_c = mean.view(3, 1, 1), std.view(3, 1, 1)
    batch = {"pixel_values": (raw - mean_c) / std_c}
    step_size = 0.3 if rule == "l2" else 0.02
    attack = PGD(EPSILON, step_size, num_steps, rule, image_mean=mean.tolist(), image_std=std.tolist())

    adversarial = attack(batch, LinearObjective(weight, mean_c, std_c)).batch["pixel_values"] * std_c + mean_c

    norm = {
        "sign": weight.abs(),
        "l2": weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
        "linf": weight.abs().amax(dim=(1, 2, 3), keepdim=True),
    }[rule]
    # The gradient is constant and the clean point in the box: projecting every step equals projecting once.
    delta = (num_steps * step_size * weight / norm).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(adversarial, (raw + delta).clamp(0, 1), atol=1e-6, rtol=0)
    if num_steps > 1:
        assert delta.abs().max() == pytest.approx(EPSILON)  # the projection is part of the test
    if rule != "sign":
        assert (delta.abs() < EPSILON).any()


def test_agrees_with_torchattacks(network: nn.Module) -> None:
    raw = torch.rand(200, 3, 9, 9, generator=seeded(3))
    labels = network(raw).argmax(dim=1)
    normalised = {"pixel_values": (raw - 0.5) / 0.5, "labels": labels}
    epsilon = 0.02
    reference = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=10, random_start=False)
    expected = reference(raw, labels)
    attack = PGD(epsilon, epsilon / 4, 10)
    calls = itertools.count()

    def last_is_best(
        batch: dict[str, Any],
    ) -> Tensor:  # torchattacks returns its last iterate, whatever its loss
        raw_batch = {**batch, "pixel_values": batch["pixel_values"] * 0.5 + 0.5}
        return loss_of(network)(raw_batch) + 100 * next(calls)

    ours = attack(normalised, last_is_best).batch["pixel_values"] * 0.5 + 0.5
    # A gradient entry of nearly zero may differ in sign between the two ways of computing it.
    assert ((ours - expected).abs() < 1e-5).float().mean() > 0.999
    wrong = [network(images).argmax(dim=1) != labels for images in (ours, expected)]
    assert abs(int(wrong[0].sum()) - int(wrong[1].sum())) <= 1
    assert wrong[1].float().mean() > 0.2  # the comparison is not about an attack that does nothing


@pytest.mark.parametrize("epsilon", [1 / 255, 0.0025, 4 / 255, 0.1, 0.3])
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_the_ball_and_in_the_valid_range_to_the_last_bit(epsilon: float, random_start: bool) -> None:
    clean = pixels(4, 3, 16, 16)
    clean[0, :, :4] = 1.0
    clean[0, :, 4:8] = -1.0
    clean[1] *= 1e-6  # where adding the radius rounds most
    weight = torch.randn(4, 3, 16, 16, generator=seeded(4))
    attack = PGD(epsilon, 10 * epsilon, 2, random_start=random_start)

    adversarial = attack({"pixel_values": clean}, LinearObjective(weight)).batch["pixel_values"]

    assert distance(adversarial, clean).abs().max() <= epsilon
    assert adversarial.min() >= -1
    assert adversarial.max() <= 1
    free = (clean + 2 * epsilon * weight.sign()).abs() <= 1
    assert distance(adversarial, clean).abs()[free].min() > epsilon - 1e-6


def test_padding_is_untouched_and_has_no_influence() -> None:
    small, weight = pixels(2, 3, 6, 5), torch.randn(3, 6, 5, generator=seeded(5))
    padded = torch.full((2, 3, 8, 9), 0.25)
    padded[..., :6, :5] = small
    mask = torch.zeros(2, 8, 9, dtype=torch.long)
    mask[:, :6, :5] = 1
    padded_weight = torch.full((3, 8, 9), 50.0)  # the objective would love to change the padding
    padded_weight[:, :6, :5] = weight
    for rule in RULES:
        attack = PGD(EPSILON, 0.02, 3, rule)
        alone = attack({"pixel_values": small}, LinearObjective(weight)).batch["pixel_values"]
        result = attack({"pixel_values": padded, "pixel_mask": mask}, LinearObjective(padded_weight)).batch
        torch.testing.assert_close(result["pixel_values"][..., :6, :5], alone, atol=1e-6, rtol=0)
        outside = (mask == 0).unsqueeze(1).expand(-1, 3, -1, -1)
        assert torch.equal(result["pixel_values"][outside], padded[outside])
        assert not torch.equal(alone, small)


def test_two_images_per_example() -> None:
    clean = pixels(2, 2, 3, 4, 4)
    mask = torch.ones(2, 2, 4, 4, dtype=torch.long)
    mask[1, 0, 2:] = 0
    weight = torch.randn(2, 2, 3, 4, 4, generator=seeded(6))
    batch = {"pixel_values": clean, "pixel_mask": mask}
    adversarial = PGD(EPSILON, EPSILON, 1)(batch, LinearObjective(weight)).batch["pixel_values"]
    expected = torch.where(mask.bool().unsqueeze(2), clean + 2 * EPSILON * weight.sign(), clean).clamp(-1, 1)
    torch.testing.assert_close(adversarial, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["thesis", "standard"])
def test_zero_radius_is_the_identity(name: str) -> None:
    clean = pixels(3, 3, 4, 4)
    result = PGD.preset(name, epsilon=0.0)({"pixel_values": clean}, LinearObjective(torch.ones(3, 4, 4)))
    assert torch.equal(result.batch["pixel_values"], clean)
    assert torch.equal(result.loss_before, result.loss_after)
    assert (result.forwards, result.backwards) == (3, 0)


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


def test_random_starts_follow_the_generator_and_restarts_keep_the_best(network: nn.Module) -> None:
    batch = {"pixel_values": pixels(20, 3, 9, 9), "labels": torch.arange(20) % 4}

    def attack(seed: int, restarts: int = 1) -> Any:
        pgd = PGD(0.1, 0.01, 2, random_start=True, restarts=restarts, generator=seeded(seed))
        return pgd(batch, loss_of(network))

    once, again, other = attack(1), attack(1), attack(2)
    assert torch.equal(once.batch["pixel_values"], again.batch["pixel_values"])
    assert not torch.equal(once.batch["pixel_values"], other.batch["pixel_values"])
    many = attack(1, restarts=6)  # its first restart is the whole of `once`
    assert (many.loss_after >= once.loss_after).all()
    assert (many.loss_after > once.loss_after).float().mean() > 0.5
    own = PGD(0.1, 0.01, 2, random_start=True)
    first, second = (own(batch, loss_of(network)).batch["pixel_values"] for _ in range(2))
    assert not torch.equal(first, second)  # the attack's own generator moves on


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [({}, 4, 3), ({"random_start": True}, 5, 3), ({"random_start": True, "restarts": 4}, 17, 12)],
)
def test_work_is_what_the_formula_says(options: dict[str, Any], forwards: int, backwards: int) -> None:
    rows = {"forwards": 0, "backwards": 0}

    def objective(batch: dict[str, Any]) -> Tensor:
        images = batch["pixel_values"]
        rows["forwards"] += len(images)
        if images.requires_grad:
            images.register_hook(lambda gradient: rows.update(backwards=rows["backwards"] + len(gradient)))
        return images.sin().sum(dim=(1, 2, 3))

    result = PGD(0.1, 0.05, 3, **options)({"pixel_values": pixels(7, 3, 4, 4)}, objective)
    assert rows == {"forwards": 7 * forwards, "backwards": 7 * backwards}
    assert (result.forwards, result.backwards) == (7 * forwards, 7 * backwards)


def test_nothing_of_the_callers_changes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(48), nn.Linear(48, 4))
    model[3].weight.grad = torch.ones(4, 48)
    model[2].eval()
    batch = {"pixel_values": pixels(6, 3, 4, 4), "labels": torch.arange(6) % 4}
    kept = {name: value.clone() for name, value in {**batch, **model.state_dict()}.items()}
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)

    attack = PGD(EPSILON, EPSILON, 2, random_start=True)
    attack(batch, loss_of(model))  # dropout draws random numbers in here
    with frozen(model):
        assert not any(part.training for part in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        attack(batch, loss_of(model))

    assert torch.equal(torch.rand(3), expected_draw)
    assert set(batch) == {"pixel_values", "labels"}
    assert not batch["pixel_values"].requires_grad
    for name, value in {**batch, **model.state_dict()}.items():
        assert torch.equal(value, kept[name]), name
    assert torch.equal(model[3].weight.grad, torch.ones(4, 48))
    assert model[3].bias.grad is None
    assert [part.training for part in model] == [True, True, False, True]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_keeps_batch_statistics_and_restores_after_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 4))
    model[2].bias.requires_grad_(False)
    batch = {"pixel_values": pixels(6, 3, 4, 4), "labels": torch.arange(6) % 4}
    with frozen(model):
        PGD(EPSILON, EPSILON, 2)(batch, loss_of(model))
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_mean, torch.zeros(48))
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, False]


@pytest.mark.parametrize("rule", RULES)
def test_examples_do_not_influence_each_other(network: nn.Module, rule: str) -> None:
    batch = {"pixel_values": pixels(5, 3, 9, 9), "labels": torch.arange(5) % 4}
    attack = PGD(EPSILON, 0.02, 4, rule)
    together = attack(batch, loss_of(network)).batch["pixel_values"]
    backwards = {name: values.flip(0) for name, values in batch.items()}
    torch.testing.assert_close(attack(backwards, loss_of(network)).batch["pixel_values"].flip(0), together)
    for row in range(5):
        alone = attack({name: values[row : row + 1] for name, values in batch.items()}, loss_of(network))
        torch.testing.assert_close(alone.batch["pixel_values"][0], together[row])


def test_works_where_the_caller_disabled_gradients(network: nn.Module) -> None:
    batch = {"pixel_values": pixels(2, 3, 9, 9), "labels": torch.tensor([0, 1])}
    with torch.no_grad():
        result = PGD(EPSILON, EPSILON, 1)(batch, loss_of(network))
    assert (result.loss_after > result.loss_before).all()
    assert not result.loss_after.requires_grad


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
    attack = PGD(0.1, 0.1, 1)
    adversarial = attack({"pixel_values": clean}, lambda batch: Broken.apply(batch["pixel_values"])).batch
    expected = torch.full((3, 3, 2, 2), 0.2)
    expected[0] = 0.0
    expected[1, 0] = 0.0
    torch.testing.assert_close(adversarial["pixel_values"], expected)

    def nan_away_from_clean(batch: dict[str, Any]) -> Tensor:
        loss = batch["pixel_values"].sum(dim=(1, 2, 3))
        return torch.where(loss.abs() > 1e-3, loss * torch.nan, loss)

    result = attack({"pixel_values": clean}, nan_away_from_clean)
    assert torch.equal(result.batch["pixel_values"], clean)
    assert torch.equal(result.loss_after, torch.zeros(3))


def test_presets_are_the_published_numbers() -> None:
    thesis = PGD.preset("thesis")
    assert (thesis.epsilon / 0.5, thesis.step_size / 0.5) == (0.005, 0.05)  # what the thesis prints
    assert (thesis.num_steps, thesis.gradient, thesis.random_start) == (5, "linf", False)
    standard = PGD.preset("standard")
    assert (standard.epsilon, standard.step_size) == (4 / 255, 1 / 255)
    assert (standard.num_steps, standard.gradient, standard.random_start) == (10, "sign", True)
    wider = PGD.preset("standard", epsilon=8 / 255)
    assert (wider.epsilon, wider.step_size) == (8 / 255, 2 / 255)
    assert wider.threat_model.epsilon == 8 / 255
    with pytest.raises(ValueError, match="no PGD preset 'fast'; choose 'thesis', 'standard' or 'fgsm'"):
        PGD.preset("fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"epsilon": 4},
            r"epsilon is 4; expected a radius in \[0, 1\] pixel units. Divide grey levels by 255",
        ),
        ({"epsilon": -0.1}, r"epsilon is -0.1; expected a radius in \[0, 1\]"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"step_size": 0.0}, "step_size is 0.0; expected a positive length"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"gradient": "l1"}, "gradient is 'l1'; expected one of sign, l2, linf"),
        ({"restarts": 0}, "restarts is 0"),
        ({"restarts": 2}, "exactly 1 without a random start"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**{"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, **options})


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
        ({}, lambda batch: torch.zeros(2), "does not depend on pixel_values through gradients"),
    ],
)
def test_bad_input_is_refused(batch: dict[str, Any], objective: Any, message: str) -> None:
    batch = batch or {"pixel_values": torch.zeros(2, 3, 2, 2)}
    with pytest.raises(ValueError, match=message):
        PGD(0.1, 0.1, 1)(batch, objective)


def test_padding_may_hold_any_value() -> None:
    clean = torch.zeros(1, 3, 2, 2)
    clean[..., 1] = 7.0
    mask = torch.tensor([[[1, 0], [1, 0]]])
    result = PGD(0.1, 0.1, 1)(
        {"pixel_values": clean, "pixel_mask": mask}, LinearObjective(torch.ones(3, 2, 2))
    )
    torch.testing.assert_close(result.batch["pixel_values"][..., 0], torch.full((1, 3, 2), 0.2))
    assert (result.batch["pixel_values"][..., 1] == 7.0).all()
