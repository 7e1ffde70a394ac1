"""Flickr30k (Young et al., TACL 2014) in Karpathy's splits."""

from collections.abc import Iterator
from typing import ClassVar

from .coco_captions import KARPATHY_ARCHIVE
from .official_builder import OfficialBuilder, SplitSize, clean_text
from .official_folder import OfficialFolder
from .schema import Row

ANNOTATIONS = "dataset_flickr30k.json"
PICTURES = "flickr30k-images"
_KARPATHY = {"train": "train", "validation": "val", "test": "test"}


class Flickr30k(OfficialBuilder):
    """Five captions a picture, in Karpathy's splits (arXiv:1412.2306).

    Files: the folder `flickr30k-images`, which its makers send on request, or `flickr30k-images.tar` (a
    `.tar.gz` must be unpacked), and Karpathy's `dataset_flickr30k.json` or the `caption_datasets.zip` that
    holds it.
    """

    task = "captions"
    splits = ("train", "validation", "test")
    archives = ("flickr30k-images.tar", "caption_datasets.zip")
    published: ClassVar = {"caption_datasets.zip": KARPATHY_ARCHIVE}
    documented: ClassVar = {
        "train": SplitSize(29_000, 145_000),
        "validation": SplitSize(1_014, 5_070),
        "test": SplitSize(1_000, 5_000),
    }
    licence = "for non-commercial research and education; pictures under the terms of their Flickr owners"
    homepage = "https://shannon.cs.illinois.edu/DenotationGraph/"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether Karpathy's file is there."""
        return folder.has(ANNOTATIONS)

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per picture; `image_id` is its file name without the ending."""
        for entry in folder.read_json(ANNOTATIONS)["images"]:
            if entry["split"] == _KARPATHY[split]:
                image_id = entry["filename"].removesuffix(".jpg")
                captions = [clean_text(sentence["raw"]) for sentence in entry["sentences"]]
                yield {
                    "image": f"{PICTURES}/{entry['filename']}",
                    "image_id": image_id,
                    "captions": [caption for caption in captions if caption],
                    "concept": image_id,
                    "source": "flickr30k",
                }
