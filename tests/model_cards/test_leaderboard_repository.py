import datetime
import json
import tomllib
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import metadata_load

from rmcl_hub.model_cards import refusals
from rmcl_hub.model_cards.leaderboard_repository import row_features, space_files, stage_leaderboard
from rmcl_hub.model_cards.leaderboard_rows import rows_of
from rmcl_hub.model_cards.row_checks import row_id
from rmcl_hub.model_cards.staged_repository import MANIFEST

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(evaluation_folder):
    return rows_of(evaluation_folder, model_repo="someone/rmcl-vilt").accepted


@pytest.fixture
def staged(rows, tmp_path):
    return stage_leaderboard(rows, tmp_path / "staged", namespace="someone")


def test_where_the_two_repositories_lie(staged, tmp_path):
    assert [(found.repo_type, found.name) for found in staged] == [
        ("dataset", "rmcl-leaderboard"),
        ("space", "rmcl-leaderboard"),
    ]
    assert staged[0].folder == tmp_path / "staged" / "datasets" / "rmcl-leaderboard"
    assert staged[1].folder == tmp_path / "staged" / "spaces" / "rmcl-leaderboard"


def test_both_pass_what_a_push_refuses(staged):
    for found in staged:
        refusals.check(found)


def test_the_rows_join_those_that_are_there(staged, rows):
    data, space = staged
    assert data.manifest["accumulates"]
    assert not space.manifest["accumulates"]
    assert data.manifest["sources"] == {row["id"]: row["evaluation_sha256"] for row in rows}


def test_load_dataset_gives_the_rows(staged, rows, tmp_path):
    """A row with a curve and one without, numbers in one that are null in the other."""
    loaded = datasets.load_dataset(str(staged[0].folder), split="rows", cache_dir=str(tmp_path / "cache"))
    found = {row["id"]: row for row in loaded}
    assert len(found) == 2
    for row in rows:
        overlap = {**row["data"]["overlap"], "how": None}
        expected = {**row, "data": {**row["data"], "overlap": overlap}, "curve": row.get("curve")}
        expected["date"] = datetime.date.fromisoformat(row["date"])
        assert found[row["id"]] == expected


def test_features_are_those_of_the_schema():
    features = {entry["name"]: entry for entry in row_features()}
    assert features["publishable"] == {"name": "publishable", "dtype": "bool"}
    assert features["reasons"] == {"name": "reasons", "list": "string"}
    value = features["numbers"]["struct"][1]["struct"][0]
    assert value == {"name": "value", "dtype": "float64"}
    assert [entry["name"] for entry in features["checks"]["list"]] == "rule name level status detail".split()


def test_the_space_holds_its_files_and_the_shared_checks(staged):
    space = staged[1]
    assert set(space.files) == {path.name for path in space_files()}
    for path in (
        ROOT / "model_cards" / "row_checks.py",
        ROOT / "model_cards" / "leaderboard_row.schema.json",
        ROOT / "evaluation" / "evaluation_schema.py",
        ROOT / "evaluation" / "evaluation.schema.json",
        ROOT / "model_cards" / "leaderboard" / "app.py",
        ROOT / "model_cards" / "leaderboard" / "style.css",
    ):
        assert (space.folder / path.name).read_bytes() == path.read_bytes()


def test_the_cards_name_whose_board_it_is_and_claim_no_more(staged):
    data, space = (found.folder / "README.md" for found in staged)
    assert metadata_load(space)["datasets"] == ["someone/rmcl-leaderboard"]
    assert metadata_load(space)["sdk"] == "gradio"
    for text in (data.read_text(), space.read_text()):
        assert "NAMESPACE" not in text
        assert "someone/rmcl-leaderboard" in text
        assert "the Hub's own leaderboard" in text.replace("\n", " ")
    assert 'load_dataset("someone/rmcl-leaderboard", split="rows")' in data.read_text()


def test_the_space_runs_on_the_gradio_that_its_tests_run_on(staged):
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    version = next(package["version"] for package in locked if package["name"] == "gradio")
    assert metadata_load(staged[1].folder / "README.md")["sdk_version"] == version


def test_a_board_may_begin_without_rows(tmp_path):
    data, space = stage_leaderboard([], tmp_path, namespace="someone")
    assert set(data.files) == {"README.md", "evaluation.schema.json", "leaderboard_row.schema.json"}
    assert set(space.files) == {path.name for path in space_files()}
    for found in (data, space):
        refusals.check(found)


def test_one_model_evaluated_twice(rows, tmp_path):
    with pytest.raises(ValueError, match=r"two rows have the id \w+: someone/rmcl-vilt under linf-4 was"):
        stage_leaderboard([rows[0], {**rows[0], "date": "2030-01-01"}], tmp_path, namespace="someone")


def test_a_row_that_is_not_fit_is_named(rows, tmp_path):
    row = {**rows[0], "publishable": False}
    with pytest.raises(ValueError, match=rf"row {row_id(row)} is not fit for the leaderboard"):
        stage_leaderboard([row], tmp_path, namespace="someone")


def test_a_later_stage_keeps_the_manifest_true(rows, tmp_path):
    """The front matter is YAML, and the manifest names every file but itself."""
    data, _ = stage_leaderboard(rows[:1], tmp_path, namespace="someone")
    names = {path.relative_to(data.folder).as_posix() for path in data.folder.rglob("*") if path.is_file()}
    assert names == {*data.files, MANIFEST}
    front = yaml.safe_load((data.folder / "README.md").read_text().split("---")[1])
    assert front["configs"][0]["data_files"] == [{"split": "rows", "path": "rows/*.json"}]
    assert json.loads((data.folder / f"rows/{rows[0]['id']}.json").read_text()) == rows[0]
