"""ViLT's sizes, RandAugment against Pillow, and the odds of Barlow Twins' augmentations."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from transformers import ViltImageProcessor, set_seed

from rmcl_hub.datasets_scripts import image_transforms
from rmcl_hub.datasets_scripts.image_transforms import RANDAUGMENT, barlow_twins_view, randaugment

DRAWS = [f"draw {number}" for number in range(300)]


def picture_of(pixels):
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


@pytest.fixture
def photo():
    """Smooth colours with some noise, 40 x 50 pixels, of all brightnesses."""
    rows, columns = np.mgrid[0:40, 0:50]
    smooth = np.stack([rows * 6, columns * 5, (rows + columns) * 2], axis=-1)
    return picture_of((smooth + np.random.default_rng(0).integers(0, 20, smooth.shape)).clip(0, 255))


def vilt_size(height, width):
    """Shorter side 384 unless the longer one would pass 1333/800 of it, then down to patches."""
    scale = min(384 / min(height, width), int(1333 / 800 * 384) / max(height, width))
    return tuple(int(side * scale + 0.5) // 32 * 32 for side in (height, width))


@pytest.fixture(scope="module")
def vilt_processor():
    return ViltImageProcessor(size={"shortest_edge": 384}, size_divisor=32)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (384, 512)),  # most of COCO
        ((640, 480), (512, 384)),
        ((384, 384), (384, 384)),
        ((500, 100), (608, 128)),
        ((100, 500), (128, 608)),
        ((10, 10), (384, 384)),
        ((6, 8), (384, 512)),
        ((384, 639), (384, 608)),  # the longest that keeps 384
        ((384, 640), (352, 608)),  # the thesis's 640 is 639: one pixel more costs a row of patches
        ((2000, 3000), (384, 576)),
        ((40, 799), (32, 608)),
    ],
)
def test_the_processor_resizes_as_vilt(vilt_processor, size, expected):
    batch = vilt_processor([Image.new("RGB", size[::-1])], return_tensors="pt")
    assert tuple(batch["pixel_values"].shape[-2:]) == expected == vilt_size(*size)


def test_no_picture_gets_more_patches_than_12_by_19(vilt_processor):
    sizes = [(384, width) for width in range(384, 700, 9)]
    shapes = [vilt_processor([Image.new("RGB", size)])["pixel_values"][0].shape[-2:] for size in sizes]
    assert [tuple(shape) for shape in shapes] == [vilt_size(*size[::-1]) for size in sizes]
    assert max(height * width for height, width in shapes) == 384 * 608


def test_pixels_run_from_minus_one_to_one_and_padding_is_zero_and_masked(vilt_processor):
    batch = vilt_processor(
        [Image.new("RGB", (640, 480), "white"), Image.new("RGB", (90, 90))], return_tensors="pt"
    )
    assert batch["pixel_values"].shape == (2, 3, 384, 512)
    assert (batch["pixel_values"][0] == 1).all()
    assert (batch["pixel_values"][1, :, :, :384] == -1).all()
    assert (batch["pixel_values"][1, :, :, 384:] == 0).all()
    assert torch.equal(batch["pixel_mask"][1], (torch.arange(512) < 384).long().expand(384, 512))


def affine(*matrix):
    return lambda picture, sign: picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        [value * sign if isinstance(value, float) else value for value in matrix],
    )


def solarize_add(picture, sign):
    brighter = np.asarray(picture).astype(int) + 33
    return ImageOps.solarize(picture_of(brighter.clip(0, 255)), 128)


# 9/30 of the way through ViLT's ranges; those that have a direction scale with it.
WITH_PILLOW = {
    "AutoContrast": lambda picture, sign: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, sign: ImageOps.equalize(picture),
    "Rotate": lambda picture, sign: picture.rotate(9 * sign),
    "Posterize": lambda picture, sign: ImageOps.posterize(picture, 1),
    "Solarize": lambda picture, sign: ImageOps.solarize(picture, 76.8),
    "SolarizeAdd": solarize_add,
    "Color": lambda picture, sign: ImageEnhance.Color(picture).enhance(0.64),
    "Contrast": lambda picture, sign: ImageEnhance.Contrast(picture).enhance(0.64),
    "Brightness": lambda picture, sign: ImageEnhance.Brightness(picture).enhance(0.64),
    "Sharpness": lambda picture, sign: ImageEnhance.Sharpness(picture).enhance(0.64),
    "ShearX": affine(1, 0.09, 0, 0, 1, 0),
    "ShearY": affine(1, 0, 0, 0.09, 1, 0),
    "TranslateX": affine(1, 0, 30.0, 0, 1, 0),
    "TranslateY": affine(1, 0, 0, 0, 1, 30.0),
}


@pytest.mark.parametrize("name", WITH_PILLOW)
def test_operations_are_vilts_at_magnitude_9(photo, name):
    both = {RANDAUGMENT[name](photo, sign).tobytes() for sign in (-1, 1)}
    assert both == {WITH_PILLOW[name](photo, sign).tobytes() for sign in (-1, 1)}
    assert photo.tobytes() not in both


def test_there_is_no_other_operation():
    assert RANDAUGMENT.keys() == WITH_PILLOW.keys()  # no Invert, no Cutout, and no flip


def test_two_operations_are_drawn_alike_with_replacement(photo, monkeypatch):
    drawn = []
    for name in RANDAUGMENT:
        monkeypatch.setitem(
            RANDAUGMENT, name, lambda picture, sign, name=name: drawn.append((name, sign)) or picture
        )
    for draws in DRAWS:
        randaugment(photo, draws)
    assert len(drawn) == 2 * len(DRAWS)
    counts = Counter(name for name, _ in drawn)
    assert counts.keys() == RANDAUGMENT.keys()
    assert max(counts.values()) < 2 * min(counts.values())
    assert 0.4 < np.mean([sign == 1 for _, sign in drawn]) < 0.6
    twice = np.mean([one == other for (one, _), (other, _) in zip(drawn[::2], drawn[1::2], strict=True)])
    assert 0.02 < twice < 0.15  # 1 in 14


def test_the_second_operation_sees_the_first(photo, monkeypatch):
    for name in RANDAUGMENT:
        monkeypatch.setitem(RANDAUGMENT, name, lambda picture, sign: picture.point(lambda value: value // 2))
    assert randaugment(photo, "any").tobytes() == photo.point(lambda value: value // 4).tobytes()


@pytest.mark.parametrize(
    "transform", [randaugment, lambda picture, draws: barlow_twins_view(picture, (32, 48), draws)]
)
def test_the_name_of_the_draws_decides_alone(photo, transform):
    state = random.getstate(), torch.get_rng_state()
    first = [transform(photo, draws).tobytes() for draws in DRAWS[:20]]
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])

    set_seed(7)
    again = [transform(photo, draws).tobytes() for draws in DRAWS[19::-1]]
    assert again == first[::-1]
    assert len(set(first)) > 15  # the same two operations can come twice


def views_of(picture, size=(32, 32)):
    return np.stack([np.asarray(barlow_twins_view(picture, size, draws)) for draws in DRAWS]).astype(float)


def assert_share(happened, expected):
    """Within three standard deviations of what independent draws give."""
    assert happened.mean() == pytest.approx(expected, abs=3 * (expected * (1 - expected) / len(DRAWS)) ** 0.5)


def test_a_view_has_the_size_asked_for(photo):
    assert barlow_twins_view(photo, (32, 64), "any").size == (64, 32)
    assert barlow_twins_view(photo, (32, 64), "any").mode == "RGB"


def test_half_of_the_views_are_flipped():
    rising = np.broadcast_to(np.linspace(20, 60, 64)[None, :, None], (64, 64, 3))  # too dark to be solarised
    views = views_of(picture_of(rising))
    assert_share(views[:, :, :16].mean(axis=(1, 2, 3)) > views[:, :, 16:].mean(axis=(1, 2, 3)), 0.5)


def test_a_fifth_of_the_views_is_solarised():
    white = views_of(Image.new("RGB", (32, 32), "white"))  # 0.6 of it is still above 128
    assert_share(white.mean(axis=(1, 2, 3)) < 128, 0.2)


def test_a_fifth_of_the_views_is_grey():
    coloured = views_of(Image.new("RGB", (32, 32), (40, 60, 90)))
    assert_share((np.ptp(coloured, axis=-1) == 0).all(axis=(1, 2)), 0.2)


def test_four_fifths_of_the_views_have_other_colours():
    grey = views_of(Image.new("RGB", (32, 32), (100, 100, 100)))
    assert_share((grey != 100).any(axis=(1, 2, 3)), 0.8)
    assert grey[grey < 128].min() >= 59  # brightness at least 0.6


def test_every_view_is_blurred(monkeypatch):
    radii, blur = [], ImageFilter.GaussianBlur
    monkeypatch.setattr(
        image_transforms.ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or blur(radius)
    )
    dots = np.zeros((64, 64, 3))
    dots[::4, ::4] = 127
    views = views_of(picture_of(dots), (64, 64))
    assert len(radii) == len(DRAWS)
    assert 0.1 <= min(radii) < 0.2
    assert 1.9 < max(radii) <= 2
    edges = np.abs(np.diff(views, axis=2)).mean(axis=(1, 2, 3))
    assert np.corrcoef(radii, edges)[0, 1] < -0.4


def test_crops_cover_8_to_100_percent_and_stretch_by_a_third_at_most():
    across, down = np.meshgrid(np.linspace(0, 127, 120), np.linspace(0, 127, 80))
    places = picture_of(np.stack([across, down, np.full_like(down, 100)], axis=-1))
    views = views_of(places, (64, 96))
    untouched = views[
        (views[..., 2] == 100).all(axis=(1, 2))
    ]  # neither jittered nor grey: colours are places
    width, height = (np.ptp(untouched[..., channel], axis=(1, 2)) / 127 for channel in (0, 1))
    assert len(untouched) > 30
    assert 0.05 < (width * height).min() < 0.2
    assert (width * height).max() > 0.8
    stretched = width / height
    assert 0.7 < stretched.min() < 0.85
    assert 1.2 < stretched.max() < 1.45
