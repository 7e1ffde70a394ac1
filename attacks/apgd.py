"""Auto-PGD: gradient steps with momentum whose length adapts itself to the objective."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .pixel_ball import PixelAttack, PixelBall, Search, direction, per_example
from .threat_model import Norm

MOMENTUM = 0.75  # the paper's alpha


class APGD(PixelAttack):
    r"""Auto-PGD (Croce and Hein, arXiv:2003.01690, Algorithm 1): PGD without a step size to choose.

    From a random point at distance `epsilon`, with momentum 0.75 and a first step of 2 `epsilon`. At the
    checkpoints, 22 %, 41 %, 57 %, ... of the steps, an example gets half the step and goes on from its best
    iterate if its objective rose in fewer than `rho` of the steps since the last checkpoint, or if its best
    objective stands still although its step was not halved there. Any objective will do: a cross entropy, or
    a margin, also of two classes.

    The iterate with the largest objective is kept for every example over all restarts; the clean image counts
    as an iterate, so `loss_after >= loss_before` always.

    Distance measure: L-infinity or L2, in [0, 1] pixel units. White box. Padding (`pixel_mask == 0`) is never
    touched. Examples do not influence each other; but the random start depends on the example's place in the
    batch.

    Cost in example rows, for a batch of B: `(1 + restarts * (num_steps + 1)) * B` forwards and `restarts *
    num_steps * B` backwards. `epsilon = 0` costs B forwards.

    Note:
        AutoAttack's code differs from the paper in four places, in which this class follows the paper: it
        compares the loss of the first iterate with zero and the first one after a return to the best iterate
        with the loss before that return, halves at exactly `rho` too, and never applies the second condition
        at the first checkpoint.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        num_steps: Number of gradient steps.
        norm: `"linf"` or `"l2"`, the norm that epsilon bounds.
        restarts: Number of random starts.
        rho: Share of rising steps below which a step is halved, in [0, 1].
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of the random starts, see `PixelAttack`.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        As in `PixelAttack`.

    Examples:
        >>> batch = {"pixel_values": torch.zeros(1, 3, 2, 2)}
        >>> result = APGD(epsilon=0.1)(batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
        >>> result.batch["pixel_values"].unique()  # 0.1 in [0, 1] pixels is 0.2 in the normalised space
        tensor([0.2000])
    """

    def __init__(
        self,
        epsilon: float,
        num_steps: int = 100,
        norm: Norm = "linf",
        restarts: int = 1,
        rho: float = 0.75,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(epsilon, norm, image_mean, image_std, generator)
        if num_steps < 1:
            raise ValueError(
                f"num_steps is {num_steps}; expected at least 1 (epsilon=0 gives the clean images)."
            )
        if restarts < 1:
            raise ValueError(f"restarts is {restarts}; expected at least 1.")
        if not 0 <= rho <= 1:
            raise ValueError(f"rho is {rho}; expected a share of steps, in [0, 1].")
        self.num_steps = num_steps
        self.restarts = restarts
        self.rho = rho

    def _run(self, search: Search) -> None:
        search.score(search.ball.clean)
        for _ in range(self.restarts):
            self._climb(search, self._start(search.ball))

    def _start(self, ball: PixelBall) -> Tensor:
        """A random point of the ball's surface, clipped to the valid range (as AutoAttack starts)."""
        if self.norm == "l2":
            return ball.step(ball.clean, self.epsilon * ball.sphere(self.generator))
        noise = (2 * ball.draw(self.generator) - 1).masked_fill(ball.fixed, 0.0)
        return ball.step(ball.clean, self.epsilon * direction(noise, "linf"))

    def _climb(self, search: Search, start: Tensor) -> None:
        """One run of Algorithm 1; x, x_max and eta are the paper's names."""
        ball, rule = search.ball, "sign" if self.norm == "linf" else "l2"
        previous = x = x_max = start
        loss, gradient = search.differentiate(x)
        loss_max = torch.where(loss.isnan(), -torch.inf, loss)
        gradient_max = gradient
        eta = torch.full_like(loss, 2 * self.epsilon)  # (batch,)
        rises = torch.zeros_like(loss)  # steps since the last checkpoint on which the objective rose
        loss_max_then, halved = loss_max, torch.zeros_like(loss, dtype=torch.bool)  # at the last checkpoint
        checkpoints = checkpoints_of(self.num_steps)
        last, checkpoint = 0, next(checkpoints)

        for step in range(1, self.num_steps + 1):
            z = ball.step(x, per_example(eta, x) * direction(gradient, rule))
            momentum = MOMENTUM if step > 1 else 1.0  # before the first step there is no last one
            x, previous = ball.project(x + momentum * (z - x) + (1 - momentum) * (x - previous)), x
            if step == self.num_steps:
                search.score(x)
                return
            loss_then = loss
            loss, gradient = search.differentiate(x)
            rises += loss > loss_then
            better = loss > loss_max
            x_max = torch.where(per_example(better, x), x, x_max)
            gradient_max = torch.where(per_example(better, x), gradient, gradient_max)
            loss_max = torch.where(better, loss, loss_max)
            if step == checkpoint:
                stuck = ~halved & ~(loss_max > loss_max_then)
                halved = (rises < self.rho * (checkpoint - last)) | stuck
                eta = torch.where(halved, eta / 2, eta)
                x = torch.where(per_example(halved, x), x_max, x)
                gradient = torch.where(per_example(halved, x), gradient_max, gradient)
                loss = torch.where(halved, loss_max, loss)
                rises, loss_max_then = torch.zeros_like(rises), loss_max
                last, checkpoint = checkpoint, next(checkpoints)


def checkpoints_of(num_steps: int) -> Iterator[int]:
    """The steps after which step sizes are reconsidered (paper, section 3): 22, 41, 57, 70, ... of 100.

    Shares p of the steps grow by p[j+1] - p[j] = max(p[j] - p[j-1] - 0.03, 0.06); steps are rounded up.
    """
    percent, growth = 22, 22  # in integers: no share may miss its step by rounding
    while True:
        yield -(-percent * num_steps // 100)
        growth = max(growth - 3, 6)
        percent += growth
