"""Pictures for miniature corpora: drawings of openpairs as JPEG files, with the faults of real corpora."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .openpairs import read_metadata


@dataclass(frozen=True)
class MiniaturePicture:
    """A drawing in the place of a corpus's photograph.

    Attributes:
        number: From 1; corpora make their ids of it. A duplicate repeats one.
        captions: As a corpus would publish them, line breaks included.
        jpeg: The file; None: it is missing, although annotated.
        drawing: The row of openpairs with all its metadata.
        outside: The corpus names it by a path with `..`.
    """

    number: int
    captions: list[str]
    jpeg: bytes | None
    drawing: dict[str, Any]
    outside: bool = False


def usable_pictures(count: int, first: int = 0) -> list[MiniaturePicture]:
    """Pictures numbered from 1 whose rows can be used.

    The first is a grayscale JPEG, the second a CMYK one; the third has a caption of two lines, the fourth one
    in Chinese with an emoji, the fifth an empty one beside the others.

    Args:
        count: How many.
        first: Position in openpairs of the first drawing, so that corpora can have different ones.
    """
    drawings = read_metadata("openmoji", "train")[first : first + count]
    pictures = []
    for index, drawing in enumerate(drawings):
        captions = list(drawing["captions"])
        if index == 2:
            captions.append(f"{captions[0]},\nseen from  the front\r\n")
        elif index == 3:
            captions.append("一个男人的脸 🧔, naïve Überraschung")
        elif index == 4:
            captions.append("  ")
        mode = {0: "L", 1: "CMYK"}.get(index, "RGB")
        pictures.append(MiniaturePicture(index + 1, captions, encode_jpeg(drawing, mode), drawing))
    return pictures


def unusable_pictures(pictures: list[MiniaturePicture]) -> list[MiniaturePicture]:
    """One picture for each reason to leave a row out, with drawings of the usable ones.

    In this order: missing, cut off in the middle, without a caption, with a path outside the folder, and a
    duplicate of the first picture's id. Their numbers follow a multiple of eight.
    """
    drawing = pictures[-1].drawing
    number = 8 * -(-len(pictures) // 8) + 1  # splits repeat every eight pictures and begin with train
    captions, jpeg = list(drawing["captions"]), encode_jpeg(drawing)
    return [
        MiniaturePicture(number, captions, None, drawing),
        MiniaturePicture(number + 1, captions, jpeg[: len(jpeg) // 2], drawing),
        MiniaturePicture(number + 2, ["", " \n"], jpeg, drawing),
        MiniaturePicture(number + 3, captions, jpeg, drawing, outside=True),
        MiniaturePicture(1, captions, jpeg, drawing),
    ]


def encode_jpeg(drawing: dict[str, Any], mode: str = "RGB") -> bytes:
    """A drawing as a JPEG file in Pillow's mode `RGB`, `L` (gray) or `CMYK`."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(drawing["image"]["bytes"])).convert("RGB").convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """A zip archive of files by their path in it, every time the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """The same as an uncompressed tar archive."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def truncate(path: Path) -> None:
    """Cut a file off in the middle, as an interrupted download does."""
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
