"""What one shard holds: counts, lengths of texts, and hashes in place of its pictures."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .images import ImageTooLargeError, UnreadableImageError, decode_image, pixel_hash
from .schema import ID_COLUMNS, Row, image_columns, texts_of
from .shards import Shard, ShardFormat, missing_shard, open_address, read_shard

_SOURCES = {"vqav2": "coco", "snli_ve": "flickr30k"}
"""Whose image ids the corpora have that do not say it in a column `source`."""


@dataclass(frozen=True)
class ReadingJob:
    """A shard to read.

    Attributes:
        corpus: Its name.
        task: Names the columns.
        shard_format: How it is stored.
        address: Where it is.
        shard: What the manifest says of it.
        tokenizer: Folder of the tokenizer that measures texts; None: the packaged vocabulary.
    """

    corpus: str
    task: str
    shard_format: ShardFormat
    address: str
    shard: Shard
    tokenizer: str | None


@dataclass
class ShardContent:
    """What was found in a shard, or by `add` in several.

    Attributes:
        rows: Number of rows.
        texts: Number of texts.
        pieces: Sum of the texts' lengths in word pieces, special tokens excluded.
        squared_pieces: Sum of the squares of these lengths.
        pictures: 16 bytes of the `pixel_hash` of each distinct picture.
        image_ids: `<source>:<image id>` of each picture.
        problems: Sentences that say what is damaged.
    """

    rows: int = 0
    texts: int = 0
    pieces: int = 0
    squared_pieces: int = 0
    pictures: set[bytes] = field(default_factory=set)
    image_ids: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "ShardContent") -> None:
        """Take in what another shard holds."""
        self.rows += other.rows
        self.texts += other.texts
        self.pieces += other.pieces
        self.squared_pieces += other.squared_pieces
        self.pictures |= other.pictures
        self.image_ids |= other.image_ids
        self.problems += other.problems


def read_content(job: ReadingJob) -> ShardContent:
    """Decode every picture and measure every text of a shard; damage is reported, never raised."""
    content = ShardContent()
    try:
        if _checksum(job.address) != job.shard.sha256:
            content.problems.append(f"{job.address} has another checksum than its manifest says.")
        pictures = _Pictures()
        for row in read_shard(job.address, job.task, job.shard_format):
            _read_row(job, row, pictures, content)
    except OSError as error:
        content.problems.append(str(error))
    else:
        if content.rows != job.shard.rows:
            content.problems.append(
                f"{job.address} holds {content.rows:,} rows, but its manifest says {job.shard.rows:,}."
            )
    return content


@lru_cache(maxsize=1)
def load_tokenizer(folder: str | None) -> Any:
    """The tokenizer of a folder, or that of the packaged vocabulary."""
    from transformers import (
        AutoTokenizer,
        BertTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue] - an alias in transformers 5
    )

    from .vocabulary import vocabulary_path

    if folder is None:
        return BertTokenizerFast(str(vocabulary_path()))
    return AutoTokenizer.from_pretrained(folder)


class _Pictures(dict[bytes, bytes]):
    """Pixel hashes by the hash of the file: questions about one picture need it decoded once."""

    def pixel_hash(self, picture: dict[str, Any], row_id: str) -> bytes:
        key = hashlib.sha256(picture["bytes"] or b"").digest()
        if key not in self:
            self[key] = bytes.fromhex(pixel_hash(decode_image(picture, row_id)))[:16]
        return self[key]


def _read_row(job: ReadingJob, row: Row, pictures: _Pictures, content: ShardContent) -> None:
    content.rows += 1
    texts = texts_of(job.task, row)
    if texts:
        encoded = load_tokenizer(job.tokenizer)(texts, add_special_tokens=False, verbose=False)
        lengths = [len(pieces) for pieces in encoded["input_ids"]]
        content.texts += len(lengths)
        content.pieces += sum(lengths)
        content.squared_pieces += sum(length**2 for length in lengths)
    if "image_id" in row:
        source = row.get("source") or _SOURCES.get(job.corpus, job.corpus)
        content.image_ids.add(f"{source}:{row['image_id']}")
    row_id = row[ID_COLUMNS[job.task]]
    for column in image_columns(job.task):
        try:
            content.pictures.add(pictures.pixel_hash(row[column], row_id))
        except (UnreadableImageError, ImageTooLargeError) as error:
            content.problems.append(f"{job.address}: {error}")


def _checksum(address: str) -> str:
    digest = hashlib.sha256()
    try:
        with open_address(address) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise missing_shard(address) from error
    return digest.hexdigest()
