"""What every attack on pixels shares: the ball around the clean images, and the search for the best point of
it.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor

from .base import AttackResult, Batch, CleanPass, JointObjective, Objective, check_losses, isolated_rng
from .threat_model import Access, Norm, ThreatModel

Direction: TypeAlias = Literal["sign", "l2", "linf"]
"""What is kept of a gradient: its signs, or the gradient over its L2 norm or over its largest magnitude."""


class PixelBall:
    """The images that an attack may choose from: within `epsilon` of the clean ones and in the valid range.

    Distances are in [0, 1] pixel units. The L2 norm of an example is over all its images, channels and
    pixels. Padding has no room to move. Nothing leaves the ball by rounding: for pixels in [0, 1], computed
    in double precision, no distance exceeds `epsilon` by a single bit.

    Attributes:
        clean: The clean images, detached, shape `(batch, ..., channels, height, width)`, normalised.
        lower: Smallest value of every pixel, normalised, same shape.
        upper: Largest value of every pixel, normalised, same shape.
        fixed: Where the two meet: padding. Same shape.

    Raises:
        ValueError: If `pixel_values` are missing, not normalised as announced, or in half precision.
    """

    def __init__(
        self,
        batch: Batch,
        epsilon: float,
        norm: Norm = "linf",
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
    ) -> None:
        self.clean = _checked_pixels(batch)
        self.epsilon = epsilon
        self.norm = norm
        # This is the one place where [0, 1] pixels become normalised values.
        mean, self.std = (_per_channel(value, self.clean) for value in (image_mean, image_std))
        darkest, brightest = (0.0 - mean) / self.std, (1.0 - mean) / self.std
        real = torch.ones_like(self.clean, dtype=torch.bool)
        if batch.get("pixel_mask") is not None:
            real = (batch["pixel_mask"] != 0).unsqueeze(-3).expand_as(self.clean)  # (batch, ..., C, H, W)
        _check_range(self.clean, real, darkest, brightest)

        lower, upper = (-torch.inf, torch.inf) if norm == "l2" else self._linf_bounds()
        # The outer minimum and maximum keep a clean pixel that is out of range by rounding where it is.
        lower = torch.minimum(darkest.clamp(min=lower), self.clean)
        upper = torch.maximum(brightest.clamp(max=upper), self.clean)
        self.lower, self.upper = torch.where(real, lower, self.clean), torch.where(real, upper, self.clean)
        self.fixed = self.lower == self.upper

    def narrowed(self, rows: Tensor) -> "PixelBall":
        """The ball of some of the examples."""
        ball = copy.copy(self)
        ball.clean, ball.fixed = self.clean[rows], self.fixed[rows]
        ball.lower, ball.upper = self.lower[rows], self.upper[rows]
        return ball

    def step(self, pixels: Tensor, displacement: Tensor) -> Tensor:
        """Move by a displacement in [0, 1] pixel units, and back into the ball."""
        return self.project(pixels + displacement / self.std)

    def project(self, pixels: Tensor) -> Tensor:
        """The nearest images of the L-infinity ball; for L2, those scaled onto the ball, then clipped.

        Clipping only moves towards the clean image, so it does not leave the L2 ball; but the result is not
        the nearest point of ball and valid range together. AutoAttack projects like this, too.
        """
        if self.norm == "l2":
            pixels = self._scaled(pixels)
        return pixels.clamp(self.lower, self.upper)

    def random_point(self, generator: torch.Generator) -> Tensor:
        """A uniformly random point of the ball, clipped to the valid range."""
        if self.norm == "linf":
            return self.step(self.clean, self.epsilon * (2 * self.draw(generator) - 1))
        dimensions = (~self.fixed).flatten(1).sum(dim=1).clamp(min=1).to(self.clean.dtype)
        radius = self.draw(generator, len(self.clean)) ** (1 / dimensions)  # (batch,)
        return self.step(self.clean, self.epsilon * per_example(radius, self.clean) * self.sphere(generator))

    def sphere(self, generator: torch.Generator) -> Tensor:
        """A uniformly random displacement of L2 norm one, zero on padding."""
        return direction(self.draw(generator, normal=True).masked_fill(self.fixed, 0.0), "l2")

    def draw(self, generator: torch.Generator, *shape: int, normal: bool = False) -> Tensor:
        """Uniform numbers in [0, 1), or normal ones, of a shape or of the images' shape."""
        # Drawn where the generator lives, so that one seed gives the same numbers on every device.
        numbers = (torch.randn if normal else torch.rand)(
            shape or self.clean.shape,
            generator=generator,
            device=generator.device,
            dtype=self.clean.dtype,
        )
        return numbers.to(self.clean.device)

    def _linf_bounds(self) -> tuple[Tensor, Tensor]:
        # In exact arithmetic no pixel may leave the ball, so every rounding goes towards the clean value.
        clean, radius = self.clean, self.epsilon / self.std
        radius = torch.where(
            radius.double() * self.std.double() > self.epsilon, radius.nextafter(radius * 0), radius
        )
        lower, upper = clean - radius, clean + radius
        lower = torch.where(self._outside(lower), lower.nextafter(clean), lower)
        upper = torch.where(self._outside(upper), upper.nextafter(clean), upper)
        return lower, upper

    def _outside(self, pixels: Tensor) -> Tensor:
        return (pixels.double() - self.clean.double()).abs() * self.std.double() > self.epsilon

    def _scaled(self, pixels: Tensor) -> Tensor:
        """Images on the L2 ball, rounded towards the clean ones, where they were outside it."""
        delta = pixels.double() - self.clean.double()
        norm = torch.linalg.vector_norm(delta * self.std.double(), dim=_image_dims(pixels), keepdim=True)
        delta = delta * (self.epsilon / nonzero(norm)) * (1 - 1e-12)  # more than double precision can err
        scaled = (self.clean.double() + delta).to(pixels.dtype)
        outwards = (scaled.double() - self.clean.double()).abs() > delta.abs()
        scaled = torch.where(outwards, scaled.nextafter(self.clean), scaled)
        return torch.where(norm > self.epsilon, scaled, pixels)


