from base64 import b64decode
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from rmcl_hub.evaluation.pictures import picture_pair


def pixels_of(uri):
    return np.array(Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_perturbation_is_shown_ten_times_around_grey(outcomes):
    clean = torch.full((3, 4, 6), 0.5)  # mid-grey
    attacked = clean.clone()
    attacked[0, 0, 0] += 5 / 255  # five grey levels more red
    pair = picture_pair(outcomes[0], clean, attacked, torch.ones(4, 6, dtype=torch.long))
    assert pixels_of(pair["clean_picture"]).shape == (4, 6, 3)
    assert pixels_of(pair["attacked_picture"])[0, 0].tolist() == [132, 128, 128]
    assert pixels_of(pair["perturbation"])[0, 0].tolist() == [178, 128, 128]
    assert (pixels_of(pair["perturbation"])[1:] == 128).all()
    assert pair["id"] == outcomes[0].id


def test_padding_is_cut_off(outcomes):
    mask = torch.zeros(8, 8, dtype=torch.long)
    mask[:5, :3] = 1
    pair = picture_pair(outcomes[0], torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), mask)
    assert pixels_of(pair["clean_picture"]).shape == (5, 3, 3)


def test_two_images_stand_side_by_side(outcomes):
    clean = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1.0)])
    pair = picture_pair(outcomes[0], clean, clean, torch.ones(2, 4, 4, dtype=torch.long))
    picture = pixels_of(pair["clean_picture"])
    assert picture.shape == (4, 8, 3)
    assert (picture[:, :4] == 0).all()
    assert (picture[:, 4:] == 255).all()
