"""Prepared corpora: shards with a manifest, on disk or on the Hub.

A folder holds `manifest.json`, a dataset card, and `data/<split>-00000-of-00010.parquet` (or `.tar`), ...:
`datasets.load_dataset` reads it, too.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

import fsspec
import pyarrow.parquet as pq

from .schema import Row
from .webdataset_shards import read_samples

MANIFEST = "manifest.json"
ShardFormat = Literal["parquet", "webdataset"]
SUFFIXES: dict[ShardFormat, str] = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True)
class Shard:
    """One file of rows, by its path in the corpus's folder."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class SplitManifest:
    """What a split holds, and how many rows were left out by reason when it was prepared."""

    rows: int
    images: int
    texts: int
    dropped: dict[str, int]
    shards: list[Shard]


@dataclass
class Manifest:
    """What a prepared corpus is.

    Attributes:
        corpus: Its name in `corpora.CORPORA`.
        task: Names the columns, `schema.FEATURES[task]`.
        version: Of its builder.
        licence: Of texts and pictures.
        splits: Those that are complete.
        format: Of the shards.
        checked: SHA-256 of the published archives that agreed with what is published.
    """

    corpus: str
    task: str
    version: str
    licence: str
    splits: dict[str, SplitManifest] = field(default_factory=dict)
    format: ShardFormat = "parquet"
    checked: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse it.

        Raises:
            ValueError: If it is no manifest.
        """
        try:
            content = json.loads(text)
            splits = {
                name: SplitManifest(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
                for name, split in content.pop("splits").items()
            }
            return cls(**content, splits=splits)
        except (AttributeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{MANIFEST} is not that of a prepared corpus ({error}); prepare it again."
            ) from error


class PreparedCorpus:
    """A folder of shards, on disk or on the Hub at a pinned revision.

    Args:
        location: A folder, or `hf://datasets/<user>/<name>@<commit>`.

    Raises:
        ValueError: If a Hub address names no commit: what branch or tag holds can change, results with it.
        FileNotFoundError: If there is no manifest.
    """

    def __init__(self, location: str) -> None:
        self.location = str(location).rstrip("/")
        if self.location.startswith("hf://") and not re.search(r"@[0-9a-f]{40}$", self.location):
            raise ValueError(
                f"{self.location} names no commit, so its rows could change under a result; append @ and the "
                "40 digits of a commit, which the repository's history shows."
            )
        try:
            with open_address(f"{self.location}/{MANIFEST}") as stream:
                self.manifest = Manifest.from_json(stream.read().decode("utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{self.location} holds no {MANIFEST}, so it is no prepared corpus; make one with `rmcl-hub "
                "data prepare`, or name the corpus whose published files these are."
            ) from error
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from error

    def split(self, name: str) -> SplitManifest:
        """A split's manifest.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.manifest.splits:
            raise ValueError(
                f"{self.location} ({self.manifest.corpus}) has no split {name!r}, only "
                f"{', '.join(self.manifest.splits) or 'none'}; prepare it with --splits {name}."
            )
        return self.manifest.splits[name]

    def files(self, split: str) -> list[str]:
        """Addresses of a split's shards."""
        return [f"{self.location}/{shard.file}" for shard in self.split(split).shards]

    def check_files(self, split: str) -> None:
        """See that all shards of a split are there in the size that the manifest tells; reads none of them.

        Raises:
            FileNotFoundError: If one is missing.
            OSError: If one has another size.
        """
        system, root = fsspec.core.url_to_fs(self.location)
        try:
            found = {entry["name"]: entry["size"] for entry in system.ls(f"{root}/data", detail=True)}
        except FileNotFoundError:
            found = {}
        sizes = {str(name).rpartition("/")[2]: size for name, size in found.items()}
        for shard, address in zip(self.split(split).shards, self.files(split), strict=True):
            size = sizes.get(shard.file.rpartition("/")[2])
            if size is None:
                raise missing_shard(address)
            if size != shard.bytes:
                raise unreadable_shard(address, f"it has {size:,} bytes instead of {shard.bytes:,}")


def open_address(address: str) -> IO[bytes]:
    """A file on disk or on the Hub, to read."""
    system, path = fsspec.core.url_to_fs(address)
    return system.open(path, "rb")


def open_shard(address: str) -> pq.ParquetFile:
    """A Parquet shard, wherever it is.

    Raises:
        FileNotFoundError: If it is missing.
        OSError: If it is cut off or damaged.
    """
    try:
        return pq.ParquetFile(open_address(address))
    except FileNotFoundError as error:
        raise missing_shard(address) from error
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise unreadable_shard(address, error) from error


def missing_shard(address: str) -> FileNotFoundError:
    """The error that says which shard is not there, and what to do."""
    return FileNotFoundError(
        f"Shard {address} is missing; fetch it, or run `rmcl-hub data prepare` again: the others are kept."
    )


def unreadable_shard(address: str, reason: Exception | str) -> OSError:
    """The error that says which shard is damaged, and what to do."""
    return OSError(
        f"Shard {address} cannot be read ({reason}): half-written or damaged. Remove it and run `rmcl-hub "
        "data prepare` again, or fetch it again: the other shards are kept."
    )


def read_row_group(
    address: str, shard: pq.ParquetFile, group: int, columns: list[str] | None = None
) -> list[dict[str, Any]]:
    """Rows of one row group, pictures as `{"bytes": ..., "path": ...}`.

    Raises:
        OSError: If it is damaged.
    """
    try:
        return shard.read_row_group(group, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise unreadable_shard(address, error) from error


def read_shard(address: str, task: str, shard_format: ShardFormat) -> Iterator[Row]:
    """All rows of a shard of either format, pictures as `{"bytes": ..., "path": ...}`, a few at a time.

    Raises:
        FileNotFoundError: If it is missing.
        OSError: If it is cut off or damaged.
    """
    if shard_format == "parquet":
        with open_shard(address) as shard:
            for group in range(shard.num_row_groups):
                yield from read_row_group(address, shard, group)
        return
    try:
        with open_address(address) as stream:
            yield from read_samples(stream, task)
    except FileNotFoundError as error:
        raise missing_shard(address) from error
    except (OSError, ValueError, KeyError) as error:
        raise unreadable_shard(address, error) from error
