"""Bad pictures are named, good ones decoded."""

import io
import struct
import zlib

import datasets
import pytest
from PIL import Image

from rmcl_hub.datasets_scripts.images import (
    ImageTooLargeError,
    UnreadableImageError,
    decode_image,
    pixel_hash,
)
from rmcl_hub.datasets_scripts.openpairs import load_openpairs


def encode(image, image_format):
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def picture():
    return Image.effect_noise((40, 30), 60).convert("RGB")


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_bytes_paths_and_pictures_decode_to_the_same_pixels(picture, image_format, tmp_path):
    data = encode(picture, image_format)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for image in (picture, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        assert decode_image(image).tobytes() == picture.tobytes()


def test_other_modes_become_rgb():
    assert decode_image(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_bytes_are_unreadable_wherever_they_are_cut(picture, image_format):
    data = encode(picture, image_format)
    for length in range(0, len(data) - 40, max(1, len(data) // 40)):
        with pytest.raises(UnreadableImageError, match="image 'set/7' cannot be read"):
            decode_image({"bytes": data[:length], "path": None}, "set/7")


def test_truncated_picture_of_the_set_is_unreadable():
    row = load_openpairs("captions", "test").cast_column("image", datasets.Image(decode=False))[0]
    half = {"bytes": row["image"]["bytes"][: len(row["image"]["bytes"]) // 2], "path": None}
    with pytest.raises(UnreadableImageError, match=row["image_id"]):
        decode_image(half, row["image_id"])


@pytest.mark.parametrize("missing", [None, {}, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_missing_pictures_are_unreadable(missing):
    with pytest.raises(UnreadableImageError, match="'a' cannot be read: it has neither bytes nor a path"):
        decode_image(missing, "a")


def test_missing_file_and_text_are_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode_image({"bytes": None, "path": str(tmp_path / "none.png")})
    with pytest.raises(UnreadableImageError, match="no known format"):
        decode_image({"bytes": b"<html>404</html>", "path": None})


def png_header(width, height):
    """A PNG that claims a size and holds next to no pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 50_000])  # below and above Pillow's own limit
def test_bombs_are_refused_before_decoding(side):
    with pytest.raises(ImageTooLargeError, match=r"image 'bomb'.*shrink it"):
        decode_image({"bytes": png_header(side, side), "path": None}, "bomb")


def test_limit_is_inclusive(picture):
    assert decode_image(picture, max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageTooLargeError, match="40 x 30 pixels, more than the limit of 1199"):
        decode_image(picture, max_pixels=1199)


def test_the_hash_is_of_size_and_pixels_not_of_the_file(picture):
    stored = decode_image({"bytes": encode(picture, "PNG"), "path": None})
    assert pixel_hash(stored) == pixel_hash(picture)
    other = picture.copy()
    other.putpixel((3, 4), tuple(255 - value for value in picture.getpixel((3, 4))))
    assert pixel_hash(other) != pixel_hash(picture)
    assert pixel_hash(Image.new("RGB", (4, 2))) != pixel_hash(Image.new("RGB", (2, 4)))
    assert pixel_hash(Image.new("L", (4, 2))) == pixel_hash(Image.new("RGB", (4, 2)))
