"""Projected gradient descent on pixels: the image half of RMCL's inner maximisation."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from .base import AttackResult, Batch, Objective, check_losses, isolated_rng
from .threat_model import ThreatModel, check_epsilon

GradientRule: TypeAlias = Literal["sign", "l2", "linf"]


class PGD:
    r"""Instance-wise L-infinity PGD in pixel space (Madry et al., arXiv:1706.06083; RMCL thesis, eq. 2.12).

    Starting from the clean image (or a random point of the ball), repeat `x <- project(x + step_size *
    direction(gradient of the objective))`, where `project` is onto the L-infinity ball of radius `epsilon`
    around the clean image intersected with the valid pixel range. The iterate with the largest objective is
    kept for every example; the clean image counts as an iterate, so `loss_after >= loss_before` always.

    Distance measure: L-infinity, in [0, 1] pixel units. White box. Padding (`pixel_mask == 0`) is never
    touched.

    Cost in example rows, for a batch of B: `restarts * (num_steps + 1) * B` forwards and `restarts *
    num_steps * B` backwards. The extra forward per restart scores the last iterate. A random start costs B
    forwards more, for `loss_before`; from the clean image that is the first step's own forward. `epsilon = 0`
    costs B forwards.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        step_size: Length of one step (alpha) in the same units, in the norm of `gradient`.
        num_steps: Number of gradient steps.
        gradient: `"sign"` (thesis, Algorithm 1), `"l2"`: gradient over its L2 norm (thesis, eq. 2.12),
            `"linf"`: gradient over its largest magnitude (the author's code). The norm is taken per example,
            over all its images.
        random_start: Start from a uniformly random point of the ball instead of the clean image.
        restarts: Number of random starts; the best iterate of all of them is kept.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of the random starts. Without one, the attack owns a generator seeded with 0: the
            global random state neither matters nor changes.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        `pixel_values`: `(batch, ..., channels, height, width)`, normalised, so that
        `pixel_values * image_std + image_mean` lies in [0, 1]. `pixel_mask`: `(batch, ..., height, width)`,
        optional.

    Example:
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
        gradient: GradientRule = "sign",
        random_start: bool = False,
        restarts: int = 1,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        check_epsilon(epsilon)
        if not step_size > 0:
            raise ValueError(f"step_size is {step_size}; expected a positive length in [0, 1] pixel units.")
        if num_steps < 1:
            raise ValueError(
                f"num_steps is {num_steps}; expected at least 1 (epsilon=0 gives the clean images)."
            )
        if gradient not in get_args(GradientRule):
            raise ValueError(
                f"gradient is {gradient!r}; expected one of {', '.join(get_args(GradientRule))}."
            )
        if restarts < 1 or (restarts > 1 and not random_start):
            raise ValueError(
                f"restarts is {restarts} with random_start={random_start}; expected at least 1, and exactly "
                "1 without a random start, because every restart would be the same."
            )
        self.epsilon = epsilon
        self.step_size = step_size
        self.num_steps = num_steps
        self.gradient = gradient
        self.random_start = random_start
        self.restarts = restarts
        self.image_mean = image_mean
        self.image_std = image_std
        self.generator = generator or torch.Generator().manual_seed(0)

    @classmethod
    def preset(cls, name: Literal["thesis", "standard"], epsilon: float | None = None) -> "PGD":
        """A named configuration, at its own radius or at `epsilon`.

        `"thesis"`: the published tables' attack: five steps from the clean image, `linf` gradients, epsilon
            0.0025 and
        alpha = 10 epsilon. (The thesis prints 0.005 and 0.05, which are in the normalised space [-1, 1]. The
        author's code adds the last step twice, so its published figures are for up to twice this radius; that
        is not copied.) `"standard"`: what the robustness literature runs: ten sign steps of epsilon / 4 from
        a random start, 4/255.

        Raises:
            ValueError: If there is no preset of that name.
        """
        if name == "thesis":
            epsilon = 0.0025 if epsilon is None else epsilon
            return cls(epsilon, step_size=10 * epsilon or 1.0, num_steps=5, gradient="linf")
        if name == "standard":
            epsilon = 4 / 255 if epsilon is None else epsilon
            return cls(epsilon, step_size=epsilon / 4 or 1.0, num_steps=10, random_start=True)
        raise ValueError(f"There is no PGD preset {name!r}; choose 'thesis' or 'standard'.")

    @property
    def threat_model(self) -> ThreatModel:
        """What this attack is allowed to do."""
        return ThreatModel(modality="image", norm="linf", epsilon=self.epsilon)

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack the images of a batch.

        A gradient entry that is not finite counts as zero, and an iterate whose loss is not a number never
        replaces a better one, so an objective that breaks down on an example leaves that example at its best
        finite iterate.

        Args:
            batch: Must hold `pixel_values`, and `pixel_mask` if images are padded; the rest is passed on.
            objective: Batch to loss per example `(batch,)`, to be maximised.

        Returns:
            The batch with adversarial `pixel_values`, and the cost.

        Raises:
            ValueError: If `pixel_values` are missing, not normalised as announced, or in half precision; or
                if the objective is not per example or gives no gradient.
        """
        clean = _checked_pixels(batch)
        lower, upper = self._bounds(clean, batch.get("pixel_mask"))
        forwards = backwards = 0
        best, best_loss, loss_before = clean.clone(), None, None

        with isolated_rng(clean):
            if self.random_start or self.epsilon == 0:
                loss_before = best_loss = _score(batch, clean, objective)
                forwards += len(clean)
            for _ in range(self.restarts if self.epsilon > 0 else 0):
                adversarial = self._start(clean, lower, upper)
                for step in range(self.num_steps + 1):
                    if step < self.num_steps:
                        loss, gradient = _score_and_differentiate(batch, adversarial, objective)
                        backwards += len(clean)
                    else:
                        loss, gradient = _score(batch, adversarial, objective), None
                    forwards += len(clean)
                    if best_loss is None:  # the first iterate is the clean image
                        loss_before = best_loss = loss
                    better = loss > best_loss
                    best = torch.where(_per_example(better, clean), adversarial, best)
                    best_loss = torch.where(better, loss, best_loss)
                    if gradient is not None:
                        # Where the bounds meet (padding), no step can move a pixel, so its gradient must not
                        # set the scale of the others.
                        gradient = gradient.masked_fill(lower == upper, 0.0)
                        adversarial = torch.clamp(adversarial + self._step(gradient), lower, upper)
        assert loss_before is not None  # at least one iterate was scored
        assert best_loss is not None
        return AttackResult({**batch, "pixel_values": best}, loss_before, best_loss, forwards, backwards)

    def _bounds(self, clean: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Smallest and largest value each pixel may take: the ball, the valid range, and no room for padding.

        This is the one place where [0, 1] pixels become normalised values.
        """
        mean, std = (_per_channel(value, clean) for value in (self.image_mean, self.image_std))
        darkest, brightest = (0.0 - mean) / std, (1.0 - mean) / std
        real = torch.ones_like(clean, dtype=torch.bool)
        if pixel_mask is not None:
            real = (pixel_mask != 0).unsqueeze(-3).expand_as(clean)  # (batch, ..., channels, height, width)
        _check_range(clean, real, darkest, brightest)

        # In exact arithmetic no pixel may leave the ball, so every rounding goes towards the clean value.
        radius = self.epsilon / std
        radius = torch.where(
            radius.double() * std.double() > self.epsilon, radius.nextafter(radius * 0), radius
        )
        lower, upper = clean - radius, clean + radius
        lower = torch.where(self._outside(lower, clean, std), lower.nextafter(clean), lower)
        upper = torch.where(self._outside(upper, clean, std), upper.nextafter(clean), upper)
        # The outer minimum and maximum keep a clean pixel that is out of range by rounding where it is.
        lower = torch.minimum(torch.maximum(lower, darkest), clean)
        upper = torch.maximum(torch.minimum(upper, brightest), clean)
        return torch.where(real, lower, clean), torch.where(real, upper, clean)

    def _outside(self, pixels: Tensor, clean: Tensor, std: Tensor) -> Tensor:
        return (pixels.double() - clean.double()).abs() * std.double() > self.epsilon

    def _start(self, clean: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        if not self.random_start:
            return clean
        # Drawn where the generator lives, so that one seed gives the same start on every device.
        noise = torch.rand(
            clean.shape, generator=self.generator, device=self.generator.device, dtype=clean.dtype
        )
        radius = self.epsilon / _per_channel(self.image_std, clean)
        return torch.clamp(clean + radius * (2 * noise.to(clean.device) - 1), lower, upper)

    def _step(self, gradient: Tensor) -> Tensor:
        """The step along a gradient, in normalised values."""
        std = _per_channel(self.image_std, gradient)
        gradient = gradient / std  # with respect to [0, 1] pixels
        dims = tuple(range(1, gradient.ndim))
        if self.gradient == "sign":
            direction = gradient.sign()
        elif self.gradient == "l2":
            direction = gradient / _nonzero(torch.linalg.vector_norm(gradient, dim=dims, keepdim=True))
        else:
            direction = gradient / _nonzero(gradient.abs().amax(dim=dims, keepdim=True))
        return self.step_size * direction / std


def _score(batch: Batch, pixels: Tensor, objective: Objective) -> Tensor:
    with torch.no_grad():
        return check_losses(objective({**batch, "pixel_values": pixels}), len(pixels)).detach()


def _score_and_differentiate(batch: Batch, pixels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Loss per example, and each example's gradient of its own loss."""
    pixels = pixels.detach().requires_grad_()
    with torch.enable_grad():
        losses = check_losses(objective({**batch, "pixel_values": pixels}), len(pixels))
        if not losses.requires_grad:
            raise ValueError(
                "The objective's loss does not depend on pixel_values through gradients; "
                "remove torch.no_grad() or detach() from it."
            )
        # Rows are independent, so the gradient of the sum holds every row's own gradient.
        (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return losses.detach(), gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _checked_pixels(batch: Batch) -> Tensor:
    if "pixel_values" not in batch:
        raise ValueError(
            f"PGD needs pixel_values, but the batch has only {sorted(batch)}; add the processor's output."
        )
    pixels = batch["pixel_values"].detach()
    if pixels.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"pixel_values are {pixels.dtype}; expected float32, because a step of {1 / 255:.4f} is at "
            "the resolution of half precision. Attack float32 pixels and cast inside the objective."
        )
    return pixels


def _check_range(clean: Tensor, real: Tensor, darkest: Tensor, brightest: Tensor) -> None:
    tolerance = 1e-4  # an image processor's own rounding
    outside = real & ~((clean >= darkest - tolerance) & (clean <= brightest + tolerance))  # NaN is outside
    if outside.any():
        values = clean[real]
        raise ValueError(
            f"pixel_values range from {values.min():.4g} to {values.max():.4g}; expected normalised values "
            f"from {darkest.min():.4g} to {brightest.max():.4g}. Pass the image processor's output, and its "
            "image_mean and image_std to PGD."
        )


def _per_channel(value: float | Sequence[float], pixels: Tensor) -> Tensor:
    """A number, or one number per channel, broadcastable to `(batch, ..., channels, height, width)`."""
    return torch.as_tensor(value, dtype=pixels.dtype, device=pixels.device).reshape(-1, 1, 1)


def _per_example(values: Tensor, pixels: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (pixels.ndim - 1))  # (batch, 1, ..., 1)


def _nonzero(norm: Tensor) -> Tensor:
    """The norm, or one where it is zero: a zero gradient gives a zero step."""
    return torch.where(norm > 0, norm, torch.ones_like(norm))
