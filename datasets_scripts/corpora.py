"""All corpora by name, and one call that loads them from published files or from shards."""

import difflib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import datasets
from datasets.exceptions import DatasetGenerationError

from .coco_captions import CocoCaptions
from .conceptual_captions import ConceptualCaptions
from .flickr30k import Flickr30k
from .nlvr2 import Nlvr2
from .official_builder import OfficialBuilder
from .sbu_captions import SbuCaptions
from .schema import FEATURES
from .shards import MANIFEST, PreparedCorpus
from .snli_ve import SnliVe
from .visual_genome import VisualGenome
from .vqav2 import Vqav2
from .webdataset_builder import WebDatasetBuilder

CORPORA: dict[str, type[OfficialBuilder]] = {
    "coco_captions": CocoCaptions,
    "visual_genome": VisualGenome,
    "sbu_captions": SbuCaptions,
    "conceptual_captions": ConceptualCaptions,
    "flickr30k": Flickr30k,
    "vqav2": Vqav2,
    "nlvr2": Nlvr2,
    "snli_ve": SnliVe,
}


def corpus_class(name: str) -> type[OfficialBuilder]:
    """Builder of a corpus.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in CORPORA:
        nearest = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(CORPORA)}."
        raise ValueError(f"There is no corpus {name!r}; {hint}")
    return CORPORA[name]


def load_corpus(
    location: str | Path,
    split: str,
    corpus: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split; streaming gives the same rows in the same order.

    Args:
        location: A folder of shards, `hf://datasets/<user>/<name>@<commit>`, or a folder of published files.
            A folder with a manifest is one of shards.
        split: One of the corpus's.
        corpus: Its name; needed for published files, and checked against the manifest of shards.
        streaming: Return a `datasets.IterableDataset` instead of a `datasets.Dataset`.
        cache_dir: Where `datasets` keeps what it converts for map-style access.

    Returns:
        Rows with the columns of `schema.FEATURES` of the corpus's task.

    Raises:
        ValueError: If corpus or split do not exist, or the shards are another corpus's.
        FileNotFoundError: If the files are not there.
        OSError: If a file is cut off or damaged. Damage that does not change a shard's size shows when a
            stream comes to it; `rmcl-hub data check` finds it before.
    """
    published = corpus is not None and not str(location).startswith("hf://")
    if published and not (Path(location) / MANIFEST).is_file():
        return _load_published(Path(location), split, corpus_class(str(corpus)), streaming, cache_dir)
    prepared = PreparedCorpus(str(location))
    if corpus not in (None, prepared.manifest.corpus):
        raise ValueError(
            f"{location} holds {prepared.manifest.corpus}, not {corpus}; give the folder of {corpus}."
        )
    prepared.check_files(split)
    what, remedy = f"{location} ({split})", " `rmcl-hub data check` names the damaged shards."
    with _explain_damage(what, remedy):
        dataset = _load_prepared(prepared, split, streaming, cache_dir)
    rows = sum(shard.rows for shard in prepared.split(split).shards)
    if not streaming and len(cast(Any, dataset)) != rows:  # datasets 4 takes a file of zeros for an empty tar
        raise OSError(f"{what} gives {len(cast(Any, dataset)):,} rows instead of {rows:,}.{remedy}")
    return dataset


def _load_prepared(
    prepared: PreparedCorpus, split: str, streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    manifest = prepared.manifest
    if manifest.format == "webdataset":
        builder: Any = WebDatasetBuilder(
            task=manifest.task,
            split=split,
            addresses=tuple(prepared.files(split)),
            checksums=tuple(shard.sha256 for shard in prepared.split(split).shards),
            cache_dir=cache_dir,
        )
        return _built(builder, split, streaming)
    return datasets.load_dataset(  # pyright: ignore[reportReturnType] - of a split: no dict
        "parquet",
        data_files={split: prepared.files(split)},
        split=split,
        features=FEATURES[manifest.task],
        streaming=streaming,
        cache_dir=cache_dir,
    )


def _load_published(
    root: Path, split: str, builder_class: type[OfficialBuilder], streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    folder = builder_class.open(root)
    if split not in builder_class.splits or not builder_class.has_split(folder, split):
        builder_class.annotations(folder, split)  # says what is missing
    builder: Any = builder_class(
        data_dir=str(root), wanted=(split,), fingerprint=_fingerprint(root), cache_dir=cache_dir
    )
    with _explain_damage(f"{root} ({split})"):
        return _built(builder, split, streaming)


def _built(builder: Any, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


@contextmanager
def _explain_damage(what: str, remedy: str = "") -> Iterator[None]:
    try:
        yield
    except DatasetGenerationError as error:
        raise OSError(f"{what} cannot be read: {error.__cause__ or error}.{remedy}") from error


def _fingerprint(root: Path) -> str:
    """Of names, sizes and times of all files but pictures, which are too many; of these the names."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            digest.update(f"\n{path.relative_to(root)}".encode())
            if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
                digest.update(f" {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
