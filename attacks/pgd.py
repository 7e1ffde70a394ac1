"""Projected gradient descent on pixels: the image half of RMCL's inner maximisation."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch

from .pixel_ball import Direction, PixelAttack, Search, direction
from .threat_model import Norm

Iterate: TypeAlias = Literal["best", "last"]


class PGD(PixelAttack):
    r"""Instance-wise PGD in pixel space (Madry et al., arXiv:1706.06083; RMCL thesis, eq. 2.12).

    Starting from the clean image (or a random point of the ball), repeat `x <- project(x + step_size *
    direction(gradient of the objective))`, where `project` is onto the ball of radius `epsilon` around the
    clean image and the valid pixel range. The iterate with the largest objective is kept for every example;
    the clean image counts as an iterate, so `loss_after >= loss_before` always. Or the last one, as in the
    thesis's Algorithm 1, unscored: for training, which sends it forward anyway. One step of length epsilon
    from the clean image is FGSM (Goodfellow et al., arXiv:1412.6572).

    Distance measure: L-infinity or L2, in [0, 1] pixel units. White box. Padding (`pixel_mask == 0`) is never
    touched. Examples do not influence each other; but a random start depends on the example's place in the
    batch.

    Cost in example rows, for a batch of B: `restarts * (num_steps + 1) * B` forwards and `restarts *
    num_steps * B` backwards. The extra forward per restart scores the last iterate. A random start costs B
    forwards more, for `loss_before`; from the clean image that is the first step's own forward, which other
    attacks can share, see `CleanPass`. To keep the last iterate costs `num_steps * B` forwards and backwards,
    wherever it starts. `epsilon = 0` costs B forwards.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        step_size: Length of one step (alpha) in the same units, in the norm of `gradient`.
        num_steps: Number of gradient steps.
        gradient: `"sign"` (thesis, Algorithm 1), `"l2"`: gradient over its L2 norm (thesis, eq. 2.12),
            `"linf"`: gradient over its largest magnitude (the author's code). The norm is taken per example,
            over all its images. None is steepest ascent in `norm`: sign for L-infinity, l2 for L2.
        random_start: Start from a uniformly random point of the ball instead of the clean image.
        restarts: Number of random starts; the best iterate of all of them is kept.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of the random starts, see `PixelAttack`.
        norm: `"linf"` or `"l2"`, the norm that epsilon bounds.
        keep: `"best"` iterate, or the `"last"`, whose objective is not computed: `loss_after` is NaN, and
            after a random start `loss_before`, too.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        As in `PixelAttack`.

    Examples:
        >>> batch = {"pixel_values": torch.zeros(1, 3, 2, 2)}
        >>> attack = PGD(epsilon=0.1, step_size=0.1, num_steps=1)
        >>> result = attack(batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
        >>> result.batch["pixel_values"].unique()  # 0.1 in [0, 1] pixels is 0.2 in the normalised space
        tensor([0.2000])
    """

    def __init__(
        self,
        epsilon: float,
        step_size: float,
        num_steps: int,
        gradient: Direction | None = None,
        random_start: bool = False,
        restarts: int = 1,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        generator: torch.Generator | None = None,
        norm: Norm = "linf",
        keep: Iterate = "best",
    ) -> None:
        super().__init__(epsilon, norm, image_mean, image_std, generator)
        if not step_size > 0:
            raise ValueError(f"step_size is {step_size}; expected a positive length in [0, 1] pixel units.")
        if num_steps < 1:
            raise ValueError(
                f"num_steps is {num_steps}; expected at least 1 (epsilon=0 gives the clean images)."
            )
        if gradient not in (None, *get_args(Direction)):
            raise ValueError(f"gradient is {gradient!r}; expected one of {', '.join(get_args(Direction))}.")
        if restarts < 1 or (restarts > 1 and not random_start):
            raise ValueError(
                f"restarts is {restarts} with random_start={random_start}; expected at least 1, and exactly "
                "1 without a random start, because every restart would be the same."
            )
        if keep not in get_args(Iterate):
            raise ValueError(f"keep is {keep!r}; expected one of {', '.join(get_args(Iterate))}.")
        if keep == "last" and restarts > 1:
            raise ValueError(
                f"restarts is {restarts} with keep='last'; expected 1, because restarts are compared by the "
                "objective, which is not computed."
            )
        self.step_size = step_size
        self.num_steps = num_steps
        self.gradient: Direction = gradient or ("sign" if norm == "linf" else "l2")
        self.random_start = random_start
        self.restarts = restarts
        self.keep: Iterate = keep

    @classmethod
    def preset(
        cls,
        name: Literal["thesis", "standard", "fgsm"],
        epsilon: float | None = None,
        norm: Norm = "linf",
        **settings: Any,
    ) -> "PGD":
        """A named configuration, at its own radius or at `epsilon`; `settings` are `image_mean`, `image_std`
        and `generator`.

        `"thesis"`: the published tables' attack: five steps from the clean image, `linf` gradients, epsilon
        0.0025 and alpha = 10 epsilon. (The thesis prints 0.005 and 0.05, which are in the normalised space
        [-1, 1]. The author's code adds the last step twice, so its published figures are for up to twice this
        radius; that is not copied.) `"standard"`: what the robustness literature runs: ten steps of epsilon /
        4 along the steepest ascent of the norm from a random start, 4/255, or 3 in L2. `"fgsm"`: one step of
        length epsilon from the clean image, at the same radii.

        Raises:
            ValueError: If there is no preset of that name, or not in that norm.
        """
        if name == "thesis":
            if norm != "linf":
                raise ValueError(f"The PGD preset 'thesis' is in norm 'linf', not {norm!r}; use 'standard'.")
            epsilon = 0.0025 if epsilon is None else epsilon
            return cls(epsilon, step_size=10 * epsilon or 1.0, num_steps=5, gradient="linf", **settings)
        if epsilon is None:
            epsilon = 4 / 255 if norm == "linf" else 3.0
        if name == "standard":
            step_size = epsilon / 4 or 1.0
            return cls(epsilon, step_size, num_steps=10, random_start=True, norm=norm, **settings)
        if name == "fgsm":
            return cls(epsilon, step_size=epsilon or 1.0, num_steps=1, norm=norm, **settings)
        raise ValueError(f"There is no PGD preset {name!r}; choose 'thesis', 'standard' or 'fgsm'.")

    def _run(self, search: Search) -> None:
        ball = search.ball
        if self.random_start and self.keep == "best":
            # Not taken from a shared pass: the published experiments' control trains for as many passes as
            # RMCL spends, these included.
            search.score(ball.clean)
        for _ in range(self.restarts):
            pixels = ball.random_point(self.generator) if self.random_start else ball.clean
            for _ in range(self.num_steps):
                _, gradient = search.differentiate(pixels)
                pixels = ball.step(pixels, self.step_size * direction(gradient, self.gradient))
            if self.keep == "last":
                search.leave_unscored(pixels, clean_scored=not self.random_start)
            else:
                search.score(pixels)
