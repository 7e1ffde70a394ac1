"""SNLI-VE (arXiv:1901.06706): does a photograph of Flickr30k entail a sentence, contradict it, or neither?"""

from collections.abc import Iterator
from typing import ClassVar

from .flickr30k import PICTURES
from .json_lines import read_json_lines
from .official_builder import OfficialBuilder, SplitSize, clean_text
from .official_folder import OfficialFolder
from .schema import ENTAILMENT_LABELS, Row

_NO_LABEL = "-"  # in SNLI, where the annotators found no majority


class SnliVe(OfficialBuilder):
    """SNLI's hypotheses, with the picture in the place of the caption that was SNLI's premise.

    Files: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl`, and Flickr30k's pictures in
    `flickr30k-images/` or `flickr30k-images.tar`. The premise (`sentence1`) is a caption of the picture and
    is left out: with it the task is SNLI, and can be solved without looking.

    What to know before a number is quoted. The splits share no picture with each other, but they are those of
    Flickr30k Entities, not Karpathy's: a model that has trained on Flickr30k's captions, by Karpathy's list
    or any other, may have seen the test pictures with the very sentences that the labels were derived from.
    The labels are SNLI's and were given without the picture: the makers found 9 % of a sample wrong, mostly
    neutral ones, and arXiv:2004.03744 publishes corrections, which are not used here.
    """

    task = "snli_ve"
    splits = ("train", "dev", "test")
    archives = ("flickr30k-images.tar",)
    documented: ClassVar = {
        "train": SplitSize(29_783, 529_527),
        "dev": SplitSize(1_000, 17_858),
        "test": SplitSize(1_000, 17_901),
    }
    licence = "annotations CC BY-SA 4.0 as SNLI's; pictures for non-commercial research and education"
    homepage = "https://github.com/necla-ml/SNLI-VE"

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether its annotations are there."""
        return folder.has(_annotations(split))

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per picture and hypothesis; those without a majority label are counted as left out.

        Raises:
            ValueError: If a label is unknown.
        """
        for entry in read_json_lines(folder, _annotations(split)):
            label = entry["gold_label"]
            if label == _NO_LABEL:
                folder.dropped["no majority label"] += 1
                continue
            if label not in ENTAILMENT_LABELS:
                raise ValueError(
                    f"gold_label of SNLI-VE pair {entry['pairID']} is {label!r}; expected "
                    f"{', '.join(ENTAILMENT_LABELS)} or {_NO_LABEL!r}."
                )
            image_id = str(entry["Flickr30K_ID"])
            yield {
                "image": f"{PICTURES}/{image_id}.jpg",
                "image_id": image_id,
                "pair_id": entry["pairID"],
                "hypothesis": clean_text(entry["sentence2"]),
                "label": ENTAILMENT_LABELS.index(label),
                "concept": image_id,
            }


def _annotations(split: str) -> str:
    return f"snli_ve_{split}.jsonl"
