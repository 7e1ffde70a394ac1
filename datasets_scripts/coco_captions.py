"""COCO Captions (arXiv:1504.00325) in the 2014 edition, with Karpathy's splits."""

from collections.abc import Iterator
from typing import ClassVar

from .official_builder import OfficialBuilder, PublishedFile, SplitSize, clean_text
from .official_folder import OfficialFolder
from .schema import Row

KARPATHY_FILE = "dataset_coco.json"
KARPATHY_ARCHIVE = PublishedFile(
    36745453,
    "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
)
"""`caption_datasets.zip`, with the splits of COCO, Flickr30k and Flickr8k."""
_KARPATHY = {"train": "train", "restval": "restval", "validation": "val", "test": "test"}


class CocoCaptions(OfficialBuilder):
    """COCO 2014: about five captions a picture, in Karpathy's splits (arXiv:1412.2306).

    Files: `train2014.zip`, `val2014.zip`, and Karpathy's `dataset_coco.json` or the `caption_datasets.zip`
    that holds it. `train` is train2014; `restval`, `validation` and `test` divide val2014. Without Karpathy's
    file only `train` can be read, from COCO's `annotations_trainval2014.zip` or `captions_train2014.json`.
    """

    task = "captions"
    splits = ("train", "restval", "validation", "test")
    archives = ("train2014.zip", "val2014.zip", "caption_datasets.zip", "annotations_trainval2014.zip")
    published: ClassVar = {
        "train2014.zip": PublishedFile(
            13510573713,
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            "http://images.cocodataset.org/zips/train2014.zip",
        ),
        "val2014.zip": PublishedFile(
            6645013297,
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            "http://images.cocodataset.org/zips/val2014.zip",
        ),
        "annotations_trainval2014.zip": PublishedFile(
            252872794,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        ),
        "caption_datasets.zip": KARPATHY_ARCHIVE,
    }
    documented: ClassVar = {
        "train": SplitSize(82_783, 414_113),
        "restval": SplitSize(30_504, 152_634),
        "validation": SplitSize(5_000, 25_010),
        "test": SplitSize(5_000, 25_010),
    }
    licence = "annotations CC BY 4.0; pictures under the terms of their Flickr owners"
    homepage = "https://cocodataset.org"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether Karpathy's file is there, or for `train` COCO's own."""
        return folder.has(KARPATHY_FILE) or (split == "train" and folder.has(*coco_files("train2014")))

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per picture; `image_id` is COCO's."""
        if split == "train" and not folder.has(KARPATHY_FILE):
            yield from _train_from_coco(folder)
            return
        for entry in folder.read_json(KARPATHY_FILE)["images"]:
            if entry["split"] == _KARPATHY[split]:
                path = f"{entry['filepath']}/{entry['filename']}"
                yield _row(path, entry["cocoid"], [sentence["raw"] for sentence in entry["sentences"]])


def coco_files(year: str) -> tuple[str, str]:
    """Names of COCO's own captions of `train2014` or `val2014`: in their archive, and out of it."""
    return f"annotations/captions_{year}.json", f"captions_{year}.json"


def val2014_ids(folder: OfficialFolder) -> set[int]:
    """COCO's ids of all pictures in val2014, which VQAv2 and Karpathy's splits test on.

    Raises:
        FileNotFoundError: If neither Karpathy's file nor COCO's own is in the folder.
    """
    if folder.has(KARPATHY_FILE):
        images = folder.read_json(KARPATHY_FILE)["images"]
        return {image["cocoid"] for image in images if image["filepath"] == "val2014"}
    return {image["id"] for image in folder.read_json(*coco_files("val2014"))["images"]}


def _train_from_coco(folder: OfficialFolder) -> Iterator[Row]:
    content = folder.read_json(*coco_files("train2014"))
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for image in content["images"]:
        yield _row(f"train2014/{image['file_name']}", image["id"], captions.get(image["id"], []))


def _row(path: str, image_id: int, captions: list[str]) -> Row:
    return {
        "image": path,
        "image_id": str(image_id),
        "captions": [text for text in (clean_text(caption) for caption in captions) if text],
        "concept": str(image_id),
        "source": "coco",
    }
