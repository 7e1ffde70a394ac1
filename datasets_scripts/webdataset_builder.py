"""A `datasets` builder that reads WebDataset shards of a prepared corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from .schema import FEATURES, to_tables
from .shards import read_shard


@dataclass
class WebDatasetConfig(datasets.BuilderConfig):
    """Which shards.

    Attributes:
        task: Names the columns.
        split: Of the rows.
        addresses: Of the shards.
        checksums: Of the shards, so that changed ones are not answered from the cache.
    """

    task: str = "captions"
    split: str = "train"
    addresses: tuple[str, ...] = ()
    checksums: tuple[str, ...] = ()


class WebDatasetBuilder(datasets.ArrowBasedBuilder):
    """Rows with the columns of the task: the packaged `webdataset` builder would name them after files."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = WebDatasetConfig
    config: WebDatasetConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES[self.config.task])

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        shards = {"addresses": list(self.config.addresses)}  # a list: streams can be shared by its members
        return [datasets.SplitGenerator(name=self.config.split, gen_kwargs=shards)]

    def _generate_tables(self, addresses: list[str]) -> Iterator[tuple[Any, pa.Table]]:
        for shard, address in enumerate(addresses):
            rows = read_shard(address, self.config.task, "webdataset")
            for place, table in enumerate(to_tables(self.config.task, rows)):
                yield (shard, place), table
