"""Square attack: random search with square-shaped changes, which needs no gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .base import select_rows
from .pixel_ball import PixelAttack, PixelBall, Search, direction, nonzero, per_example
from .threat_model import Access, Norm

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the share of changed pixels is halved (paper, section 5)."""


class SquareAttack(PixelAttack):
    r"""Random search that changes one square at a time (Andriushchenko et al., arXiv:1912.00049).

    L-infinity: from vertical stripes, every query sets one square of one image to plus or minus `epsilon`, a
    random sign per channel (Algorithms 1 and 2). L2: from a grid of bumps, every query moves the perturbation
    of one window into another one and adds a bump there (Algorithms 1 and 3). A change stays if it makes the
    objective larger. The side of the square shrinks with the queries.

    The result is the best point of that search or the clean image, so `loss_after >= loss_before` always.

    Distance measure: L-infinity or L2, in [0, 1] pixel units. Black box: only the objective's values are
    used. Padding (`pixel_mask == 0`) is never touched, and no square is wasted on what lies below or to the
    right of the last real pixel. Examples do not influence each other; but the random numbers depend on the
    example's place in the batch. Whether other examples have finished makes no difference.

    Cost in example rows, for a batch of B: `(1 + max_queries) * B` forwards, no backwards; less by the
    queries that an example does not need after `stop_at`. `epsilon = 0` costs B forwards.

    Note:
        As in the paper, every example draws its own square, and every place is as likely (AutoAttack's
        code draws one square for the whole batch, and never at the last place). The L2 norm available in a
        window is counted per channel, as in the paper (AutoAttack: over all channels).

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        max_queries: Points of the ball tried per example, the first included.
        norm: `"linf"` or `"l2"`, the norm that epsilon bounds.
        p_init: Share of an image's pixels that the first squares cover, in (0, 1].
        stop_at: An example whose objective exceeds this is finished: 0 with a margin, which is positive where
            the model errs. None: search on.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of the squares, see `PixelAttack`.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        As in `PixelAttack`.

    Examples:
        >>> batch = {"pixel_values": torch.zeros(1, 3, 8, 8)}
        >>> attack = SquareAttack(epsilon=0.1, max_queries=500)
        >>> result = attack(batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
        >>> result.loss_after > result.loss_before, result.forwards
        (tensor([True]), 501)
    """

    access: ClassVar[Access] = "black-box"

    def __init__(
        self,
        epsilon: float,
        max_queries: int = 5000,
        norm: Norm = "linf",
        p_init: float = 0.8,
        stop_at: float | None = None,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(epsilon, norm, image_mean, image_std, generator)
        if max_queries < 1:
            raise ValueError(f"max_queries is {max_queries}; expected at least 1.")
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init is {p_init}; expected a share of pixels, in (0, 1].")
        self.max_queries = max_queries
        self.p_init = p_init
        self.stop_at = torch.inf if stop_at is None else stop_at

    def _run(self, search: Search) -> None:
        ball, batch = search.ball, search.batch
        loss = torch.full_like(search.score(ball.clean), -torch.inf)  # the search starts at its first query
        found, found_loss = ball.clean.clone(), loss.clone()
        rows, pixels = torch.arange(len(found), device=found.device), ball.clean  # the examples searched
        finished = search.best_loss > self.stop_at
        canvas = _Canvas(ball)
        for query in tqdm(range(self.max_queries), desc="square attack", leave=False, delay=10):
            if finished.any():
                found[rows], found_loss[rows] = pixels, loss
                going = (~finished).nonzero().squeeze(1)
                if not len(going):
                    break
                rows, pixels, loss = rows[going], pixels[going], loss[going]
                ball, batch = ball.narrowed(going), select_rows(batch, going.tolist())
                canvas = _Canvas(ball)
            tried = self._propose(canvas, pixels, query, partial(self._draw, search.ball, rows))
            tried_loss = search.evaluate(batch, tried)
            better = tried_loss > loss
            pixels = torch.where(per_example(better, pixels), tried, pixels)
            loss = torch.where(better, tried_loss, loss)
            finished = loss > self.stop_at
        found[rows], found_loss[rows] = pixels, loss
        search.keep(found, found_loss)

    def _draw(self, ball: PixelBall, rows: Tensor, *shape: int) -> Tensor:
        """Uniform numbers for the examples in `rows`, the same whether or not others have finished."""
        return ball.draw(self.generator, len(ball.clean), *shape)[rows]

    def _propose(self, canvas: "_Canvas", pixels: Tensor, query: int, draw: Callable[..., Tensor]) -> Tensor:
        if query == 0:
            tried = _stripes(canvas, draw) if self.norm == "linf" else _bumps(canvas, draw)
        else:
            share = self.p_init * share_halved(query - 1, self.max_queries)
            change = _change_square if self.norm == "linf" else _move_window
            tried = change(canvas, canvas.images(pixels), share, draw)
        return tried.reshape(pixels.shape)


def share_halved(query: int, max_queries: int) -> float:
    """Part of `p_init` at a query, counted from zero after the first point: halved at fixed places."""
    scaled = query * 10_000 // max_queries  # the paper's schedule is for 10,000 queries
    return 0.5 ** sum(scaled > halving for halving in HALVINGS)


class _Canvas:
    """The ball, image by image, `(batch, images, channels, height, width)`, and what of an image is real.

    Attributes:
        heights: Rows of each image up to its last real pixel, shape `(batch, images)`.
        widths: Columns, likewise.
    """

    def __init__(self, ball: PixelBall) -> None:
        self.ball = ball
        self.clean, self.lower, self.upper = map(self.images, (ball.clean, ball.lower, ball.upper))
        real = (~self.images(ball.fixed)).any(dim=2)  # (batch, images, height, width)
        self.rows, self.columns = (torch.arange(size, device=real.device) for size in real.shape[2:])
        self.heights = (real.any(dim=3) * (self.rows + 1)).amax(dim=2).clamp(min=1)
        self.widths = (real.any(dim=2) * (self.columns + 1)).amax(dim=2).clamp(min=1)

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels of any attack as `(batch, images, channels, height, width)`."""
        return pixels.reshape(len(pixels), -1, *pixels.shape[-3:])

    def window(self, share: float, numbers: Tensor, odd: bool = False) -> "_Window":
        """A square of `share` of an image's pixels, image and place drawn with numbers in [0, 1), `(batch,
        3)`. `odd`: its side is odd and at least three, where that fits.
        """
        image = _whole(numbers[:, 0], torch.full_like(self.heights[:, 0], self.heights.shape[1]))
        height = self.heights.gather(1, image[:, None]).squeeze(1)  # (batch,)
        width = self.widths.gather(1, image[:, None]).squeeze(1)
        side = (share * height * width).double().sqrt().round().long().clamp(min=3 if odd else 1)
        if odd:
            side += 1 - side % 2
        side = side.minimum(height).minimum(width)
        top, left = _whole(numbers[:, 1], height - side + 1), _whole(numbers[:, 2], width - side + 1)
        shape = (-1, 1, 1, 1, 1)
        row = self.rows.reshape(-1, 1) - top.reshape(shape)  # (batch, 1, 1, height, 1)
        column = self.columns - left.reshape(shape)  # (batch, 1, 1, 1, width)
        side = side.reshape(shape)
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        chosen = torch.arange(self.heights.shape[1], device=image.device) == image[:, None]
        return _Window(inside & chosen[:, :, None, None, None], row, column, side)


@dataclass
class _Window:
    """Squares, one of each example.

    Attributes:
        inside: Which pixels are in it, shape `(batch, images, 1, height, width)`.
        row: Row within the square, which counts from zero, broadcastable to `inside`.
        column: Column within the square, likewise.
        side: Its side, likewise.
    """

    inside: Tensor
    row: Tensor
    column: Tensor
    side: Tensor


def _stripes(canvas: _Canvas, draw: Callable[..., Tensor]) -> Tensor:
    """Vertical stripes of width one."""
    _, images, channels, _, width = canvas.clean.shape
    return torch.where(draw(images, channels, 1, width) < 0.5, canvas.lower, canvas.upper)


def _change_square(canvas: _Canvas, pixels: Tensor, share: float, draw: Callable[..., Tensor]) -> Tensor:
    """One square at the edge of the ball, its sign drawn for every channel (paper, Algorithm 2)."""
    channels = pixels.shape[2]
    window = canvas.window(share, draw(3))
    colour = torch.where(draw(1, channels, 1, 1) < 0.5, canvas.lower, canvas.upper)
    return torch.where(window.inside, colour, pixels)


def _bumps(canvas: _Canvas, draw: Callable[..., Tensor]) -> Tensor:
    """A grid of about five by five bumps on each image (paper, section 4.3)."""
    _, images, channels, height, width = canvas.clean.shape
    heights, widths = (size[..., None, None, None] for size in (canvas.heights, canvas.widths))
    side = (heights.minimum(widths) // 5).clamp(min=1)  # (batch, images, 1, 1, 1)
    row = canvas.rows.reshape(-1, 1) - heights % side // 2  # (batch, images, 1, height, 1)
    column = canvas.columns - widths % side // 2
    inside = (row >= 0) & (row < heights // side * side) & (column >= 0) & (column < widths // side * side)
    tile = (row // side).clamp(0, height - 1) * width + (column // side).clamp(0, width - 1)
    tile = tile.flatten(3)  # (batch, images, 1, height * width): one number for each bump

    def per_tile(numbers: Tensor) -> Tensor:
        values = numbers.flatten(3).gather(3, tile.expand(-1, -1, numbers.shape[2], -1))
        return values.reshape(*numbers.shape)

    flipped = per_tile(draw(images, 1, height, width)) < 0.5
    sign = torch.where(per_tile(draw(images, channels, height, width)) < 0.5, -1.0, 1.0)
    bump = _bump(_Window(inside, row % side, column % side, side), flipped)
    return _at_the_edge(canvas, sign * bump)


def _move_window(canvas: _Canvas, pixels: Tensor, share: float, draw: Callable[..., Tensor]) -> Tensor:
    """Empty one window, and spend its norm and what is unused on a bump in another one (paper, Algorithm
    3).
    """
    channels, epsilon = pixels.shape[2], canvas.ball.epsilon
    delta = (pixels - canvas.clean) * canvas.ball.std
    target = canvas.window(share, draw(3), odd=True)
    source = canvas.window(share, draw(3), odd=True).inside
    sign = torch.where(draw(1, channels, 1, 1) < 0.5, -1.0, 1.0)
    bump = sign * _bump(target, draw(1, 1, 1, 1) < 0.5)

    old = delta * target.inside
    new = bump + old / nonzero(_norm(old))
    unused = (epsilon**2 - delta.square().sum(dim=(1, 2, 3, 4), keepdim=True)).clamp(min=0)
    available = (_norm(delta * (target.inside | source)).square() + unused / channels).sqrt()
    new = new / nonzero(_norm(new)) * available
    return _at_the_edge(canvas, torch.where(target.inside, new, delta.masked_fill(source, 0.0)))


def _bump(window: _Window, flipped: Tensor) -> Tensor:
    """The paper's eta, of L2 norm one: a peak in one half of the square, a valley in the other (eq. 2)."""
    half = window.side // 2
    row = torch.where(flipped, window.column, window.row)
    column = torch.where(flipped, window.row, window.column)
    first = row < half
    height, row = torch.where(first, half, window.side - half), torch.where(first, row, row - half)
    distance = (row - height // 2).abs().maximum((column - half).abs()).minimum(half + 1)
    longest = int(window.side.max()) // 2 + 1
    squares = torch.arange(1, longest + 1, device=row.device, dtype=torch.float64) ** -2
    sums = torch.cat([squares.new_zeros(1), squares.cumsum(dim=0)]).float()  # of 1 / k ** 2 for k <= index
    value = (sums[half + 1] - sums[distance]) * window.inside
    peak, valley = value * first, value * ~first
    return (peak / nonzero(_norm(peak)) - valley / nonzero(_norm(valley))) * 0.5**0.5


def _at_the_edge(canvas: _Canvas, delta: Tensor) -> Tensor:
    """The clean images plus a perturbation in [0, 1] pixel units, made as long as allowed."""
    delta = canvas.ball.epsilon * direction(delta, "l2").reshape(canvas.ball.clean.shape)
    return canvas.ball.step(canvas.ball.clean, delta)


def _norm(images: Tensor) -> Tensor:
    """L2 norm of each channel, over all images of an example."""
    return torch.linalg.vector_norm(images, dim=(1, 3, 4), keepdim=True)


def _whole(numbers: Tensor, bound: Tensor) -> Tensor:
    """Whole numbers below `bound` from numbers in [0, 1), which rounding may not lift to the bound."""
    return (numbers * bound).long().minimum(bound - 1)
