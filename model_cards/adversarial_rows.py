"""Rows of an adversarial example set: every stored example with its outcome and a picture to look at."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import datasets
import pyarrow as pa
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from rmcl_hub.evaluation.adversarial_examples import FOLDER, read_adversarial
from rmcl_hub.evaluation.outcomes import Outcome
from rmcl_hub.evaluation.robustness import Evaluation

HALF_LEVEL = 0.5 / 255
MAX_NAMES = 100
"""Answers whose names go into the card; VQAv2's 3,129 stay in the model's `id2label`."""
_DTYPES = {str: "string", int: "int64", bool: "bool", float: "float64", float | None: "float64"}
_ANSWERS = ("label", "clean_prediction", "adversarial_prediction")


def features_of(evaluation: Evaluation, folder: str | Path) -> datasets.Features:
    """Columns: pictures, what `outcomes.Outcome` says of an example, and where its exact pixels lie."""
    answers = evaluation.record["answers"]
    index = datasets.ClassLabel(names=answers) if 0 < len(answers) <= MAX_NAMES else datasets.Value("int64")
    outcome = {
        field.name: index if field.name in _ANSWERS else datasets.Value(_DTYPES[field.type])
        for field in fields(Outcome)
        if field.name != "attack"  # the configuration's name
    }
    threat = next(iter(evaluation.record["threats"]))
    _, pixels = next(read_adversarial(folder, threat))
    pictures = {name: datasets.Image() for name in picture_columns(pixels)}
    exact = {"pixels_file": datasets.Value("string"), "pixels_row": datasets.Value("int64")}
    return datasets.Features({**pictures, **outcome, **exact})


def picture_columns(pixels: Tensor) -> list[str]:
    """Names of the columns of pictures for `pixel_values`, `(B, 3, H, W)` or `(B, 2, 3, H, W)`."""
    return ["left_image", "right_image"] if pixels.ndim == 5 else ["image"]


def adversarial_tables(
    folder: str | Path,
    threat: str,
    outcomes: Mapping[str, Outcome],
    features: datasets.Features,
    image_mean: float | Sequence[float],
    image_std: float | Sequence[float],
) -> Iterator[pa.Table]:
    """Rows of one threat model, a table per stored batch, in the order in which they were attacked.

    Args:
        folder: The evaluation's.
        threat: Name of the threat model.
        outcomes: Id to what the threat model did to the example.
        features: Of `features_of`.
        image_mean: What the stored pixels were normalised with, one number or one per channel.
        image_std: The same for the deviation.

    Raises:
        ValueError: If an example has no outcome, or the pixels were normalised otherwise.
        FileNotFoundError: If no examples are stored.
    """
    mean, std = (torch.as_tensor(values).reshape(-1, 1, 1) for values in (image_mean, image_std))
    for number, (ids, pixels) in enumerate(read_adversarial(folder, threat)):
        file = f"{FOLDER}/{threat}-{number:05d}.safetensors"
        columns = picture_columns(pixels)
        rows = []
        for place, (identity, images) in enumerate(
            zip(ids, pixels.reshape(len(ids), -1, *pixels.shape[-3:]), strict=True)
        ):
            if identity not in outcomes:
                raise ValueError(
                    f"example {identity!r} of {threat!r} is in {file}, but not in the outcomes; evaluate "
                    "again into an empty folder."
                )
            pictures = {
                name: {"bytes": _png(image, mean, std, file), "path": None}
                for name, image in zip(columns, images, strict=True)
            }
            row = {**asdict(outcomes[identity]), **pictures, "pixels_file": file, "pixels_row": place}
            rows.append({name: row[name] for name in features})
        yield pa.Table.from_pylist(rows, schema=features.arrow_schema)


def _png(image: Tensor, mean: Tensor, std: Tensor, file: str) -> bytes:
    """The picture in 256 levels, without padding."""
    pixels = _without_padding(image) * std + mean
    low, high = float(pixels.min()), float(pixels.max())
    if low < -HALF_LEVEL or high > 1 + HALF_LEVEL:
        raise ValueError(
            f"pixels of {file} are in [{low:.3f}, {high:.3f}] instead of [0, 1] with image_mean "
            f"{mean.flatten().tolist()} and image_std {std.flatten().tolist()}; pass those of the evaluated "
            "model's processor."
        )
    stream = io.BytesIO()
    to_pil_image((pixels.clamp(0, 1) * 255).round().to(torch.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def _without_padding(image: Tensor) -> Tensor:
    """Padding is zero after normalisation, below and to the right; no level of 256 is normalised to zero."""
    filled = image.abs().sum(dim=0) > 0  # (H, W)
    rows, columns = filled.any(dim=1).nonzero(), filled.any(dim=0).nonzero()
    if not len(rows):
        return image
    return image[:, : int(rows[-1]) + 1, : int(columns[-1]) + 1]
