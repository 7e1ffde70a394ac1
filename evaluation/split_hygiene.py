"""Whether an image is in both of two data sets, by its id and by its pixels."""

from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from tqdm.auto import tqdm

from rmcl_hub.datasets_scripts.images import decode_image, pixel_hash

IMAGE_COLUMNS = ("image", "left_image", "right_image")
ID_COLUMNS = ("image_id",)


class Overlap(TypedDict):
    """What two data sets share.

    Attributes:
        num_train_images: Distinct pictures in the first.
        num_test_images: Distinct pictures in the second.
        same_pixels: Distinct pictures of the second that are in the first, pixel by pixel. A picture stored
            again at another size or quality is another one: near duplicates are not looked for.
        same_ids: Image ids that are in both.
        how: What was compared with what, where it is not all pictures by their pixels (`file_overlap`).
    """

    num_train_images: int
    num_test_images: int
    same_pixels: int
    same_ids: int
    how: NotRequired[str]


def image_overlap(train: Iterable[dict[str, Any]], test: Iterable[dict[str, Any]]) -> Overlap:
    """Compare all pictures of two data sets (every image column of their rows).

    Raises:
        ValueError: If the rows have no image column.
    """
    train_pixels, train_ids = _fingerprints(train, "train images")
    test_pixels, test_ids = _fingerprints(test, "test images")
    return {
        "num_train_images": len(train_pixels),
        "num_test_images": len(test_pixels),
        "same_pixels": len(train_pixels & test_pixels),
        "same_ids": len(train_ids & test_ids),
    }


def _fingerprints(rows: Iterable[dict[str, Any]], description: str) -> tuple[set[str], set[str]]:
    pixels: set[str] = set()
    ids: set[str] = set()
    for row in tqdm(rows, desc=description, unit="row"):
        columns = [name for name in IMAGE_COLUMNS if name in row]
        if not columns:
            raise ValueError(
                f"rows have none of the image columns {', '.join(IMAGE_COLUMNS)}, only {sorted(row)}; rename "
                "the column to compare the pictures of train and test."
            )
        for name in columns:
            picture = decode_image(row[name], row.get("image_id", "?"))
            pixels.add(pixel_hash(picture))
        ids |= {str(row[name]) for name in ID_COLUMNS if name in row}
    return pixels, ids
