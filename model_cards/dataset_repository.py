"""Dataset repositories: the embedded set, prepared corpora, and adversarial examples."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm.auto import tqdm

from rmcl_hub.datasets_scripts import openpairs
from rmcl_hub.datasets_scripts.corpora import corpus_class
from rmcl_hub.datasets_scripts.dataset_card import annotations_card, dataset_card
from rmcl_hub.datasets_scripts.schema import FEATURES, image_columns
from rmcl_hub.datasets_scripts.shards import PreparedCorpus, read_shard
from rmcl_hub.evaluation.adversarial_examples import FOLDER
from rmcl_hub.evaluation.robustness import OUTCOMES_FILE, read_evaluation
from rmcl_hub.evaluation.robustness_record import EVALUATION_FILE

from .adversarial_card import render_adversarial_card
from .adversarial_rows import adversarial_tables, features_of
from .hub_results import benchmark_yaml
from .parquet_configs import ParquetConfigs
from .redistribution import picture_licence, text_licence, why_private
from .staged_repository import CARD, StagedRepository, describe_file

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
    for config, splits in openpairs.SPLITS_OF_CONFIG.items():
        tables = {
            split: [openpairs.load_openpairs(config, split).with_format("arrow")[:]] for split in splits
        }
        configs.write(config, openpairs.FEATURES[config], tables)
    packaged = files("rmcl_hub.datasets_scripts").joinpath("openpairs")
    card = DatasetCard(packaged.joinpath(CARD).read_text(encoding="utf-8"))
    metadata = {key: value for key, value in card.data.to_dict().items() if key != "configs"}
    write_card(folder, configs.card_data(**metadata), card.text.replace("USER/", f"{namespace}/"))
    for name in ("LICENSE.md", *(f"LICENSE-{source}.md" for source in OPENPAIRS_FILES)):
        (folder / name).write_bytes(packaged.joinpath(name).read_bytes())
    _write_authors(folder / "authors.csv")
    (folder / "eval.yaml").write_text(benchmark_yaml(), encoding="utf-8")
    return StagedRepository.seal("openpairs", "dataset", folder)


def _write_authors(path: Path) -> None:
    """Author of every picture: the licence of OpenMoji asks to name them, and the tasks' rows do not."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("source", "image_id", "author"))
        for source, splits in OPENPAIRS_FILES.items():
            for split in splits:
                writer.writerows(
                    (source, row["image_id"], row["author"]) for row in openpairs.read_metadata(source, split)
                )


def write_card(folder: Path, metadata: DatasetCardData, text: str) -> None:
    """Write a repository's card."""
    (folder / CARD).write_text(f"---\n{metadata.to_yaml()}\n---\n\n{text.lstrip()}", encoding="utf-8")


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


def stage_shards(
    shards_folder: str | Path, output_dir: str | Path, *, name: str, private: bool = False
) -> StagedRepository:
    """A prepared corpus as it is, so that `load_corpus("hf://datasets/<user>/<name>@<commit>")` reads it.

    Args:
        shards_folder: What `rmcl-hub data prepare` wrote.
        output_dir: Folder of the repository, empty or not there yet.
        name: Name on the Hub without the namespace.
        private: Whether the repository will be private, as it must be for pictures of most corpora.

    Raises:
        FileNotFoundError: If the folder holds no prepared corpus, or a shard is missing.
        ValueError: If the licence of the pictures forbids it; the message says what may be published instead.
        OSError: If a shard is not whole.
        FileExistsError: If `output_dir` holds anything.
    """
    source, prepared = Path(shards_folder), PreparedCorpus(str(shards_folder))
    manifest = prepared.manifest
    licence = picture_licence(manifest.corpus, private)
    for split in manifest.splits:
        prepared.check_files(split)
    folder = empty_folder(output_dir)
    (folder / "data").mkdir()
    shards = [shard.file for split in manifest.splits.values() for shard in split.shards]
    beside = [path.name for path in source.glob("*.json")]  # the corpus's manifest, VQAv2's answers
    for file in (*beside, *shards):
        link_or_copy(source / file, folder / file)
    card = DatasetCard(dataset_card(corpus_class(manifest.corpus), manifest))
    metadata: dict[str, Any] = card.data.to_dict() | _licence(licence, manifest.corpus)
    reason = why_private(manifest.corpus)
    write_card(folder, DatasetCardData(**metadata), card.text + (f"\n**{reason}**\n" if reason else ""))
    return StagedRepository.seal(name, "dataset", folder, _private_only(manifest.corpus))


