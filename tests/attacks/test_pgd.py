import itertools
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_iterates_of_a_linear_model_are_the_closed_form(
    rule: str, num_steps: int, linear_pixels: Any
) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    raw = torch.rand(5, 3, 6, 6, generator=seeded(1))
    weight = torch.randn(5, 3, 6, 6, generator=seeded(2))
    mean_c, std_c = mean.view(3, 1, 1), std.view(3, 1, 1)
    batch = {"pixel_values": (raw - mean_c) / std_c}
    step_size = 0.3 if rule == "l2" else 0.02
    attack = PGD(EPSILON, step_size, num_steps, rule, image_mean=mean.tolist(), image_std=std.tolist())

    result = attack(batch, linear_pixels(weight, mean_c, std_c))

    norm = {
        "sign": weight.abs(),
        "l2": weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
        "linf": weight.abs().amax(dim=(1, 2, 3), keepdim=True),
    }[rule]
    # The gradient is constant and the clean point in the box: projecting every step equals projecting once.
    delta = (num_steps * step_size * weight / norm).clamp(-EPSILON, EPSILON)
    adversarial = result.batch["pixel_values"] * std_c + mean_c
    torch.testing.assert_close(adversarial, (raw + delta).clamp(0, 1), atol=1e-6, rtol=0)
    if num_steps > 1:
        assert delta.abs().max() == pytest.approx(EPSILON)  # the projection is part of the test
    if rule != "sign":
        assert (delta.abs() < EPSILON).any()


@pytest.mark.parametrize(
    ("step_size", "num_steps", "length"), [(0.02, 3, 0.06), (0.02, 9, 0.1), (5.0, 1, 0.1)]
)
def test_l2_iterates_of_a_linear_model_are_the_closed_form(
    step_size: float, num_steps: int, length: float, pixels: Any, linear_pixels: Any
) -> None:
    clean = 0.5 * pixels(4, 3, 5, 5)
    weight = torch.randn(4, 3, 5, 5, generator=seeded(1)) * torch.tensor([1e-3, 1, 10, 1e3]).view(4, 1, 1, 1)
    result = PGD(0.1, step_size, num_steps, norm="l2")({"pixel_values": clean}, linear_pixels(weight))
    unit = weight / weight.flatten(1).norm(dim=1).view(4, 1, 1, 1)
    torch.testing.assert_close(result.batch["pixel_values"], clean + 2 * length * unit, atol=1e-6, rtol=0)


def test_l2_steps_under_a_binding_box_reach_the_constrained_optimum(pixels: Any, linear_pixels: Any) -> None:
    clean = pixels(1, 3, 5, 5)
    weight = torch.randn(3, 5, 5, generator=seeded(1))
    epsilon = 3.0
    attack = PGD(epsilon, epsilon / 50, 400, norm="l2")
    result = attack({"pixel_values": clean}, linear_pixels(weight))

    # The best point is clip(clean + s * weight) with the s at which its distance is epsilon.
    raw, low, high = clean[0] / 2 + 0.5, 0.0, 100.0
    for _ in range(60):
        s = (low + high) / 2
        best = (raw + s * weight).clamp(0, 1)
        low, high = (s, high) if (best - raw).norm() < epsilon else (low, s)
    assert ((best == 0) | (best == 1)).float().mean() > 0.2
    optimum, start = ((image * weight).sum().item() for image in (best, raw))
    assert result.loss_after.item() - start > 0.995 * (optimum - start)


