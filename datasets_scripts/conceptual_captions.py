"""Conceptual Captions (Sharma et al., ACL 2018): pictures of the web with their cleaned alt texts."""

from pathlib import Path
from typing import ClassVar

from .official_builder import SplitSize
from .url_corpus import UrlCorpus

_PUBLISHED = {"train": "Train_GCC-training.tsv", "validation": "Validation_GCC-1.1.0-Validation.tsv"}


class ConceptualCaptions(UrlCorpus):
    """3.3 million addresses (CC3M), many of them dead by now: the thesis had 2.68 million pictures.

    Files: the shards that img2dataset made of `Train_GCC-training.tsv`, in `train`, and of
    `Validation_GCC-1.1.0-Validation.tsv`, in `validation`.
    """

    splits = ("train", "validation")
    documented: ClassVar = {
        "train": SplitSize(3_318_333, 3_318_333),
        "validation": SplitSize(15_840, 15_840),
    }
    url_lists: ClassVar = {split: f"{split}.tsv" for split in _PUBLISHED}
    list_options = "--input_format tsv --url_col url --caption_col caption"
    source = "conceptual_captions"
    licence = "free for any purpose, with acknowledgement of Google; pictures under the terms of their owners"
    homepage = "https://ai.google.com/research/ConceptualCaptions"

    @classmethod
    def fetch_command(cls, root: Path, split: str) -> str:
        """The published lists have no header, which img2dataset takes the names of the columns from."""
        add_header = rf"printf 'caption\turl\n' | cat - {_PUBLISHED[split]} > {cls.url_lists[split]}"
        return f"{add_header}\n  {super().fetch_command(root, split)}"
