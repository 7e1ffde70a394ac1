"""Random changes of training pictures: ViLT's RandAugment, and Barlow Twins' augmentations as clean views.

All of a picture's draws come from a string that names them, such as seed, epoch and image id, and not from
the global random state, which is left as it was: a resumed run, and one on more processes, changes a picture
in the same way. Neither resizes to ViLT's size: its image processor does.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

_STRENGTH = 9 / 30  # the magnitude of ViLT's fine-tuning, of 30
_FACTOR = 0.1 + 1.8 * _STRENGTH
_DEGREES = 30 * _STRENGTH
_SHIFT = round(100 * _STRENGTH)  # pixels of the stored picture
_SHEAR = math.degrees(math.atan(0.3 * _STRENGTH))


# torchvision declares its functions on tensors; of pictures, hence Any, they give pictures.
def _shift(picture: Any, x: int = 0, y: int = 0, shear_x: float = 0, shear_y: float = 0) -> Any:
    """Translate and shear; what comes from outside is black, and the upper left corner is the fixed point."""
    return F.affine(picture, angle=0, translate=[x, y], scale=1, shear=[shear_x, shear_y], center=[0, 0])


def _solarize_add(picture: Any) -> Any:
    brighter = [min(value + round(110 * _STRENGTH), 255) for value in range(256)]
    return F.solarize(picture.point(brighter * 3), 128)


RANDAUGMENT: dict[str, Callable[[Any, int], Any]] = {
    "AutoContrast": lambda picture, sign: F.autocontrast(picture),
    "Equalize": lambda picture, sign: F.equalize(picture),
    "Rotate": lambda picture, sign: F.rotate(picture, sign * _DEGREES),
    "Posterize": lambda picture, sign: F.posterize(picture, max(1, int(4 * _STRENGTH))),  # one bit is left
    "Solarize": lambda picture, sign: F.solarize(picture, 256 * _STRENGTH),  # all but the dark is inverted
    "SolarizeAdd": lambda picture, sign: _solarize_add(picture),
    "Color": lambda picture, sign: F.adjust_saturation(picture, _FACTOR),
    "Contrast": lambda picture, sign: F.adjust_contrast(picture, _FACTOR),
    "Brightness": lambda picture, sign: F.adjust_brightness(picture, _FACTOR),
    "Sharpness": lambda picture, sign: F.adjust_sharpness(picture, _FACTOR),
    "ShearX": lambda picture, sign: _shift(picture, shear_x=sign * _SHEAR),
    "ShearY": lambda picture, sign: _shift(picture, shear_y=sign * _SHEAR),
    "TranslateX": lambda picture, sign: _shift(picture, x=sign * _SHIFT),
    "TranslateY": lambda picture, sign: _shift(picture, y=sign * _SHIFT),
}
"""ViLT's operations by name, at its magnitude; the second argument, -1 or 1, is the direction.

`torchvision.transforms.v2.RandAugment` is not the same: it adds an identity, lacks SolarizeAdd, strengthens a
colour as often as it weakens it, and at this magnitude posterises to 7 bits and inverts only what is brighter
than 178, because there a larger magnitude makes these two stronger, and in ViLT weaker.
"""


def randaugment(picture: Image.Image, draws: str) -> Image.Image:
    """RandAugment (Cubuk et al., arXiv:1909.13719) as ViLT fine-tunes: 2 operations of magnitude 9 of 30.

    The operations are drawn with replacement, and applied to the stored picture, before ViLT's resize.
    Colours are never inverted and nothing is cut out, as in ViLT; no operation swaps left and right, so that
    questions and statements about them stay true.

    Args:
        picture: RGB.
        draws: Names what is drawn; the same string gives the same picture.
    """
    source = random.Random(draws)
    for operation in source.choices(list(RANDAUGMENT.values()), k=2):
        picture = operation(picture, source.choice((-1, 1)))
    return picture


def barlow_twins_view(picture: Image.Image, size: tuple[int, int], draws: str) -> Image.Image:
    """The augmentations of Barlow Twins (Zbontar et al., arXiv:2103.03230, appendix A), as one view.

    Barlow Twins blurs its first view always and solarises its second with probability 0.2; the thesis has
    only one augmented view, and its code does both. A flip can make a caption about left or right untrue:
    contrastive pre-training pays that price, supervised tasks must not.

    Args:
        picture: RGB.
        size: Height and width of the view in pixels: those that ViLT's image processor gives the picture.
            Barlow Twins' own 224 x 224 would tell the view from the clean picture by its number of patches.
        draws: Names what is drawn; the same string gives the same view.
    """
    source, aspect = random.Random(draws), picture.width / picture.height
    blur = ImageFilter.GaussianBlur(source.uniform(0.1, 2.0))  # as the paper's code; torchvision's is slower
    view = v2.Compose(
        [
            v2.RandomResizedCrop(
                size,
                ratio=(aspect * 3 / 4, aspect * 4 / 3),  # as the paper stretches a square into a square
                interpolation=InterpolationMode.BICUBIC,
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.Lambda(lambda view: view.filter(blur)),
            v2.RandomSolarize(threshold=128, p=0.2),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: it would seed the accelerators too
        torch.random.default_generator.manual_seed(source.getrandbits(63))
        return view(picture)
