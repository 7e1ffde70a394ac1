import math
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor

from rmcl_hub.attacks.square import SquareAttack, share_halved

BOTH_NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Reference:
    """The paper's algorithms in loops, one example at a time, with the random numbers of the attack.

    Images are `(images, channels, height, width)` in [0, 1], all of them real.
    """

    def __init__(
        self, epsilon: float, norm: str, queries: int, p_init: float, row: int, shape: tuple
    ) -> None:
        self.epsilon, self.norm, self.queries, self.p_init, self.row = epsilon, norm, queries, p_init, row
        self.batch, self.images, self.channels, self.height, self.width = shape
        self.generator = seeded(0)

    def draw(self, *shape: int) -> np.ndarray:
        return torch.rand(self.batch, *shape, generator=self.generator, dtype=torch.float64)[self.row].numpy()

    def run(self, clean: np.ndarray, value: Any) -> tuple[np.ndarray, float]:
        best = self.stripes(clean) if self.norm == "linf" else self.bumps(clean)
        best_value = value(best)
        for query in range(1, self.queries):
            p = self.p_init
            for halving in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
                if math.floor((query - 1) / self.queries * 10000 + 1e-9) > halving:
                    p /= 2
            side = round(math.sqrt(p * self.height * self.width))
            tried = (self.square if self.norm == "linf" else self.window)(clean, best, side)
            if value(tried) > best_value:
                best, best_value = tried, value(tried)
        return best, best_value

    def place(self, side: int) -> tuple[int, int, int]:
        image, top, left = self.draw(3)
        return (
            int(image * self.images),
            int(top * (self.height - side + 1)),
            int(left * (self.width - side + 1)),
        )

    def stripes(self, clean: np.ndarray) -> np.ndarray:
        sign = np.where(self.draw(self.images, self.channels, 1, self.width) < 0.5, -1, 1)
        return (clean + self.epsilon * sign).clip(0, 1)

    def square(self, clean: np.ndarray, best: np.ndarray, side: int) -> np.ndarray:
        side = min(max(side, 1), self.height, self.width)
        image, top, left = self.place(side)
        colour = np.where(self.draw(1, self.channels, 1, 1)[0] < 0.5, -2 * self.epsilon, 2 * self.epsilon)
        tried = best.copy()
        tried[image, :, top : top + side, left : left + side] += colour
        return tried.clip(clean - self.epsilon, clean + self.epsilon).clip(0, 1)

    @staticmethod
    def eta(side: int) -> np.ndarray:
        """Equation 2, not transposed."""

        def peak(rows: int, columns: int) -> np.ndarray:
            values, n = np.zeros((rows, columns)), max(rows, columns) // 2
            for r in range(1, rows + 1):
                for s in range(1, columns + 1):
                    m = n - max(abs(r - rows // 2 - 1), abs(s - columns // 2 - 1))
                    values[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
            return values / (np.linalg.norm(values) or 1)

        both = np.concatenate([peak(side // 2, side), -peak(side - side // 2, side)])
        return both / np.linalg.norm(both)

    def longest(self, clean: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return (clean + self.epsilon * delta / np.linalg.norm(delta)).clip(0, 1)

    def bumps(self, clean: np.ndarray) -> np.ndarray:
        flipped = self.draw(self.images, 1, self.height, self.width) < 0.5
        sign = np.where(self.draw(self.images, self.channels, self.height, self.width) < 0.5, -1, 1)
        delta, side = np.zeros_like(clean), max(min(self.height, self.width) // 5, 1)
        first_row, first_column = self.height % side // 2, self.width % side // 2
        for image in range(self.images):
            for i in range(self.height // side):
                for j in range(self.width // side):
                    bump = self.eta(side).T if flipped[image, 0, i, j] else self.eta(side)
                    for channel in range(self.channels):
                        delta[image, channel][
                            first_row + i * side : first_row + (i + 1) * side,
                            first_column + j * side : first_column + (j + 1) * side,
                        ] = bump * sign[image, channel, i, j]
        return self.longest(clean, delta)

    def window(self, clean: np.ndarray, best: np.ndarray, side: int) -> np.ndarray:
        side = max(side, 3)
        side = min(side + 1 - side % 2, self.height, self.width)
        image, top, left = self.place(side)
        image_2, top_2, left_2 = self.place(side)
        sign = np.where(self.draw(1, self.channels, 1, 1)[0, :, 0, 0] < 0.5, -1, 1)
        bump = self.eta(side).T if self.draw(1, 1, 1, 1)[0, 0, 0, 0] < 0.5 else self.eta(side)
        delta, either = best - clean, np.zeros_like(clean)
        either[image, :, top : top + side, left : left + side] = 1
        either[image_2, :, top_2 : top_2 + side, left_2 : left_2 + side] = 1
        unused = max(self.epsilon**2 - np.sum(delta**2), 0)
        new = []
        for channel in range(self.channels):
            old = delta[image, channel, top : top + side, left : left + side]
            shape = sign[channel] * bump + old / (np.linalg.norm(old) or 1)
            available = np.sqrt(np.sum((delta * either)[:, channel] ** 2) + unused / self.channels)
            new.append(shape / np.linalg.norm(shape) * available)
        delta[image_2, :, top_2 : top_2 + side, left_2 : left_2 + side] = 0
        delta[image, :, top : top + side, left : left + side] = np.stack(new)
        return self.longest(clean, delta)


@BOTH_NORMS
@pytest.mark.parametrize(
    ("images", "height", "width", "queries"),
    [(1, 11, 11, 150), (2, 10, 13, 60), (1, 16, 6, 60), (1, 2, 2, 20)],
)
def test_is_the_papers_algorithm(norm: str, images: int, height: int, width: int, queries: int) -> None:
    shape = (3, images, 3, height, width)
    epsilon = 0.2 if norm == "linf" else 0.7
    clean = torch.rand(shape, generator=seeded(1), dtype=torch.float64)
    weight = torch.randn(shape[1:], generator=seeded(2), dtype=torch.float64)

    def objective(batch: dict[str, Any]) -> Tensor:
        return torch.sin(6 * (batch["pixel_values"] / 2 + 0.5) * weight).flatten(1).sum(dim=1)

    attack = SquareAttack(epsilon, queries, norm, p_init=0.6)  # type: ignore[arg-type]
    result = attack({"pixel_values": clean * 2 - 1}, objective)

    def value(raw: np.ndarray) -> float:
        return float(np.sin(6 * raw * weight.numpy()).sum())

    for row in range(3):
        reference = Reference(epsilon, norm, queries, 0.6, row, shape)
        best, best_value = reference.run(clean[row].numpy(), value)
        assert result.loss_after[row].item() == pytest.approx(best_value, abs=1e-5)
        np.testing.assert_allclose(result.batch["pixel_values"][row] / 2 + 0.5, best, atol=1e-5)
        assert best_value > value(clean[row].numpy())


def test_squares_shrink_as_published() -> None:
    halvings = [
        query for query in range(1, 10_000) if share_halved(query, 10_000) < share_halved(query - 1, 10_000)
    ]
    assert halvings == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert share_halved(9999, 10_000) == 2**-9
    assert [share_halved(query, 5000) for query in (0, 5, 6, 25, 26, 4001)] == [1, 1, 0.5, 0.5, 0.25, 2**-9]


def test_l_infinity_solves_a_linear_objective_also_where_the_box_binds(
    pixels: Any, linear_pixels: Any
) -> None:
    clean = pixels(4, 2, 3, 2, 2)
    weight = torch.randn(2, 3, 2, 2, generator=seeded(1))
    result = SquareAttack(0.2, 800)({"pixel_values": clean}, linear_pixels(weight))
    expected = (clean + 0.4 * weight.sign()).clamp(-1, 1)
    torch.testing.assert_close(result.batch["pixel_values"], expected, atol=1e-6, rtol=0)
    assert ((expected.abs() == 1).float().mean()) > 0.1


def test_agrees_with_torchattacks(toy_classifier: Any) -> None:
    """torchattacks, like AutoAttack's code, draws one square for the whole batch and never reaches the last
    row and column, which the network of this size does not see.
    """
    toy = toy_classifier(size=6)
    theirs = torchattacks.Square(toy.network, "Linf", 0.02, n_queries=600)
    expected = toy.fooled(theirs(toy.raw, toy.labels))
    result = SquareAttack(0.02, 600, stop_at=0.0)(toy.batch, toy.margin)
    ours = toy.fooled(result.batch["pixel_values"] / 2 + 0.5)
    assert torch.equal(ours, result.loss_after > 0)
    assert (ours != expected).sum() <= 1
    assert 0.2 < ours.float().mean() < 0.9


def test_l2_is_as_good_as_torchattacks(toy_classifier: Any) -> None:
    """Two random searches, neither of which has converged after so few queries: only their sums agree."""
    toy = toy_classifier(size=8)
    theirs = torchattacks.Square(toy.network, "L2", 0.2, n_queries=100)
    expected = toy.fooled(theirs(toy.raw, toy.labels))
    result = SquareAttack(0.2, 100, "l2", stop_at=0.0)(toy.batch, toy.margin)
    ours = toy.fooled(result.batch["pixel_values"] / 2 + 0.5)
    assert ours.sum() >= expected.sum() - 4
    assert 0.2 < ours.float().mean() < 0.9


@BOTH_NORMS
def test_padding_wastes_no_query(norm: str, pixels: Any) -> None:
    clean = torch.full((2, 2, 3, 12, 14), 3.0)
    mask = torch.zeros(2, 2, 12, 14, dtype=torch.long)
    sizes = {(0, 0): (12, 14), (0, 1): (5, 6), (1, 0): (1, 3), (1, 1): (9, 4)}
    for (row, image), (height, width) in sizes.items():
        mask[row, image, :height, :width] = 1
        clean[row, image, :, :height, :width] = 0.3 * pixels(3, height, width)
    seen: list[Tensor] = []

    def objective(batch: dict[str, Any]) -> Tensor:  # always better: every square stays
        seen.append(batch["pixel_values"].clone())
        return torch.full((2,), float(len(seen)))

    SquareAttack(0.1, 150, norm)({"pixel_values": clean, "pixel_mask": mask}, objective)  # type: ignore[arg-type]

    real = mask.bool().unsqueeze(2)
    changed = torch.stack(seen[2:]) != torch.stack(seen[1:-1])
    assert not changed.masked_fill(real, False).any()
    # Now and then a square finds every sign as it is, most often where it has a single pixel.
    assert (changed.flatten(2).any(dim=2).float().mean(dim=0) > 0.75).all()
    reached = changed.any(dim=0).any(dim=2)  # (batch, images, height, width)
    for (row, image), (height, width) in sizes.items():
        assert reached[row, image, height - 1].any()
        assert reached[row, image, :, width - 1].any()
    first = (seen[1] - clean)[0, 0]
    if norm == "linf":
        assert torch.equal(first.sign(), first[:, :1].sign().expand_as(first))  # vertical stripes
        torch.testing.assert_close(first.abs(), torch.full_like(first, 0.2))
    else:
        size = ((seen[-1] - clean) / 2).flatten(1).norm(dim=1)
        torch.testing.assert_close(size, torch.full_like(size, 0.1))


def test_finished_examples_drop_out_and_change_nothing_for_the_others(toy_classifier: Any) -> None:
    toy = toy_classifier(size=6)
    batch = {**{name: values[:40] for name, values in toy.batch.items()}, "text": list(map(str, range(40)))}
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:3] = (batch["labels"][:3] + 1) % 4  # wrong from the start
    seen: list[list[str]] = []
    finished: set[str] = set()

    def objective(batch: dict[str, Any]) -> Tensor:
        assert len(batch["labels"]) == len(batch["pixel_values"]) == len(batch["text"])
        assert finished.isdisjoint(batch["text"])
        loss = toy.margin(batch)
        seen.append(batch["text"])
        finished.update(name for name, value in zip(batch["text"], loss, strict=True) if value > 0)
        return loss

    full = SquareAttack(0.02, 100)(batch, toy.margin)
    result = SquareAttack(0.02, 100, stop_at=0.0)(batch, objective)

    unfinished = result.loss_after <= 0
    assert 5 < unfinished.sum() < 35
    assert torch.equal(result.batch["pixel_values"][unfinished], full.batch["pixel_values"][unfinished])
    assert torch.equal(result.loss_after[unfinished], full.loss_after[unfinished])
    assert torch.equal(result.loss_after, toy.margin(result.batch))
    assert torch.equal(unfinished, full.loss_after <= 0)  # who is beaten in the end is beaten at once
    assert torch.equal(result.batch["pixel_values"][:3], batch["pixel_values"][:3])
    for example in range(40):
        queries = sum(str(example) in texts for texts in seen)
        assert queries == 1 if example < 3 else queries >= 2
        if unfinished[example]:
            assert queries == 101
    assert result.forwards == sum(len(texts) for texts in seen) < full.forwards == 40 * 101
    assert result.backwards == 0
    everyone = SquareAttack(0.02, 100, stop_at=-100.0)(batch, toy.margin)
    assert everyone.forwards == 40
    assert torch.equal(everyone.batch["pixel_values"], batch["pixel_values"])


@BOTH_NORMS
def test_needs_no_gradients_and_accepts_only_what_is_better(norm: str, pixels: Any) -> None:
    batch = {"pixel_values": pixels(5, 3, 8, 8)}
    weight = torch.randn(3, 8, 8, generator=seeded(1))
    tried: list[Tensor] = []

    def objective(batch: dict[str, Any]) -> Tensor:
        assert not torch.is_grad_enabled()
        tried.append((batch["pixel_values"] * weight).flatten(1).sum(dim=1).round())  # flat almost everywhere
        return tried[-1]

    result = SquareAttack(0.1 if norm == "linf" else 1.0, 80, norm)(batch, objective)  # type: ignore[arg-type]
    assert torch.equal(result.loss_after, torch.stack(tried).amax(dim=0))
    assert (result.loss_after > result.loss_before).all()
    assert torch.equal(result.loss_before, tried[0])


@pytest.mark.parametrize("max_queries", [1, 2, 30])
@BOTH_NORMS
def test_work_is_what_the_formula_says(max_queries: int, norm: str, pixels: Any, counted_pixels: Any) -> None:
    attack = SquareAttack(0.1, max_queries, norm)  # type: ignore[arg-type]
    result = attack({"pixel_values": pixels(7, 3, 4, 4)}, counted_pixels)
    assert (result.forwards, result.backwards) == (7 * (1 + max_queries), 0)
    assert (counted_pixels.forwards, counted_pixels.backwards) == (7 * (1 + max_queries), 0)


def test_numbers_follow_the_generator(pixels: Any, linear_pixels: Any) -> None:
    batch = {"pixel_values": pixels(3, 3, 8, 8)}
    objective = linear_pixels(torch.randn(3, 8, 8, generator=seeded(1)))
    once, again, other = (
        SquareAttack(0.1, 20, generator=seeded(seed))(batch, objective).batch["pixel_values"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queries": 0}, "max_queries is 0; expected at least 1"),
        ({"p_init": 0.0}, r"p_init is 0.0; expected a share of pixels, in \(0, 1\]"),
        ({"p_init": 1.1}, r"p_init is 1.1; expected a share of pixels, in \(0, 1\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SquareAttack(0.1, **options)
