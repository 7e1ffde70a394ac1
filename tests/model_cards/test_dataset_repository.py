"""Dataset repositories: rows come back from the Hub as they were staged, and licences are kept."""

import csv
import json
import os

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, HfApi

from rmcl_hub.datasets_scripts import openpairs
from rmcl_hub.datasets_scripts.build_miniatures import WRITERS
from rmcl_hub.datasets_scripts.corpora import CORPORA, load_corpus
from rmcl_hub.datasets_scripts.dataset_card import annotations_card, dataset_card
from rmcl_hub.datasets_scripts.official_builder import SplitSize
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.model_cards import redistribution, refusals
from rmcl_hub.model_cards.dataset_repository import (
    empty_folder,
    link_or_copy,
    stage_annotations,
    stage_openpairs,
    stage_shards,
)
from rmcl_hub.model_cards.parquet_configs import ParquetConfigs
from rmcl_hub.model_cards.redistribution import Terms, picture_licence, text_licence, why_private

# Compares what the Hub gives with what the package holds, map-style, as a stream, and at a commit.
LOAD_OPENPAIRS = """
import sys

import datasets
from rmcl_hub.datasets_scripts.openpairs import load_openpairs


def table(rows):
    return rows.with_format("arrow")[:]


for config in sys.argv[2].split():
    expected = load_openpairs(config, "test")
    rows = datasets.load_dataset("user/openpairs", config, split="test", revision=sys.argv[1])
    assert rows.features == expected.features, rows.features
    assert table(rows).equals(table(expected)), config
    options = {"split": "test", "revision": sys.argv[1], "streaming": True}
    stream = datasets.load_dataset("user/openpairs", config, **options).decode(False)
    assert list(stream) == list(expected.to_iterable_dataset().decode(False)), config
    print(config, len(expected))
assert len(datasets.load_dataset("user/openpairs", "noto", split="test")) == 1
"""


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The embedded set, staged whole."""
    return stage_openpairs(tmp_path_factory.mktemp("openpairs"), namespace="somebody")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function from a corpus's name to the folder of its prepared miniature; made when first asked for."""
    made = {}

    def prepared(name, **options):
        if (key := json.dumps([name, options])) not in made:
            root = tmp_path_factory.mktemp(name)
            WRITERS[name](root / "official")
            options = {"num_workers": 1, "unofficial": True, "rows_per_shard": 10, **options}
            prepare(CORPORA[name], root / "official", root / "shards", **options)
            made[key] = root / "shards"
        return made[key]

    return prepared


def front_matter(repository):
    return DatasetCard.load(repository.folder / "README.md").data.to_dict()


CONFIGS = [(config, split) for config, splits in openpairs.SPLITS_OF_CONFIG.items() for split in splits]


@pytest.fixture(scope="module")
def packaged():
    """What the package holds, as tables by configuration and split."""
    return {key: openpairs.load_openpairs(*key).with_format("arrow")[:] for key in CONFIGS}


@pytest.mark.parametrize(("config", "split"), CONFIGS)
def test_files_hold_the_rows_of_the_package(embedded, packaged, config, split):
    (declared,) = (entry for entry in front_matter(embedded)["configs"] if entry["config_name"] == config)
    (path,) = (entry["path"] for entry in declared["data_files"] if entry["split"] == split)
    table = pq.read_table(embedded.folder / path)
    assert table.equals(packaged[config, split])
    assert datasets.Features.from_arrow_schema(table.schema) == openpairs.FEATURES[config]


def test_the_card_tells_configurations_counts_and_licences(embedded, packaged):
    refusals.check(embedded)
    data = front_matter(embedded)
    counts = {
        (info["config_name"], split["name"]): split["num_examples"]
        for info in data["dataset_info"]
        for split in info["splits"]
    }
    assert counts == {key: table.num_rows for key, table in packaged.items()}
    total = sum(counts.values())
    assert data["size_categories"] == ["10K<n<100K"]
    assert 10_000 < total < 100_000
    assert [config["config_name"] for config in data["configs"] if config.get("default")] == ["captions"]
    assert (embedded.folder / data["license_link"]).is_file()
    text = (embedded.folder / "README.md").read_text()
    assert 'load_dataset("somebody/openpairs", "vqa"' in text
    for name in ("LICENSE.md", "LICENSE-openmoji.md", "LICENSE-openclipart.md", "LICENSE-noto.md"):
        assert name in embedded.files
        assert f"]({name})" in text


