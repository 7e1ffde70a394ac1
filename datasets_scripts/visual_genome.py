"""Visual Genome (arXiv:1602.07332): phrases about regions of pictures."""

from collections.abc import Iterator
from typing import ClassVar

from .coco_captions import KARPATHY_ARCHIVE, KARPATHY_FILE, coco_files, val2014_ids
from .official_builder import OfficialBuilder, PublishedFile, clean_text
from .official_folder import OfficialFolder
from .schema import Row

_PICTURES = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_ANNOTATIONS = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"


class VisualGenome(OfficialBuilder):
    """108,077 pictures with 5,408,689 phrases in all; the phrase about each region is a caption.

    Files: `images.zip` and `images2.zip`, `image_data.json` and `region_descriptions.json` (or their `.zip`),
    and beside them a file that says which pictures are in COCO's val2014: Karpathy's `dataset_coco.json` or
    COCO's `captions_val2014.json` (or their archives). About half of Visual Genome is COCO's, and what is in
    val2014 (`coco_overlap`) must not be pre-trained on: VQAv2 and COCO retrieval are tested there. `train` is
    the rest.
    """

    task = "captions"
    splits = ("train", "coco_overlap")
    archives = (
        "images.zip",
        "images2.zip",
        "image_data.json.zip",
        "region_descriptions.json.zip",
        "caption_datasets.zip",
        "annotations_trainval2014.zip",
    )
    published: ClassVar = {
        "images.zip": PublishedFile(
            9731705982,
            "51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646",
            f"{_PICTURES}/images.zip",
        ),
        "images2.zip": PublishedFile(
            5471658058,
            "99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5",
            f"{_PICTURES}/images2.zip",
        ),
        "image_data.json.zip": PublishedFile(
            1780854,
            "b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a",
            f"{_ANNOTATIONS}/image_data.json.zip",
        ),
        "region_descriptions.json.zip": PublishedFile(url=f"{_ANNOTATIONS}/region_descriptions.json.zip"),
        "caption_datasets.zip": KARPATHY_ARCHIVE,
    }
    licence = "CC BY 4.0; pictures under the terms of their Flickr owners"
    homepage = "https://homes.cs.washington.edu/~ranjay/visualgenome"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether the pictures' data and the phrases are there; both splits are in the same files."""
        return folder.has("image_data.json") and folder.has("region_descriptions.json")

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per picture; `image_id` is Visual Genome's.

        Raises:
            FileNotFoundError: If a file is missing, also that with the pictures of val2014.
        """
        in_val2014 = _val2014_ids(folder)
        phrases: dict[int, list[str]] = {}
        for entry in folder.read_json("region_descriptions.json"):
            texts = (clean_text(region["phrase"]) for region in entry["regions"])
            phrases.setdefault(entry["id"], [text for text in texts if text])
        for image in folder.read_json("image_data.json"):
            if (image["coco_id"] in in_val2014) == (split == "coco_overlap"):
                image_id = str(image["image_id"])
                yield {
                    "image": "/".join(image["url"].split("/")[-2:]),
                    "image_id": image_id,
                    "captions": phrases.get(image["image_id"], []),
                    "concept": image_id,
                    "source": "visual_genome",
                }


def _val2014_ids(folder: OfficialFolder) -> set[int]:
    try:
        return val2014_ids(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder.root} does not say which pictures are in COCO's val2014, so pre-training could see the "
            f"test pictures of VQAv2 and of COCO retrieval. Put {KARPATHY_FILE}, {coco_files('val2014')[1]} "
            "or the archive of one of them beside Visual Genome's files."
        ) from error
