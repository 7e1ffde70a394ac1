from typing import Any

import pytest
import torch

from rmcl_hub.attacks.noise import RandomNoise


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_l_infinity_noise_is_a_random_corner_of_the_ball(pixels: Any, counted_pixels: Any) -> None:
    clean = 0.5 * pixels(8, 2, 3, 10, 10)  # no limit of the valid range within reach
    noise = (RandomNoise(0.1)({"pixel_values": clean}, counted_pixels).batch["pixel_values"] - clean) / 2
    torch.testing.assert_close(noise.abs(), torch.full_like(noise, 0.1))
    assert 0.47 < (noise > 0).float().mean() < 0.53
    for dim in range(5):  # another sign at every place of every example
        assert (noise > 0).float().mean(dim=dim).unique().numel() > 2


def test_l2_noise_is_a_random_direction_of_full_length(pixels: Any, counted_pixels: Any) -> None:
    clean = 0.5 * pixels(40, 2, 3, 10, 10)
    attack = RandomNoise(0.5, norm="l2")
    noise = (attack({"pixel_values": clean}, counted_pixels).batch["pixel_values"] - clean) / 2
    flat = noise.flatten(1)
    torch.testing.assert_close(flat.norm(dim=1), torch.full((40,), 0.5))
    assert (flat.mean() * 600**0.5 / 0.5).abs() < 0.05
    cosines = (flat @ flat.T / 0.25)[torch.triu(torch.ones(40, 40), diagonal=1) == 1]
    assert cosines.abs().max() < 5 / 600**0.5  # directions of different examples are unrelated
    kurtosis = (flat**4).mean() / (flat**2).mean() ** 2
    assert kurtosis == pytest.approx(3, abs=0.2)  # normal, as every direction being as likely makes it


def test_nothing_is_selected(pixels: Any) -> None:
    batch = {"pixel_values": 0.5 * pixels(4, 3, 8, 8)}

    def objective(batch: dict[str, Any]) -> torch.Tensor:  # the clean image is the best one
        return -(batch["pixel_values"] - 0.5 * pixels(4, 3, 8, 8)).abs().flatten(1).amax(dim=1)

    result = RandomNoise(0.1)(batch, objective)
    assert torch.equal(result.loss_before, torch.zeros(4))
    torch.testing.assert_close(result.loss_after, torch.full((4,), -0.2))
    assert torch.equal(result.loss_after, objective(result.batch))


def test_noise_ignores_image_and_objective(pixels: Any, linear_pixels: Any, counted_pixels: Any) -> None:
    assert RandomNoise(0.1).threat_model.access == "black-box"
    first = RandomNoise(0.1, generator=seeded(3))({"pixel_values": 0.5 * pixels(3, 3, 4, 4)}, counted_pixels)
    objective = linear_pixels(torch.randn(3, 4, 4, generator=seeded(1)))
    other = RandomNoise(0.1, generator=seeded(3))({"pixel_values": torch.zeros(3, 3, 4, 4)}, objective)
    noise = first.batch["pixel_values"] - 0.5 * pixels(3, 3, 4, 4)
    torch.testing.assert_close(other.batch["pixel_values"], noise)
    attack = RandomNoise(0.1)
    again = [attack({"pixel_values": torch.zeros(3, 3, 4, 4)}, objective).batch["pixel_values"] for _ in "ab"]
    assert not torch.equal(*again)  # the attack's own generator moves on


def test_work_is_what_the_formula_says(pixels: Any, counted_pixels: Any) -> None:
    result = RandomNoise(0.1)({"pixel_values": pixels(7, 3, 4, 4)}, counted_pixels)
    assert (result.forwards, result.backwards) == (14, 0)
    assert (counted_pixels.forwards, counted_pixels.backwards) == (14, 0)