class Search:
    """One run of an attack: scores images, and keeps each example's best ones and the account.

    Attributes:
        ball: Where the images may go.
        best: The images with the largest objective so far, example by example. The first images scored must
            be the clean ones, so these count, too; and an objective that is not a number never wins.
        best_loss: Their objective, shape `(batch,)`.
        forwards: Example rows scored.
        backwards: Example rows differentiated.
    """

    def __init__(self, batch: Batch, objective: Objective, ball: PixelBall) -> None:
        self.batch, self.objective, self.ball = batch, objective, ball
        self.best = ball.clean.clone()
        self.best_loss: Tensor = torch.empty(0)
        self.forwards = self.backwards = 0
        self._loss_before: Tensor | None = None
        clean = getattr(objective, "clean", None)
        self._shared: CleanPass | None = clean if clean is not None and clean.covers(batch) else None

    def score(self, pixels: Tensor) -> Tensor:
        """Objective per example, shape `(batch,)`."""
        loss = self.evaluate(self.batch, pixels)
        self.keep(pixels, loss)
        return loss

    def differentiate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Objective per example, and the gradient of each example's own with respect to its pixels in [0, 1].

        A gradient entry that is not finite counts as zero, and so does that of padding, which must not set
        the scale of the others.

        Raises:
            ValueError: If the objective gives no gradient.
        """
        if self._shared is not None and pixels is self.ball.clean:
            loss, gradient = self._differentiate_clean(self._shared)
        else:
            loss, gradient = self._differentiate({**self.batch, "pixel_values": pixels.detach()})
        self.keep(pixels.detach(), loss)
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return loss, gradient.masked_fill(self.ball.fixed, 0.0) / self.ball.std

    def _differentiate(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        pixels = batch["pixel_values"]
        self.forwards += len(pixels)
        self.backwards += len(pixels)
        if isinstance(self.objective, JointObjective):
            gradients = self.objective.differentiate(batch, words=False, pixels=True)
            return gradients.loss, cast(Tensor, gradients.of_pixels)
        batch["pixel_values"] = pixels.requires_grad_()
        with torch.enable_grad():
            losses = check_losses(self.objective(batch), len(pixels))
            if not losses.requires_grad:
                raise ValueError(
                    "The objective's loss does not depend on pixel_values through gradients; "
                    "remove torch.no_grad() or detach() from it."
                )
            # Rows are independent, so the gradient of the sum holds every row's own gradient.
            (gradient,) = torch.autograd.grad(losses.sum(), pixels)
        return losses.detach(), gradient

    def _differentiate_clean(self, shared: CleanPass) -> tuple[Tensor, Tensor]:
        if shared.gradients is None:
            shared.gradients = cast(JointObjective, self.objective).differentiate(self.batch, pixels=True)
            self.forwards += len(shared.gradients.loss)
            self.backwards += len(shared.gradients.loss)
        return shared.gradients.loss, cast(Tensor, shared.gradients.of_pixels)

    def evaluate(self, batch: Batch, pixels: Tensor) -> Tensor:
        """Objective per example of any rows, without keeping them."""
        self.forwards += len(pixels)
        with torch.no_grad():
            return check_losses(self.objective({**batch, "pixel_values": pixels}), len(pixels)).detach()

    def keep(self, pixels: Tensor, loss: Tensor) -> None:
        """Remember the images of those examples whose objective is larger than ever."""
        if self._loss_before is None:
            self._loss_before = self.best_loss = loss
            return
        better = loss > self.best_loss
        self.best = torch.where(per_example(better, pixels), pixels, self.best)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def impose(self, pixels: Tensor, loss: Tensor) -> None:
        """Hand back these images and no others, whatever else was scored."""
        self.best, self.best_loss = pixels, loss

    def leave_unscored(self, pixels: Tensor, clean_scored: bool) -> None:
        """Hand back these images without scoring them; what was not scored has the objective NaN, unknown."""
        unknown = torch.full_like(self.best_loss, torch.nan)
        self.impose(pixels, unknown)
        if not clean_scored:
            self._loss_before = unknown

    def result(self) -> AttackResult:
        """The best images, and what finding them cost."""
        assert self._loss_before is not None  # every attack scores the clean images
        batch = {**self.batch, "pixel_values": self.best}
        return AttackResult(batch, self._loss_before, self.best_loss, self.forwards, self.backwards)


class PixelAttack:
    """An attack on pixels without its search, which subclasses write.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        norm: `"linf"` or `"l2"`, the norm that epsilon bounds.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of random numbers. Without one, the attack owns a generator seeded with 0: the
            global random state neither matters nor changes.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        `pixel_values`: `(batch, ..., channels, height, width)`, normalised, so that
        `pixel_values * image_std + image_mean` lies in [0, 1]. `pixel_mask`: `(batch, ..., height, width)`,
        optional.
    """

    access: ClassVar[Access] = "white-box"
    knowledge: ClassVar[str] = "objective"

    def __init__(
        self,
        epsilon: float,
        norm: Norm = "linf",
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        self.threat_model = ThreatModel(
            modality="image", norm=norm, epsilon=epsilon, access=self.access, knowledge=self.knowledge
        )
        self.epsilon = epsilon
        self.norm: Norm = norm
        self.image_mean = image_mean
        self.image_std = image_std
        self.generator = generator or torch.Generator().manual_seed(0)

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack the images of a batch.

        Args:
            batch: Must hold `pixel_values`, and `pixel_mask` if images are padded; the rest is passed on.
            objective: Batch to loss per example `(batch,)`, to be maximised. An iterate whose loss is not a
                number never replaces a better one.

        Returns:
            The batch with adversarial `pixel_values`, and the cost.

        Raises:
            ValueError: If `pixel_values` are missing, not normalised as announced, or in half precision; or
                if the objective is not per example, or gives no gradient to an attack that needs one.
        """
        ball = PixelBall(batch, self.epsilon, self.norm, self.image_mean, self.image_std)
        search = Search(batch, objective, ball)
        with isolated_rng(ball.clean):
            if self.epsilon == 0:
                search.score(ball.clean)
            else:
                self._run(search)
        return search.result()

    def _run(self, search: Search) -> None:
        """Score images of the ball, the clean ones first."""
        raise NotImplementedError


