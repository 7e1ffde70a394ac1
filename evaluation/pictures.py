"""Attacked pictures for the eye: clean, perturbation times ten, attacked, each as a PNG data URI."""

from base64 import b64encode
from io import BytesIO
from typing import TypedDict

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .outcomes import Outcome

PERTURBATION_GAIN = 10


class AttackedPair(TypedDict):
    """One attacked example, ready for the report; pictures are `data:image/png;base64,...`."""

    id: str
    attack: str
    clean_picture: str
    perturbation: str
    attacked_picture: str
    text: str
    adversarial_text: str
    label: int
    clean_prediction: int
    adversarial_prediction: int
    delta_linf: float


def picture_pair(outcome: Outcome, clean: Tensor, attacked: Tensor, pixel_mask: Tensor) -> AttackedPair:
    """Draw one example.

    Args:
        outcome: What the attack did to it.
        clean: Pixels in [0, 1], `(3, H, W)`, or `(2, 3, H, W)` for two images, which are put side by side.
        attacked: The same under attack.
        pixel_mask: 1 = real pixel, `(H, W)` or `(2, H, W)`; padding is cut off.

    Returns:
        Pictures and texts; the perturbation is multiplied by ten around mid-grey.
    """
    before, after = _side_by_side(clean, pixel_mask), _side_by_side(attacked, pixel_mask)
    return {
        "id": outcome.id,
        "attack": outcome.attack,
        "clean_picture": _png_uri(before),
        "perturbation": _png_uri(0.5 + PERTURBATION_GAIN * (after - before)),
        "attacked_picture": _png_uri(after),
        "text": outcome.text,
        "adversarial_text": outcome.adversarial_text,
        "label": outcome.label,
        "clean_prediction": outcome.clean_prediction,
        "adversarial_prediction": outcome.adversarial_prediction,
        "delta_linf": outcome.delta_linf,
    }


def _side_by_side(pixels: Tensor, pixel_mask: Tensor) -> Tensor:
    """One picture `(3, H, W)`; padding is below and to the right, so the real part is a rectangle."""
    images = pixels if pixels.ndim == 4 else pixels[None]  # (images, 3, H, W)
    masks = pixel_mask if pixel_mask.ndim == 3 else pixel_mask[None]  # (images, H, W)
    height = int(masks.any(dim=2).sum(dim=1).max())
    cut = [image[:, :height, : int(mask.any(dim=0).sum())] for image, mask in zip(images, masks, strict=True)]
    return torch.cat(cut, dim=2).cpu()


def _png_uri(picture: Tensor) -> str:
    file = BytesIO()
    to_pil_image((picture.clamp(0, 1) * 255).round().to(torch.uint8)).save(file, format="PNG")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()
