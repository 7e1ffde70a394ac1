"""Dataset repositories: the embedded set, prepared corpora, and adversarial examples."""

import csv
from importlib.resources import files
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from rmcl_hub.datasets_scripts.openpairs import FEATURES, SPLITS_OF_CONFIG, load_openpairs, read_metadata

from .parquet_configs import ParquetConfigs
from .staged_repository import StagedRepository

CARD_FILE = "README.md"
OPENPAIRS_FILES = {
    "openmoji": ("train", "validation", "test"),
    "openclipart": ("train",),
    "noto": ("validation", "test"),
}
"""Splits of the packaged files by source."""


def stage_openpairs(output_dir: str | Path, *, namespace: str = "USER") -> StagedRepository:
    """The embedded set: `load_dataset("<namespace>/openpairs", config)` gives the rows of `load_openpairs`.

    Args:
        output_dir: Folder of the repository, empty or not there yet.
        namespace: User or organisation on the Hub, for the card's examples.

    Raises:
        FileExistsError: If the folder holds anything.
    """
    folder = empty_folder(output_dir)
    configs = ParquetConfigs(folder)
    for config, splits in SPLITS_OF_CONFIG.items():
        tables = {split: [load_openpairs(config, split).with_format("arrow")[:]] for split in splits}
        configs.write(config, FEATURES[config], tables)
    packaged = files("rmcl_hub.datasets_scripts").joinpath("openpairs")
    card = DatasetCard(packaged.joinpath(CARD_FILE).read_text(encoding="utf-8"))
    metadata = {key: value for key, value in card.data.to_dict().items() if key != "configs"}
    write_card(folder, configs.card_data(**metadata), card.text.replace("USER/", f"{namespace}/"))
    for name in ("LICENSE.md", *(f"LICENSE-{source}.md" for source in OPENPAIRS_FILES)):
        (folder / name).write_bytes(packaged.joinpath(name).read_bytes())
    _write_authors(folder / "authors.csv")
    return StagedRepository.seal("openpairs", "dataset", folder)


def _write_authors(path: Path) -> None:
    """Author of every picture: the licence of OpenMoji asks to name them, and the tasks' rows do not."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("source", "image_id", "author"))
        for source, splits in OPENPAIRS_FILES.items():
            for split in splits:
                writer.writerows(
                    (source, row["image_id"], row["author"]) for row in read_metadata(source, split)
                )


def write_card(folder: Path, metadata: DatasetCardData, text: str) -> None:
    """Write a repository's card."""
    (folder / CARD_FILE).write_text(f"---\n{metadata.to_yaml()}\n---\n\n{text.lstrip()}", encoding="utf-8")


def empty_folder(path: str | Path) -> Path:
    """A folder to stage into.

    Raises:
        FileExistsError: If it holds anything: that would go up, too.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and all that lies in it would be published; give an empty one."
        )
    return folder
