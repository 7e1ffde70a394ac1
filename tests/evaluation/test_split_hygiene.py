import io

import numpy as np
import pytest
from PIL import Image

from rmcl_hub.evaluation.split_hygiene import image_overlap


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8))


def test_counts_distinct_pictures_by_pixels_and_by_id():
    train = [{"image": picture(seed), "image_id": f"a{seed}"} for seed in (0, 1, 2, 2)]
    test = [{"image": picture(seed), "image_id": f"b{seed}"} for seed in (2, 2, 3)]
    test.append({"image": picture(4), "image_id": "a0"})
    assert image_overlap(train, test) == {
        "num_train_images": 3,
        "num_test_images": 3,
        "same_pixels": 1,
        "same_ids": 1,
    }


def test_looks_at_both_pictures_of_a_statement():
    train = [{"image": picture(1)}]
    test = [{"left_image": picture(2), "right_image": picture(1)}]
    assert image_overlap(train, test)["same_pixels"] == 1


def test_the_file_format_does_not_matter_and_the_shape_does():
    buffer = io.BytesIO()
    picture(1).save(buffer, format="PNG")
    stored = {"image": {"bytes": buffer.getvalue(), "path": None}}
    assert image_overlap([stored], [{"image": picture(1)}])["same_pixels"] == 1
    black = [{"image": Image.new("RGB", size)} for size in ((4, 2), (2, 4))]
    assert image_overlap(black[:1], black[1:])["same_pixels"] == 0


def test_rows_without_pictures():
    with pytest.raises(ValueError, match=r"none of the image columns image, .*, only \['pic'\]"):
        image_overlap([{"pic": 1}], [])
