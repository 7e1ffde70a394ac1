"""Decoding of stored pictures that names what is wrong with a bad one; the hash of its pixels."""

import hashlib
import io
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000
# What Pillow raises on damaged files of its common formats (found by flipping and cutting bytes).
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError)


class UnreadableImageError(ValueError):
    """A picture is missing or its bytes are not a picture."""


class ImageTooLargeError(ValueError):
    """A picture has more pixels than the limit against decompression bombs."""


def decode_image(image: Any, image_id: str = "?", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one example's picture to RGB.

    Args:
        image: A PIL picture, or what `datasets.Image(decode=False)` gives: `{"bytes": ..., "path": ...}`.
        image_id: Named in errors.
        max_pixels: Width times height allowed; checked before any pixel is decoded.

    Raises:
        UnreadableImageError: If there is no picture or it cannot be decoded.
        ImageTooLargeError: If it is larger than `max_pixels`.
    """
    try:
        picture = image if isinstance(image, Image.Image) else Image.open(_source(image))
    except Image.DecompressionBombError as error:  # Pillow's own limit, above 178 million pixels
        raise ImageTooLargeError(f"image {image_id!r} is too large: {error}; shrink it.") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"image {image_id!r} cannot be read: its bytes are no known format."
        ) from error
    except _DECODING_ERRORS as error:
        raise UnreadableImageError(f"image {image_id!r} cannot be read: {error}") from error
    if picture.width * picture.height > max_pixels:
        raise ImageTooLargeError(
            f"image {image_id!r} has {picture.width} x {picture.height} pixels, more than the limit of "
            f"{max_pixels}; shrink it, or raise max_pixels if you trust the file."
        )
    try:
        return picture.convert("RGB")
    except _DECODING_ERRORS as error:
        raise UnreadableImageError(f"image {image_id!r} cannot be read: {error}") from error


def pixel_hash(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels: equal for the same picture, however it is stored."""
    picture = picture.convert("RGB")
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def _source(image: Any) -> IO[bytes] | Path:
    if image and image.get("bytes"):
        return io.BytesIO(image["bytes"])
    if image and image.get("path"):
        return Path(image["path"])
    raise OSError("it has neither bytes nor a path")