def test_every_picture_has_its_author(embedded, packaged):
    with (embedded.folder / "authors.csv").open(encoding="utf-8", newline="") as stream:
        authors = {row["image_id"]: row["author"] for row in csv.DictReader(stream)}
    ids = {
        image_id
        for (config, _), table in packaged.items()
        if config in ("captions", "noto")
        for image_id in table["image_id"].to_pylist()
    }
    assert set(authors) == ids
    stored = {row["image_id"]: row["author"] for row in openpairs.read_metadata("openmoji", "test")}
    assert {image_id: authors[image_id] for image_id in stored} == stored


def test_the_benchmark_names_configurations_and_splits_that_are_there(embedded):
    benchmark = yaml.safe_load((embedded.folder / "eval.yaml").read_text())
    assert {(task["config"], task["split"]) for task in benchmark["tasks"]} <= set(CONFIGS)


def test_the_hub_gives_the_rows_of_the_package_at_a_pinned_commit(
    monkeypatch, packaged, tmp_path, loopback_hub, run_against_hub
):
    monkeypatch.setattr(openpairs, "SPLITS_OF_CONFIG", dict.fromkeys(openpairs.SPLITS_OF_CONFIG, ("test",)))
    folder = stage_openpairs(tmp_path / "openpairs").folder
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    api.create_repo("user/openpairs", repo_type="dataset")
    first = api.upload_folder(repo_id="user/openpairs", repo_type="dataset", folder_path=folder)
    row = packaged["noto", "test"].slice(0, 1)
    (tmp_path / "changed").mkdir()
    configs = ParquetConfigs(tmp_path / "changed")
    configs.write("noto", openpairs.FEATURES["noto"], {"test": [row]})
    DatasetCard(f"---\n{configs.card_data(license='other', license_name='x').to_yaml()}\n---\n").save(
        tmp_path / "changed" / "README.md"
    )
    api.upload_folder(repo_id="user/openpairs", repo_type="dataset", folder_path=tmp_path / "changed")
    done = run_against_hub(LOAD_OPENPAIRS, first.oid, "captions noto vqa nlvr2")
    counts = [
        len(openpairs.load_openpairs(config, "test")) for config in ("captions", "noto", "vqa", "nlvr2")
    ]
    assert [int(line.split()[1]) for line in done.stdout.splitlines()] == counts


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_has_terms_and_its_pictures_are_nobodys_to_publish(corpus):
    assert corpus in redistribution.TERMS
    with pytest.raises(ValueError, match=f"pictures of '{corpus}' cannot be published: .*--private"):
        picture_licence(corpus, private=False)
    assert picture_licence(corpus, private=True) == "other"
    assert why_private(corpus).startswith(
        f"This repository holds pictures of '{corpus}' and must stay private: "
    )


def test_what_nobody_has_licensed_is_refused_and_what_is_free_is_not():
    assert (picture_licence("openpairs", private=False), why_private("openpairs")) == ("cc-by-sa-4.0", None)
    assert text_licence("nlvr2") == "cc-by-4.0"
    for corpus in ("flickr30k", "sbu_captions", "unnamed"):
        with pytest.raises(ValueError, match=f"neither pictures nor texts of '{corpus}' can be published"):
            text_licence(corpus)
    assert picture_licence("unnamed", private=True) == "unknown"


def test_shards_with_pictures_of_others_are_refused_and_nothing_is_written(prepared, tmp_path):
    with pytest.raises(
        ValueError, match=r"Publish the rows without pictures \(`--without-pictures`\), or keep"
    ):
        stage_shards(prepared("coco_captions"), tmp_path / "staged", name="coco")
    assert not (tmp_path / "staged").exists()


def test_private_shards_come_back_from_the_hub(prepared, tmp_path, loopback_hub):
    shards = prepared("coco_captions")
    staged = stage_shards(shards, tmp_path / "staged", name="coco", private=True)
    refusals.check(staged, private=True)
    text = (staged.folder / "README.md").read_text()
    assert f"**{why_private('coco_captions')}**" in text
    assert "**Not the corpus as it is published**" in text
    assert not [path for path in staged.files if path.startswith("data/") and path.endswith(".json")]
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    api.create_repo("user/coco", repo_type="dataset", private=True)
    api.upload_folder(repo_id="user/coco", repo_type="dataset", folder_path=staged.folder)
    pulled = api.snapshot_download("user/coco", repo_type="dataset", local_dir=tmp_path / "pulled")
    for split in PreparedCorpus(str(shards)).manifest.splits:
        rows = list(load_corpus(pulled, split, streaming=True).decode(False))
        assert rows == list(load_corpus(shards, split, streaming=True).decode(False)) != []
        loaded = datasets.load_dataset(pulled, split=split, cache_dir=str(tmp_path / "cache"))
        assert list(loaded.cast_column("image", datasets.Image(decode=False))) == rows


