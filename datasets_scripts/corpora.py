"""All corpora by name, and one call that loads them from published files or from shards."""

import hashlib
from pathlib import Path
from typing import Any

import datasets

from .coco_captions import CocoCaptions
from .conceptual_captions import ConceptualCaptions
from .flickr30k import Flickr30k
from .official_builder import OfficialBuilder
from .sbu_captions import SbuCaptions
from .schema import FEATURES
from .shards import MANIFEST, PreparedCorpus
from .visual_genome import VisualGenome

CORPORA: dict[str, type[OfficialBuilder]] = {
    "coco_captions": CocoCaptions,
    "visual_genome": VisualGenome,
    "sbu_captions": SbuCaptions,
    "conceptual_captions": ConceptualCaptions,
    "flickr30k": Flickr30k,
}


def corpus_class(name: str) -> type[OfficialBuilder]:
    """Builder of a corpus.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in CORPORA:
        raise ValueError(f"There is no corpus {name!r}; choose one of {', '.join(CORPORA)}.")
    return CORPORA[name]


def load_corpus(
    location: str | Path,
    split: str,
    *,
    corpus: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split; streaming gives the same rows in the same order.

    Args:
        location: A folder of shards, `hf://datasets/<user>/<name>@<revision>`, or a folder of published files.
        split: One of the corpus's.
        corpus: Its name; needed for published files only.
        streaming: Return a `datasets.IterableDataset` instead of a `datasets.Dataset`.
        cache_dir: Where `datasets` keeps what it converts for map-style access.

    Returns:
        Rows with the columns of `schema.FEATURES` of the corpus's task.

    Raises:
        ValueError: If corpus or split do not exist.
        FileNotFoundError: If the files are not there.
    """
    if corpus is None or (Path(location) / MANIFEST).is_file():
        prepared = PreparedCorpus(str(location))
        return datasets.load_dataset(  # pyright: ignore[reportReturnType] - of a split: no dict
            "parquet",
            data_files=prepared.files(split),
            split="train",
            features=FEATURES[prepared.manifest.task],
            streaming=streaming,
            cache_dir=cache_dir,
        )
    builder_class = corpus_class(corpus)
    folder = builder_class.open(location)
    if split not in builder_class.splits or not builder_class.has_split(folder, split):
        builder_class.annotations(folder, split)  # says what is missing
    builder: Any = builder_class(
        data_dir=str(location), wanted=(split,), fingerprint=_fingerprint(Path(location)), cache_dir=cache_dir
    )
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _fingerprint(folder: Path) -> str:
    """Of names, sizes and times of the files at the top, as far as annotations and archives go."""
    stats = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
