"""VQAv2 (arXiv:1612.00837): questions about COCO's photographs with ten answers each."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from .coco_captions import CocoCaptions
from .official_builder import OfficialBuilder, PublishedFile, SplitSize, clean_text
from .official_folder import OfficialFolder
from .schema import Row
from .vqa_answer_text import build_answer_vocabulary, soft_scores

logger = logging.getLogger(__name__)

HELD_OUT_PICTURES = 1000
"""Pictures whose questions make `train_dev` and `rest_val`; a tenth of all where that is fewer."""
ANSWERS_FILE = "answers.json"
NOT_PUBLISHED = "not published"
"""`question_type` of the test splits, whose annotations the evaluation server keeps."""

# Split: questions, their pictures, and whether it has the held-out pictures (None: all).
_PARTS: Mapping[str, tuple[str, str, bool | None]] = {
    "train_fit": ("train2014", "train2014", False),
    "train_dev": ("train2014", "train2014", True),
    "trainable_val": ("val2014", "val2014", False),
    "rest_val": ("val2014", "val2014", True),
    "test": ("test2015", "test2015", None),
    "test_dev": ("test-dev2015", "test2015", None),
}
_SOURCE = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
_PACKED = (
    "v2_Questions_Train_mscoco.zip",
    "v2_Questions_Val_mscoco.zip",
    "v2_Questions_Test_mscoco.zip",
    "v2_Annotations_Train_mscoco.zip",
    "v2_Annotations_Val_mscoco.zip",
)


class Vqav2(OfficialBuilder):
    """Balanced open-ended questions, in disjoint splits.

    Files: the questions and annotations of train, val and test, as JSON or packed
    (`v2_Questions_Train_mscoco.zip`, ...), and COCO's pictures in `train2014.zip`, `val2014.zip` and
    `test2015.zip`.

    `train_fit` and `train_dev` divide train, `trainable_val` and `rest_val` val: `train_dev` and `rest_val`
    are all questions about 1,000 pictures, those whose ids have the lowest SHA-1. (ViLT's `rest_val`, which
    the thesis uses, are as many pictures, but the last of its files.) `test_dev` is the server's test-dev of
    107,394 questions, and `test` only the rest of its test, so that no question is in two splits: an answer
    file for the whole test has both. The test splits have no answers.
    """

    task = "vqa"
    splits = tuple(_PARTS)
    archives = ("train2014.zip", "val2014.zip", "test2015.zip", *_PACKED)
    published: ClassVar = {
        "train2014.zip": CocoCaptions.published["train2014.zip"],
        "val2014.zip": CocoCaptions.published["val2014.zip"],
        "test2015.zip": PublishedFile(url="http://images.cocodataset.org/zips/test2015.zip"),
        **{name: PublishedFile(url=_SOURCE + name) for name in _PACKED},
    }
    # Documented are train, val and test, not our parts of them.
    documented: ClassVar = {
        "train_fit+train_dev": SplitSize(82_783, 443_757),
        "trainable_val+rest_val": SplitSize(40_504, 214_354),
        "test+test_dev": SplitSize(81_434, 447_793),
    }
    licence = "questions and answers CC BY 4.0; pictures under the terms of their Flickr owners"
    homepage = "https://visualqa.org"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether its questions are there, and its answers if they are published; `test` needs test-dev."""
        source = _PARTS[split][0]
        needed = [_questions(source)]
        if split == "test":
            needed.append(_questions("test-dev2015"))
        elif split != "test_dev":
            needed.append(_annotations(source))
        return all(folder.has(name) for name in needed)

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per question; `answers` are distinct, in the order in which annotators gave them first.

        Questions without an annotation, if answers are published at all, are counted as left out.
        """
        source, year, held_out = _PARTS[split]
        questions = folder.read_json(_questions(source))["questions"]
        if held_out is None:
            taken = _question_ids(folder, "test-dev2015") if split == "test" else frozenset()
            yield from (_row(entry, year) for entry in questions if entry["question_id"] not in taken)
            return
        pictures = held_out_pictures([entry["image_id"] for entry in questions])
        chosen = [entry for entry in questions if (entry["image_id"] in pictures) == held_out]
        annotations = {
            annotation["question_id"]: annotation
            for annotation in folder.read_json(_annotations(source))["annotations"]
        }
        for entry in chosen:
            annotation = annotations.get(entry["question_id"])
            if annotation is None:
                folder.dropped["no annotation"] += 1
            else:
                yield _row(entry, year, annotation)

    @classmethod
    def extra_files(cls, folder: OfficialFolder) -> Mapping[str, str]:
        """`answers.json`: the answers that a model chooses among, in the order of its logits.

        They are made by the usual rule, from train and val together, which gives the 3,129 answers of ViLT
        and of most published heads. So in the clean protocol, which tests on val, the list has seen which
        answers are frequent there. No question, picture or weight comes with it, and a list from train alone
        would have fewer classes, hence numbers that compare with nobody's. Without both annotations there is
        no list.
        """
        names = [_annotations(year) for year in ("train2014", "val2014")]
        if missing := [name for name in names if not folder.has(name)]:
            logger.warning("No %s, because %s is missing.", ANSWERS_FILE, " and ".join(missing))
            return {}
        most_frequent = (
            annotation["multiple_choice_answer"]
            for name in names
            for annotation in folder.read_json(name)["annotations"]
        )
        vocabulary = build_answer_vocabulary(most_frequent)
        return {ANSWERS_FILE: json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n"}


def held_out_pictures(image_ids: Sequence[int]) -> frozenset[int]:
    """Pictures that are kept for validation: the lowest by SHA-1 of their id.

    Args:
        image_ids: COCO ids of all pictures, repeated or not.

    Returns:
        `HELD_OUT_PICTURES` ids, or a tenth of all, rounded down, if that is fewer, but at least one.
    """
    distinct = set(image_ids)
    count = max(1, min(HELD_OUT_PICTURES, len(distinct) // 10))
    return frozenset(
        sorted(distinct, key=lambda image_id: hashlib.sha1(str(image_id).encode()).digest())[:count]
    )


def _row(question: Mapping[str, Any], year: str, annotation: Mapping[str, Any] | None = None) -> Row:
    image_id = question["image_id"]
    scores = {} if annotation is None else soft_scores([entry["answer"] for entry in annotation["answers"]])
    return {
        "image": f"{year}/COCO_{year}_{image_id:012d}.jpg",
        "image_id": str(image_id),
        "question_id": str(question["question_id"]),
        "question": clean_text(question["question"]),
        "question_type": NOT_PUBLISHED if annotation is None else annotation["answer_type"],
        "answers": list(scores),
        "scores": list(scores.values()),
        "concept": str(image_id),
    }


def _question_ids(folder: OfficialFolder, source: str) -> frozenset[int]:
    return frozenset(entry["question_id"] for entry in folder.read_json(_questions(source))["questions"])


def _questions(source: str) -> str:
    return f"v2_OpenEnded_mscoco_{source}_questions.json"


def _annotations(source: str) -> str:
    return f"v2_mscoco_{source}_annotations.json"
