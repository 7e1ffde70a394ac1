"""Prepared corpora: Parquet shards with a manifest, on disk or on the Hub.

A folder holds `manifest.json` and `data/<split>-00000-of-00010.parquet`, ...: `datasets.load_dataset` reads it, too.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec
import pyarrow.parquet as pq

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One Parquet file, by its path in the corpus's folder."""

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
    """What a prepared corpus is."""

    corpus: str
    task: str
    version: str
    licence: str
    splits: dict[str, SplitManifest] = field(default_factory=dict)

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
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{MANIFEST} is not that of a prepared corpus ({error}); prepare it again."
            ) from error


class PreparedCorpus:
    """A folder of shards, on disk or on the Hub at a pinned revision.

    Args:
        location: A folder, or `hf://datasets/<user>/<name>@<revision>`.

    Raises:
        ValueError: If a Hub address names no revision: what a branch holds moves, and results with it.
        FileNotFoundError: If there is no manifest.
    """

    def __init__(self, location: str) -> None:
        self.location = str(location).rstrip("/")
        if self.location.startswith("hf://") and not re.search(r"@[^/]+$", self.location):
            raise ValueError(
                f"{self.location} names no revision, so its rows could change under a result; append "
                "@<commit>, which the repository's history shows."
            )
        try:
            with fsspec.open(f"{self.location}/{MANIFEST}", "rt", encoding="utf-8") as stream:
                self.manifest = Manifest.from_json(stream.read())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.location} holds no {MANIFEST}, so it is no prepared corpus; make one with `rmcl-hub data "
                "prepare`."
            ) from error

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


def open_shard(address: str) -> pq.ParquetFile:
    """A shard, wherever it is.

    Raises:
        FileNotFoundError: If it is missing.
        OSError: If it is cut off or damaged.
    """
    try:
        return pq.ParquetFile(fsspec.open(address, "rb").open())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Shard {address} is missing; prepare the corpus again, or fetch it."
        ) from error
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise unreadable_shard(address, error) from error


def unreadable_shard(address: str, error: Exception) -> OSError:
    """The error that says which shard is damaged, and what to do."""
    return OSError(
        f"Shard {address} cannot be read ({error}): half-written or damaged. Remove it and run `rmcl-hub data prepare` "
        "again; finished shards are kept."
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
