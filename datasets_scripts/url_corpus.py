"""Corpora that are published as lists of addresses, in the folders into which img2dataset fetched them."""

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from .official_builder import OfficialBuilder, clean_text
from .official_folder import OfficialFolder
from .schema import Row


class UrlCorpus(OfficialBuilder):
    """One caption a picture, in `<split>/00000.tar`, `00000.parquet`, `00000_stats.json`, ... of img2dataset.

    A shard's tar holds the pictures, its Parquet file what became of every address, and the statistics are
    written when it is finished (img2dataset 1.47). Addresses without a picture are counted as `not
    downloaded`.
    """

    task = "captions"
    url_lists: ClassVar[Mapping[str, str]]
    """File with the addresses of each split, as img2dataset reads it."""
    list_options: ClassVar[str]
    """How img2dataset reads it."""
    source: ClassVar[str]

    @classmethod
    def has_split(cls, folder: OfficialFolder, split: str) -> bool:
        """Whether any shard of it has been begun."""
        return any((folder.root / split).glob("*.tar"))

    @classmethod
    def order(cls, row: Row) -> str:
        """Shard by shard: the pictures of one archive are read together."""
        return row["image"]

    @classmethod
    def fetch_command(cls, root: Path, split: str) -> str:
        """The command that fetches a split's pictures, no larger than ViLT looks at them."""
        return (
            f"img2dataset --url_list {cls.url_lists[split]} {cls.list_options} --output_format webdataset "
            f"--output_folder {shlex.quote(str(root / split))} --image_size 640 "
            "--resize_mode keep_ratio_largest --resize_only_if_bigger True --compute_hash sha256 "
            "--processes_count 16 --thread_count 64"
        )

    @classmethod
    def read_rows(cls, folder: OfficialFolder, split: str) -> Iterator[Row]:
        """One row per picture; `image_id` is a hash of its address, hence stable when it is fetched again.

        Raises:
            FileNotFoundError: If nothing has been fetched, or a shard is not finished.
            ValueError: If a shard's table is damaged.
        """
        for shard in cls._finished_shards(folder.root, split):
            for entry in _read_table(shard.with_suffix(".parquet")):
                if entry["status"] != "success":
                    folder.dropped["not downloaded"] += 1
                    continue
                caption = clean_text(entry["caption"] or "")
                image_id = hashlib.sha256(entry["url"].encode()).hexdigest()[:16]
                yield {
                    "image": f"{split}/{shard.name}/{entry['key']}.jpg",
                    "image_id": image_id,
                    "captions": [caption] if caption else [],
                    "concept": image_id,
                    "source": cls.source,
                }

    @classmethod
    def _finished_shards(cls, root: Path, split: str) -> list[Path]:
        """The tars of a split, if all are finished."""
        tars = sorted((root / split).glob("*.tar"))
        if not tars:
            raise FileNotFoundError(
                f"{root / split} holds no shards of pictures (00000.tar, ...): of {cls.source} only "
                "addresses are published. Fetch the pictures with img2dataset (`pip install img2dataset` in "
                f"an environment of its own):\n  {cls.fetch_command(root, split)}"
            )
        unfinished = [
            tar.stem
            for tar in tars
            if not (
                tar.with_suffix(".parquet").is_file() and tar.with_name(f"{tar.stem}_stats.json").is_file()
            )
        ]
        if unfinished:
            raise FileNotFoundError(
                f"{len(unfinished)} of {len(tars)} shards in {root / split} are not finished; the first is "
                f"{unfinished[0]}, which lacks {unfinished[0]}_stats.json or {unfinished[0]}.parquet. Give "
                "img2dataset the same command again, or remove the files of these shards to do without."
            )
        return tars


def _read_table(path: Path) -> list[dict[str, Any]]:
    """What became of the addresses of a shard.

    Not the JSON beside every picture, for which all the archives would have to be read.
    """
    try:
        table = pq.read_table(path, columns=["url", "caption", "key", "status"])
        return table.sort_by("key").to_pylist()  # they were written as they arrived
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(
            f"{path} cannot be read ({error}). Remove this file, {path.stem}.tar and {path.stem}_stats.json, "
            "and give img2dataset the same command again."
        ) from error
