"""What the corpora share: `datasets` builders that read the published files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa

from .images import ImageTooLargeError, UnreadableImageError, decode_image
from .official_folder import MissingPictureError, OfficialFolder, is_safe_path
from .schema import FEATURES, ID_COLUMNS, Row, image_columns, texts_of, to_tables

NUM_PARTS = 8
"""Streams are cut into this many parts, so that data loader workers and processes can share them."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a corpus as its makers publish it.

    Attributes:
        size: In bytes; None where we do not know it for certain.
        sha256: Likewise.
        url: Where it is published.
    """

    size: int | None = None
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class SplitSize:
    """Documented size of a split: pictures, if that is documented, and texts (captions, questions, ...)."""

    images: int | None
    texts: int


@dataclass
class OfficialConfig(datasets.BuilderConfig):
    """Which published files, and which splits of them.

    Attributes:
        wanted: Splits to read; None: all whose annotations are in the folder.
        fingerprint: Of the folder's files, so that changed files are not answered from the cache.
    """

    wanted: tuple[str, ...] | None = None
    fingerprint: str = ""


class OfficialBuilder(datasets.ArrowBasedBuilder):
    """A corpus in its published files; subclasses say where things are and how a row is read.

    `load_corpus` builds it. The rows are those of `FEATURES[task]`, in a fixed order, and the same map-style
    and streaming. Rows that cannot be used are left out and counted by reason.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = OfficialConfig
    config: OfficialConfig

    task: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    """Disjoint parts; protocols say which of them train and which test."""
    archives: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[str, PublishedFile]] = {}
    documented: ClassVar[Mapping[str, SplitSize]] = {}
    """By split, or by several joined with a + where only their sum is documented."""
    licence: ClassVar[str]
    homepage: ClassVar[str]

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether the annotations of a split are in the folder."""
        raise NotImplementedError

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """Rows of a split as annotated: pictures as their path in the corpus, texts as they are."""
        raise NotImplementedError

    @classmethod
    def order(cls, row: Row) -> tuple[bytes, str] | str:
        """What rows are sorted by: a hash, which mixes whatever order they are published in.

        Rows about one picture stay together, so that a shard stores it once.
        """
        return hashlib.sha1(row["concept"].encode()).digest(), row[ID_COLUMNS[cls.task]]

    @classmethod
    def extra_files(cls, folder: OfficialFolder) -> Mapping[str, str]:
        """Files to lay beside the shards, by name: their text."""
        return {}

    @classmethod
    def open(cls, root: str | Path) -> OfficialFolder:
        """The folder of published files."""
        return OfficialFolder(root, cls.archives)

    @classmethod
    def annotations(cls, folder: OfficialFolder, split: str) -> list[Row]:
        """Rows without pictures, in the corpus's fixed order; unusable ones go to `folder.dropped`.

        Raises:
            ValueError: If the corpus has no such split, or an annotation lacks a published field.
            FileNotFoundError: If its annotations are not in the folder.
        """
        if split not in cls.splits:
            raise ValueError(f"{cls.__name__} has no split {split!r}; choose one of {', '.join(cls.splits)}.")
        rows: dict[str, Row] = {}
        for row in cls._read_published_rows(folder, split):
            reason = _why_unusable(cls.task, row, rows)
            if reason:
                folder.dropped[reason] += 1
            else:
                rows[row[ID_COLUMNS[cls.task]]] = row
        return sorted(rows.values(), key=cls.order)

    @classmethod
    def _read_published_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        try:
            yield from cls.read_rows(folder, split)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The annotations of {cls.__name__} {split} in {folder.root} have not the published fields "
                f"({type(error).__name__}: {error}); are they those of {cls.homepage}?"
            ) from error

    @classmethod
    def with_pictures(cls, folder: OfficialFolder, rows: Sequence[Row]) -> Iterator[Row]:
        """The rows with their pictures' bytes; those whose picture cannot be decoded are counted."""
        for row in rows:
            pictures = {}
            try:
                for column in image_columns(cls.task):
                    path = row[column]
                    pictures[column] = {"bytes": folder.read_picture(path), "path": path}
                    decode_image(pictures[column], path)
            except MissingPictureError:
                folder.dropped["missing picture"] += 1
            except (UnreadableImageError, ImageTooLargeError):
                folder.dropped["unreadable picture"] += 1
            else:
                yield {**row, **pictures}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=FEATURES[self.task],
            homepage=self.homepage,
            license=self.licence,
            description=self.__doc__ or "",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        root = self.config.data_dir
        if root is None:
            raise ValueError(f"{type(self).__name__} needs data_dir, the folder with the published files.")
        folder = self.open(root)
        wanted = self.config.wanted or [split for split in self.splits if self.has_split(folder, split)]
        if not wanted:
            raise FileNotFoundError(
                f"{root} holds the annotations of none of the splits {', '.join(self.splits)} of "
                f"{type(self).__name__}; see {self.homepage} for the files."
            )
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "root": str(root),
                    "split": split,
                    "parts": [f"{part}/{NUM_PARTS}" for part in range(NUM_PARTS)],
                },
            )
            for split in wanted
        ]

    def _generate_tables(self, root: str, split: str, parts: list[str]) -> Iterator[tuple[Any, pa.Table]]:
        # Of examples `datasets` would drop the bytes of a picture whose path leads to a file from the current
        # folder.
        folder = self.open(root)
        rows = self.annotations(folder, split)
        for part in parts:
            index, count = (int(number) for number in part.split("/"))
            chunk = rows[len(rows) * index // count : len(rows) * (index + 1) // count]
            for place, table in enumerate(to_tables(self.task, self.with_pictures(folder, chunk))):
                yield (index, place), table


def clean_text(text: str) -> str:
    """A sentence on one line, without surrounding space."""
    return " ".join(text.split())


def _why_unusable(task: str, row: Row, seen: Mapping[str, Row]) -> str | None:
    if not all(is_safe_path(row[column]) for column in image_columns(task)):
        return "picture outside the folder"
    if not any(text.strip() for text in texts_of(task, row)):
        return "no text"
    if row[ID_COLUMNS[task]] in seen:
        return "duplicate id"
    return None