@pytest.mark.parametrize("epsilon", [0.01, 0.02])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-l2"])
def test_agrees_with_torchattacks(name: str, epsilon: float, toy_classifier: Any) -> None:
    toy = toy_classifier()
    if name == "fgsm":
        reference, attack = torchattacks.FGSM(toy.network, epsilon), PGD.preset("fgsm", epsilon)
    elif name == "pgd":
        reference = torchattacks.PGD(toy.network, epsilon, epsilon / 4, steps=10, random_start=False)
        attack = PGD(epsilon, epsilon / 4, 10)
    else:
        epsilon *= 10
        reference = torchattacks.PGDL2(toy.network, epsilon, epsilon / 4, steps=10, random_start=False)
        attack = PGD(epsilon, epsilon / 4, 10, norm="l2")
    expected = reference(toy.raw, toy.labels)
    calls = itertools.count()

    def last_is_best(batch: dict[str, Any]) -> Tensor:  # as torchattacks: the last iterate, whatever its loss
        return toy.cross_entropy(batch) + 100 * next(calls)

    last = attack(toy.batch, last_is_best).batch["pixel_values"] / 2 + 0.5
    # A gradient entry of nearly zero may differ in sign between the two ways of computing it.
    assert ((last - expected).abs() < 1e-5).float().mean() > 0.999
    best = attack(toy.batch, toy.cross_entropy).batch["pixel_values"] / 2 + 0.5
    assert (toy.fooled(last) != toy.fooled(expected)).sum() <= 1
    assert (toy.fooled(best) != toy.fooled(expected)).sum() <= 1
    assert 0.2 < toy.fooled(expected).float().mean() < 0.9  # there is something to disagree about


def test_random_starts_follow_the_generator_and_restarts_keep_the_best(toy_classifier: Any) -> None:
    toy = toy_classifier()
    batch = {name: values[:20] for name, values in toy.batch.items()}

    def attack(seed: int, restarts: int = 1) -> Any:
        pgd = PGD(0.1, 0.01, 2, random_start=True, restarts=restarts, generator=seeded(seed))
        return pgd(batch, toy.cross_entropy)

    once, again, other = attack(1), attack(1), attack(2)
    assert torch.equal(once.batch["pixel_values"], again.batch["pixel_values"])
    assert not torch.equal(once.batch["pixel_values"], other.batch["pixel_values"])
    many = attack(1, restarts=6)  # its first restart is the whole of `once`
    assert (many.loss_after >= once.loss_after).all()
    assert (many.loss_after > once.loss_after).float().mean() > 0.5
    own = PGD(0.1, 0.01, 2, random_start=True)
    first, second = (own(batch, toy.cross_entropy).batch["pixel_values"] for _ in range(2))
    assert not torch.equal(first, second)  # the attack's own generator moves on


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [({}, 4, 3), ({"random_start": True}, 5, 3), ({"random_start": True, "restarts": 4}, 17, 12)],
)
def test_work_is_what_the_formula_says(
    options: dict[str, Any], forwards: int, backwards: int, pixels: Any, counted_pixels: Any
) -> None:
    result = PGD(0.1, 0.05, 3, **options)({"pixel_values": pixels(7, 3, 4, 4)}, counted_pixels)
    assert (counted_pixels.forwards, counted_pixels.backwards) == (7 * forwards, 7 * backwards)
    assert (result.forwards, result.backwards) == (7 * forwards, 7 * backwards)


def test_frozen_keeps_batch_statistics_and_restores_after_an_error(pixels: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 1), nn.Flatten(0))
    model[2].bias.requires_grad_(False)
    with frozen(model):
        PGD(EPSILON, EPSILON, 2)(
            {"pixel_values": pixels(6, 3, 4, 4)}, lambda batch: model(batch["pixel_values"])
        )
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_mean, torch.zeros(48))
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, False]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_example_alone_gives_what_it_gives_in_a_batch(rule: str, norm: str, toy_classifier: Any) -> None:
    # In double precision: rounding in single precision turns signs of gradients that are nearly zero.
    toy = toy_classifier()
    toy.network.double()
    batch = {"pixel_values": toy.batch["pixel_values"][:5].double(), "labels": toy.labels[:5]}
    attack = PGD(0.03, 0.02, 4, rule, norm=norm)  # type: ignore[arg-type]
    together = attack(batch, toy.cross_entropy).batch["pixel_values"]
    backwards = {name: values.flip(0) for name, values in batch.items()}
    torch.testing.assert_close(
        attack(backwards, toy.cross_entropy).batch["pixel_values"].flip(0), together, atol=1e-9, rtol=0
    )
    for row in range(5):
        alone = attack({name: values[row : row + 1] for name, values in batch.items()}, toy.cross_entropy)
        torch.testing.assert_close(alone.batch["pixel_values"][0], together[row], atol=1e-9, rtol=0)


