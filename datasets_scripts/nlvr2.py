"""NLVR2 (arXiv:1811.00491): statements that are true or false of two photographs."""

from collections.abc import Iterator
from typing import ClassVar

from .json_lines import read_json_lines
from .official_builder import OfficialBuilder, SplitSize, clean_text
from .official_folder import OfficialFolder
from .schema import Row

_LABELS = {"true": True, "false": False}


class Nlvr2(OfficialBuilder):
    """Statements about picture pairs; each statement is asked of up to four pairs, true of some and false of
    others.

    Files: `train.json`, `dev.json` and `test1.json` of the repository (in `nlvr2/data/`, `data/`, or beside
    the pictures), and the pictures, which its makers send on request: `images/train/<directory>/`, and
    `images/dev/` and `images/test1/` or `dev/` and `test1/`, unpacked or in `train_img.zip`, `dev_img.zip`
    and `test1_img.zip`. The addresses in the annotations are partly dead, so pictures fetched from there give
    smaller splits.
    """

    task = "nlvr2"
    splits = ("train", "dev", "test1")
    archives = ("train_img.zip", "dev_img.zip", "test1_img.zip")
    documented: ClassVar = {
        "train": SplitSize(None, 86_373),
        "dev": SplitSize(None, 6_982),
        "test1": SplitSize(None, 6_967),
    }
    licence = "annotations CC BY 4.0; pictures for research only, under the terms of their owners"
    homepage = "https://lil.nlp.cornell.edu/nlvr/"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether its annotations are there."""
        return folder.has(*_annotation_names(split))

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per statement and pair; `concept` is the pair.

        `statement_type` is the same for all: what reasoning a statement asks for is annotated for a sample
        only, outside these files.

        Raises:
            ValueError: If a label is neither True nor False.
        """
        for entry in read_json_lines(folder, *_annotation_names(split)):
            identifier = entry["identifier"]
            pair = identifier.rpartition("-")[0]  # without the number of the statement about it
            place = _picture_folder(folder, split, entry, pair)
            yield {
                "left_image": f"{place}/{pair}-img0.png",
                "right_image": f"{place}/{pair}-img1.png",
                "identifier": identifier,
                "statement": clean_text(entry["sentence"]),
                "label": _label(entry),
                "statement_type": "statement",
                "concept": pair,
            }


def _annotation_names(split: str) -> list[str]:
    return [f"{place}{split}.json" for place in ("nlvr2/data/", "data/", "")]


def _picture_folder(folder: OfficialFolder, split: str, entry: Row, pair: str) -> str:
    """Where the pictures of a pair are: below `images/`, or at the top."""
    place = f"{split}/{entry['directory']}" if split == "train" else split
    return place if folder.has(f"{place}/{pair}-img0.png") else f"images/{place}"


def _label(entry: Row) -> bool:
    label = str(entry["label"]).lower()
    if label not in _LABELS:
        raise ValueError(
            f"The label of NLVR2 {entry['identifier']} is {entry['label']!r}; expected 'True' or 'False', as "
            "published."
        )
    return _LABELS[label]
