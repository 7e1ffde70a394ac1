"""Configurations of a dataset repository as Parquet files, and the front matter that `load_dataset` reads."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

ROWS_PER_GROUP = 1000
"""Rows that a reader has to take in at once, where the tables are larger."""


class ParquetConfigs:
    """Writes `data/<config>/<split>.parquet`, and remembers what the card has to say of each.

    Args:
        folder: The repository's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.infos: dict[str, datasets.DatasetInfo] = {}

    def write(
        self, config: str, features: datasets.Features, splits: Mapping[str, Iterable[pa.Table]]
    ) -> None:
        """Write one configuration.

        Args:
            config: Its name.
            features: Of all tables; pictures are stored in the files as `{"bytes": ..., "path": ...}`.
            splits: Name to tables, which are written one after the other.
        """
        written: Any = {}  # DatasetInfo makes its SplitDict of plain entries
        for split, tables in splits.items():
            path = self.path(config, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = size = 0
            # Pictures are compressed already, but zstd stores once what neighbours share.
            with pq.ParquetWriter(
                path, features.arrow_schema, compression="zstd", use_dictionary=False
            ) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                    rows, size = rows + table.num_rows, size + table.nbytes
            written[split] = {"name": split, "num_bytes": size, "num_examples": rows}
        self.infos[config] = datasets.DatasetInfo(
            features=features,
            splits=written,
            download_size=sum(self.path(config, split).stat().st_size for split in written),
            dataset_size=sum(split["num_bytes"] for split in written.values()),
        )

    def path(self, config: str, split: str) -> Path:
        """Where a split lies."""
        return self.folder / "data" / config / f"{split}.parquet"

    def card_data(self, **metadata: Any) -> DatasetCardData:
        """Front matter of the card: what is given, and configurations with their features and sizes.

        The first configuration is what `load_dataset` takes without a name.
        """
        configs = [
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": self.path(config, split).relative_to(self.folder).as_posix()}
                    for split in info.splits or ()
                ],
            }
            for config, info in self.infos.items()
        ]
        data = DatasetCardData(**metadata, configs=[{**configs[0], "default": True}, *configs[1:]])
        DatasetInfosDict(self.infos).to_dataset_card_data(data)
        return data