def test_the_last_iterate_is_kept_unscored(pixels: Any, counted_pixels: Any) -> None:
    """The objective peaks 0.02 above the clean pixels; steps of 0.03 overshoot and turn back."""
    clean = 0.5 * pixels(4, 3, 5, 5)

    def peak(batch: dict[str, Any]) -> Tensor:
        return -((batch["pixel_values"] - clean) / 2 - 0.02).square().flatten(1).sum(dim=1)

    for num_steps, moved in ((1, 0.03), (2, 0.0), (3, 0.03)):
        last = PGD(0.1, 0.03, num_steps, keep="last")({"pixel_values": clean}, peak)
        torch.testing.assert_close(last.batch["pixel_values"], clean + 2 * moved, atol=1e-6, rtol=0)
        torch.testing.assert_close(last.loss_before, peak({"pixel_values": clean}))
        assert last.loss_after.isnan().all()
        best = PGD(0.1, 0.03, num_steps)({"pixel_values": clean}, peak)
        torch.testing.assert_close(best.batch["pixel_values"], clean + 0.06, atol=1e-6, rtol=0)

    for random_start in (False, True):
        counted_pixels.forwards = counted_pixels.backwards = 0
        attack = PGD(0.1, 0.05, 3, random_start=random_start, keep="last")
        result = attack({"pixel_values": clean}, counted_pixels)
        assert (counted_pixels.forwards, counted_pixels.backwards) == (12, 12)
        assert (result.forwards, result.backwards) == (12, 12)
        assert result.loss_before.isnan().all() == random_start
        assert ((result.batch["pixel_values"] - clean).abs() / 2 <= 0.1).all()
        assert not torch.equal(result.batch["pixel_values"], clean)


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
    euclidean = PGD.preset("standard", norm="l2")
    assert (euclidean.epsilon, euclidean.step_size, euclidean.gradient) == (3.0, 0.75, "l2")
    assert str(euclidean.threat_model).startswith("white-box attack on image: l2 epsilon 3")
    for norm, rule in (("linf", "sign"), ("l2", "l2")):
        fgsm = PGD.preset("fgsm", epsilon=0.1, norm=norm)
        assert (fgsm.epsilon, fgsm.step_size, fgsm.num_steps) == (0.1, 0.1, 1)
        assert (fgsm.gradient, fgsm.random_start, fgsm.norm) == (rule, False, norm)
    with pytest.raises(ValueError, match="no PGD preset 'fast'; choose 'thesis', 'standard' or 'fgsm'"):
        PGD.preset("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'thesis' is in norm 'linf', not 'l2'; use 'standard'"):
        PGD.preset("thesis", norm="l2")


@pytest.mark.parametrize("name", ["thesis", "standard", "fgsm"])
def test_presets_of_radius_zero_are_the_identity(name: str, pixels: Any, counted_pixels: Any) -> None:
    clean = pixels(3, 3, 4, 4)
    result = PGD.preset(name, epsilon=0.0)({"pixel_values": clean}, counted_pixels)
    assert torch.equal(result.batch["pixel_values"], clean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size is 0.0; expected a positive length"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"gradient": "l1"}, "gradient is 'l1'; expected one of sign, l2, linf"),
        ({"restarts": 0}, "restarts is 0"),
        ({"restarts": 2}, "exactly 1 without a random start"),
        ({"keep": "first"}, "keep is 'first'; expected one of best, last"),
        (
            {"keep": "last", "restarts": 2, "random_start": True},
            "restarts is 2 with keep='last'; expected 1, because restarts are compared by the objective",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**{"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, **options})
