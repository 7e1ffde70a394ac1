"""Random noise: what a model must withstand before any figure about attacks on it means something."""

from typing import ClassVar

import torch

from .pixel_ball import PixelAttack, Search
from .threat_model import Access


class RandomNoise(PixelAttack):
    """One random perturbation of the largest size, with no search: a sanity check.

    L-infinity: plus or minus `epsilon` at every pixel and channel. L2: a uniformly random direction,
    `epsilon` long. Both are then clipped to the valid range, which makes an L2 perturbation shorter.

    Nothing is selected, not even the clean image: unlike with every other attack on pixels, `loss_after` may
    be below `loss_before`, and is not a number where the objective of the noisy image is not.

    Distance measure: L-infinity or L2, in [0, 1] pixel units. Black box: not even the model's answers are
    used. Padding (`pixel_mask == 0`) is never touched. The noise depends on the example's place in the batch,
    and on nothing else.

    Cost in example rows, for a batch of B: 2 B forwards; B with `epsilon = 0`.

    Args:
        epsilon: Radius of the ball, in [0, 1] pixel units (4/255, not 4).
        norm: `"linf"` or `"l2"`, the norm that epsilon bounds.
        image_mean: Mean that `pixel_values` were normalised with, one number or one per channel.
        image_std: Standard deviation that `pixel_values` were normalised with.
        generator: Source of the noise, see `PixelAttack`.

    Raises:
        ValueError: If an argument is out of range.

    Shape:
        As in `PixelAttack`.

    Examples:
        >>> batch = {"pixel_values": torch.zeros(1, 3, 8, 8)}
        >>> result = RandomNoise(epsilon=0.1)(batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
        >>> result.batch["pixel_values"].unique()  # 0.1 in [0, 1] pixels is 0.2 in the normalised space
        tensor([-0.2000,  0.2000])
    """

    access: ClassVar[Access] = "black-box"

    def _run(self, search: Search) -> None:
        ball = search.ball
        search.score(ball.clean)
        if self.norm == "l2":
            unit = ball.sphere(self.generator)
        else:
            unit = torch.where(ball.draw(self.generator) < 0.5, -1.0, 1.0).to(ball.clean)
        noisy = ball.step(ball.clean, self.epsilon * unit)
        search.impose(noisy, search.score(noisy))