def stage_annotations(shards_folder: str | Path, output_dir: str | Path, *, name: str) -> StagedRepository:
    """The rows of a prepared corpus without its pictures: texts, labels, ids, and the pictures' paths.

    Args:
        shards_folder: What `rmcl-hub data prepare` wrote.
        output_dir: Folder of the repository, empty or not there yet.
        name: Name on the Hub without the namespace.

    Raises:
        FileNotFoundError: If the folder holds no prepared corpus, or a shard is missing.
        ValueError: If the licence of the texts forbids it.
        OSError: If a shard is not whole.
        FileExistsError: If `output_dir` holds anything.
    """
    prepared = PreparedCorpus(str(shards_folder))
    manifest = prepared.manifest
    licence = text_licence(manifest.corpus)
    folder = empty_folder(output_dir)
    configs = ParquetConfigs(folder)
    features = datasets.Features(FEATURES[manifest.task])
    features |= {column: datasets.Value("string") for column in image_columns(manifest.task)}
    splits = {split: _tables_without_pictures(prepared, split, features) for split in manifest.splits}
    configs.write("default", features, splits)
    corpus = corpus_class(manifest.corpus)
    metadata = {**_licence(licence, manifest.corpus), "pretty_name": f"{corpus.__name__}, without pictures"}
    write_card(folder, configs.card_data(**metadata), annotations_card(corpus, manifest))
    return StagedRepository.seal(name, "dataset", folder)


def _tables_without_pictures(
    prepared: PreparedCorpus, split: str, features: datasets.Features
) -> Iterator[pa.Table]:
    task, shard_format = prepared.manifest.task, prepared.manifest.format
    for address in tqdm(prepared.files(split), desc=f"stage {split}", unit="shard"):
        rows = list(read_shard(address, task, shard_format))
        paths = {column: [row[column]["path"] for row in rows] for column in image_columns(task)}
        others = {name: [row[name] for row in rows] for name in features if name not in paths}
        yield pa.table({name: {**others, **paths}[name] for name in features}, schema=features.arrow_schema)


def stage_adversarial_examples(
    evaluation_folder: str | Path,
    output_dir: str | Path,
    *,
    name: str,
    model_repo: str | None = None,
    private: bool = False,
    image_mean: float | Sequence[float] = 0.5,
    image_std: float | Sequence[float] = 0.5,
) -> StagedRepository:
    """The adversarial examples of an evaluation: rows to look at, and all that `rmcl-hub rescore` needs.

    Args:
        evaluation_folder: The `output_dir` of `evaluate_robustness`.
        output_dir: Folder of the repository, empty or not there yet.
        name: Name on the Hub without the namespace.
        model_repo: The attacked model on the Hub, `<user>/<name>`; the set is taken to be the user's, too.
        private: Whether the repository will be private, as it must be for pictures of most corpora.
        image_mean: What the evaluated model's processor normalises with; ViLT's by default.
        image_std: The same for the deviation.

    Raises:
        FileNotFoundError: If the folder holds no evaluation, or no adversarial examples.
        ValueError: If the pictures' licence forbids it, or pixels, outcomes and record do not agree.
        FileExistsError: If `output_dir` holds anything.
    """
    source, evaluation = Path(evaluation_folder), read_evaluation(evaluation_folder)
    record, protocol = evaluation.record, evaluation.record["protocol"]
    licence = picture_licence(protocol["corpus"], private)
    folder = empty_folder(output_dir)
    features, configs = features_of(evaluation, source), ParquetConfigs(folder)
    split = protocol["splits"][0] if len(protocol["splits"]) == 1 else "test"
    for threat in tqdm(record["threats"], desc=f"stage {name}", unit="threat model"):
        outcomes = {row.id: row for row in evaluation.outcomes if row.attack == threat}
        tables = adversarial_tables(source, threat, outcomes, features, image_mean, image_std)
        configs.write(threat, features, {split: tables})
    _copy_evaluation(source, folder, record)
    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    text = render_adversarial_card(record, name, split, pictures, model_repo, image_mean, image_std)
    metadata = {"pretty_name": name, "tags": ["adversarial-examples", "robustness"]}
    write_card(folder, configs.card_data(**_licence(licence, protocol["corpus"]), **metadata), text)
    digest = describe_file(source / EVALUATION_FILE)["sha256"]
    sources = {"evaluation": digest, "model_digest": record["model"]["digest"]}
    return StagedRepository.seal(name, "dataset", folder, {**sources, **_private_only(protocol["corpus"])})


def _copy_evaluation(source: Path, folder: Path, record: dict[str, Any]) -> None:
    """What `rmcl-hub rescore` reads."""
    (folder / FOLDER).mkdir()
    for file in sorted((source / FOLDER).glob("*.safetensors")):
        link_or_copy(file, folder / FOLDER / file.name)
    link_or_copy(source / OUTCOMES_FILE, folder / OUTCOMES_FILE)
    location = record["protocol"]["location"]
    if location is None or location.startswith("hf://"):
        link_or_copy(source / EVALUATION_FILE, folder / EVALUATION_FILE)
    else:  # a folder of this machine is of no use elsewhere, and nobody's business
        elsewhere = {**record, "protocol": {**record["protocol"], "location": None}}
        (folder / EVALUATION_FILE).write_text(json.dumps(elsewhere, indent=1), encoding="utf-8")


def _licence(licence: str, corpus: str) -> dict[str, str]:
    """The card's entries on a licence; of one that the Hub has no name for, its makers' page."""
    if licence != "other":
        return {"license": licence}
    return {
        "license": licence,
        "license_name": f"{corpus}-terms",
        "license_link": corpus_class(corpus).homepage,
    }


def _private_only(corpus: str) -> dict[str, str]:
    """The manifest's entry that keeps a push from making the repository public."""
    reason = why_private(corpus)
    return {"private_only": reason} if reason else {}


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, which takes no room; a copy where the disk is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