def test_free_shards_need_not_be_private(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(redistribution.TERMS, "vqav2", Terms("cc-by-4.0", "cc-by-4.0", ""))
    staged = stage_shards(prepared("vqav2"), tmp_path / "staged", name="vqa")
    assert front_matter(staged)["license"] == "cc-by-4.0"
    assert staged.manifest["sources"] == {}
    assert "answers.json" in staged.files
    refusals.check(staged)


def test_a_missing_shard_is_found_before_anything_is_written(prepared, tmp_path):
    folder = tmp_path / "shards"
    for path in prepared("coco_captions").rglob("*"):
        if path.is_file() and "test-00000" not in path.name:
            (folder / path.relative_to(prepared("coco_captions"))).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, folder / path.relative_to(prepared("coco_captions")))
    with pytest.raises(FileNotFoundError, match=r"test-00000-of-\d+\.parquet is missing"):
        stage_shards(folder, tmp_path / "staged", name="coco", private=True)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize(
    ("corpus", "options"), [("nlvr2", {}), ("coco_captions", {"shard_format": "webdataset"}), ("vqav2", {})]
)
def test_annotations_are_the_rows_without_pictures(prepared, tmp_path, corpus, options):
    shards = prepared(corpus, **options)
    staged = stage_annotations(shards, tmp_path / "staged", name=corpus)
    refusals.check(staged)
    for split in PreparedCorpus(str(shards)).manifest.splits:
        rows = datasets.load_dataset(str(staged.folder), split=split, cache_dir=str(tmp_path / "cache"))
        expected = load_corpus(shards, split, streaming=True).decode(False)
        pictures = {
            name for name, feature in expected.features.items() if isinstance(feature, datasets.Image)
        }
        assert pictures
        assert list(rows) == [
            {name: value["path"] if name in pictures else value for name, value in row.items()}
            for row in expected
        ]
    content = b"".join(path.read_bytes() for path in staged.folder.rglob("*.parquet"))
    assert not any(magic in content for magic in (b"\xff\xd8\xff", b"\x89PNG", b"WEBP"))
    assert front_matter(staged)["license"] == "cc-by-4.0"
    assert "Pictures are not included" in (staged.folder / "README.md").read_text()


def test_annotations_that_nobody_has_licensed_are_refused(prepared, tmp_path):
    with pytest.raises(
        ValueError, match=r"of 'flickr30k' can be published: .*on request.*by the same command"
    ):
        stage_annotations(prepared("flickr30k"), tmp_path / "staged", name="flickr")


def test_a_licence_without_a_name_is_linked(prepared, tmp_path):
    data = front_matter(stage_annotations(prepared("conceptual_captions"), tmp_path / "staged", name="cc"))
    assert (data["license"], data["license_name"]) == ("other", "conceptual_captions-terms")
    assert data["license_link"] == CORPORA["conceptual_captions"].homepage


def test_only_what_falls_short_of_the_documented_corpus_is_called_a_miniature(prepared, monkeypatch):
    corpus, manifest = CORPORA["nlvr2"], PreparedCorpus(str(prepared("nlvr2"))).manifest
    documented = {name: SplitSize(None, split.texts + 1) for name, split in manifest.splits.items()}
    for write in (dataset_card, annotations_card):
        assert "- **Not the corpus as it is published**" in write(corpus, manifest)
        with monkeypatch.context() as patch:
            patch.setattr(corpus, "documented", documented)
            assert "Not the corpus" not in write(corpus, manifest)


def test_only_empty_folders_are_staged_into(tmp_path):
    assert empty_folder(tmp_path / "new" / "folder").is_dir()
    assert empty_folder(tmp_path / "new" / "folder").is_dir()
    with pytest.raises(FileExistsError, match="not empty, and all that lies in it would be published"):
        empty_folder(tmp_path)


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("rows")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refuse(source, target):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "rows"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
