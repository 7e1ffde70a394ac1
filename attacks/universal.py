"""One perturbation for many images."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from .pixel_ball import PixelAttack, Search, direction
from .threat_model import Norm


class UniversalPerturbation(PixelAttack):
    """Gradient ascent on one perturbation that all examples of the batch share.

    Starting from zero, repeat `delta <- project(delta + step_size * direction(mean gradient))`, and keep the
    perturbation with the largest mean objective over the batch (projected gradient ascent, as in Shafahi et
    al., arXiv:1811.11304). Each example gets it clipped to its valid range. The zero perturbation counts, so
    the mean of `loss_after` is at least that of `loss_before`; but for a single example it may be below,
    because one perturbation serves all and nobody chooses between it and the clean image.

    Examples influence each other: that is the point. A figure holds for the batch that the perturbation was
    computed on, and the larger the batch, the weaker the attack. An objective that is not a number for one
    example never wins.

    Distance measure: L-infinity or L2 of the perturbation, in [0, 1] pixel units. White box. Padding
    (`pixel_mask == 0`) is never touched. All images of the batch share one size.

    Cost in example rows, for a batch of B: `(num_steps + 1) * B` forwards and `num_steps * B` backwards.
    `epsilon = 0` costs B forwards.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        num_steps: Number of gradient steps.
        step_size: Length of one step in the same units and in `norm`; None is epsilon / 4.
        norm: `"linf"` (sign steps) or `"l2"`, the norm that epsilon bounds.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        As in `PixelAttack`.

    Examples:
        >>> batch = {"pixel_values": torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1)}
        >>> attack = UniversalPerturbation(epsilon=0.1, num_steps=4)
        >>> result = attack(batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
        >>> result.batch["pixel_values"].flatten()
        tensor([0.2000, 0.7000])
    """

    knowledge: ClassVar[str] = "one perturbation for the whole batch"

    def __init__(
        self,
        epsilon: float,
        num_steps: int = 20,
        step_size: float | None = None,
        norm: Norm = "linf",
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__(epsilon, norm, image_mean, image_std)
        if num_steps < 1:
            raise ValueError(
                f"num_steps is {num_steps}; expected at least 1 (epsilon=0 gives the clean images)."
            )
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size is {step_size}; expected a positive length in [0, 1] pixel units.")
        self.num_steps = num_steps
        self.step_size = epsilon / 4 if step_size is None else step_size

    def _run(self, search: Search) -> None:
        ball = search.ball
        delta = torch.zeros_like(ball.clean[:1])  # (1, ..., channels, height, width), in [0, 1] pixel units
        pixels = ball.clean
        best, best_loss = pixels, torch.empty(0)
        for step in range(self.num_steps + 1):
            if step < self.num_steps:
                loss, gradient = search.differentiate(pixels)
            else:
                loss, gradient = search.score(pixels), None
            if step == 0 or loss.mean() > best_loss.mean():
                best, best_loss = pixels, loss
            if gradient is not None:
                rule = "sign" if self.norm == "linf" else "l2"
                ascent = direction(gradient.mean(dim=0, keepdim=True), rule)
                delta = self._shrunk(delta + self.step_size * ascent)
                pixels = ball.step(ball.clean, delta)
        search.impose(best, best_loss)

    def _shrunk(self, delta: torch.Tensor) -> torch.Tensor:
        """The perturbation within the radius."""
        if self.norm == "linf":
            return delta.clamp(-self.epsilon, self.epsilon)
        norm = torch.linalg.vector_norm(delta)
        return delta * (self.epsilon / norm.clamp(min=self.epsilon))