def direction(gradient: Tensor, rule: Direction) -> Tensor:
    """What is kept of each example's gradient; a zero gradient stays zero."""
    if rule == "sign":
        return gradient.sign()
    dims = _image_dims(gradient)
    if rule == "l2":
        return gradient / nonzero(torch.linalg.vector_norm(gradient, dim=dims, keepdim=True))
    return gradient / nonzero(gradient.abs().amax(dim=dims, keepdim=True))


def per_example(values: Tensor, pixels: Tensor) -> Tensor:
    """One value per example, broadcastable to its images."""
    return values.reshape(-1, *[1] * (pixels.ndim - 1))  # (batch, 1, ..., 1)


def nonzero(norm: Tensor) -> Tensor:
    """The norm, or one where it is zero."""
    return torch.where(norm > 0, norm, torch.ones_like(norm))


def _image_dims(pixels: Tensor) -> tuple[int, ...]:
    return tuple(range(1, pixels.ndim))


def _checked_pixels(batch: Batch) -> Tensor:
    if "pixel_values" not in batch:
        raise ValueError(
            f"An attack on pixels needs pixel_values, but the batch has only {sorted(batch)}; add the "
            "processor's output."
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
            "image_mean and image_std to the attack."
        )


def _per_channel(value: float | Sequence[float], pixels: Tensor) -> Tensor:
    """A number, or one number per channel, broadcastable to `(batch, ..., channels, height, width)`."""
    return torch.as_tensor(value, dtype=pixels.dtype, device=pixels.device).reshape(-1, 1, 1)
