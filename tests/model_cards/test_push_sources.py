"""A push finds what belongs together: models by what their folders hold, measurements by the parameters."""

import json
import shutil

import pytest
import torch

from rmcl_hub.model_cards import dataset_repository
from rmcl_hub.model_cards.push_sources import KINDS, SourceError, check_namespace, recognise_sources
from rmcl_hub.model_cards.refusals import check
from rmcl_hub.model_cards.staged_repository import MANIFEST, StagedRepository
from rmcl_hub.model_cards.staging import stage_sources
from rmcl_hub.model_cards.training_state import STATE_FILE, TRAINING_STATE, read_training_state
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering


@pytest.fixture
def measured(model_folder, model_record, evaluation_folder):
    """A model, and an evaluation of it in agreement with its record."""
    assert model_record["model"]["digest"] in (evaluation_folder / "evaluation.json").read_text()
    return model_folder, evaluation_folder


@pytest.fixture
def other_model(model_folder, tmp_path):
    """A model that differs in one weight."""
    folder = tmp_path / "other"
    shutil.copytree(model_folder, folder)
    model = RMCLViltForQuestionAnswering.from_pretrained(model_folder)
    with torch.no_grad():
        model.classifier[3].bias[0] += 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run_folder(measured, other_model, results, tmp_path):
    """An experiment of two seeds and two protocols; the evaluation is of its RMCL model."""
    model, evaluation = measured
    folder = tmp_path / "quick"
    results["config"] = {"protocols": {"frozen": {}, "tuned": {}}}
    (folder / "seed-0").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    shutil.copytree(model, folder / "seed-0" / "rmcl-tuned")
    shutil.copytree(other_model, folder / "seed-0" / "control-tuned")
    shutil.copytree(evaluation, folder / "evaluations" / "linf")
    return folder


def test_a_run_is_its_first_seeds_models_of_the_last_protocol(run_folder):
    found = recognise_sources([str(run_folder)])
    assert {model.name: (model.key, model.folder) for model in found.models} == {
        "quick-control": ("control", run_folder / "seed-0" / "control-tuned"),
        "quick-rmcl": ("rmcl", run_folder / "seed-0" / "rmcl-tuned"),
    }
    assert {model.results for model in found.models} == {run_folder / "results.json"}
    assert {path.name: model.name for path, model in found.evaluations.items()} == {"linf": "quick-rmcl"}
    assert found.name_of_examples(run_folder / "evaluations" / "linf") == "quick-rmcl-linf"
    shutil.rmtree(run_folder / "seed-0" / "control-tuned")
    with pytest.raises(
        SourceError, match=r"compares a model in seed-0/control-tuned, which holds none; run the"
    ):
        recognise_sources([str(run_folder)])


def test_every_kind_is_recognised(measured, tmp_path):
    model, evaluation = measured
    shards = tmp_path / "coco"
    (shards / "data").mkdir(parents=True)
    (shards / "manifest.json").write_text("{}")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "README.md").write_text("x")
    done = StagedRepository.seal("done", "dataset", tmp_path / "done")
    words = ["openpairs", "metrics", "leaderboard"]
    found = recognise_sources([str(path) for path in (shards, done.folder, evaluation, model)] + words * 2)
    assert [source.folder for source in found.models] == [model]
    assert list(found.evaluations) == [evaluation]
    assert (found.shards, found.staged, found.words) == ([shards], [done], words)


def test_what_is_none_of_the_kinds_is_told_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # without weights
    with pytest.raises(SourceError) as error:
        recognise_sources([str(tmp_path)])
    assert (
        str(error.value)
        == f"{str(tmp_path)!r} is nothing that can be pushed; these kinds are known:\n{KINDS}"
    )
    assert "hub-manifest.json" in KINDS
    with pytest.raises(SourceError, match="--namespace: 'a/b' can be no name on the Hub"):
        check_namespace("a/b")
    check_namespace("some-body")


def test_an_evaluation_belongs_to_the_parameters_and_not_to_the_folder(measured, other_model):
    model, evaluation = measured
    moved = evaluation.rename(other_model / "evaluation")
    with pytest.raises(
        SourceError, match=r"of another model than other\. Give the model's folder as a SOURCE, too"
    ):
        recognise_sources([str(moved), str(other_model)])
    found = recognise_sources([str(other_model)])  # it lies there, but was not named
    assert found.evaluations == {}
    assert found.left_out == [f"{moved} measures the parameters of another model than other."]
    found = recognise_sources([str(moved), str(model)])
    assert found.evaluations[moved].folder == model
    with pytest.raises(SourceError, match="than those given: there are none"):
        recognise_sources([str(moved)])


def test_an_evaluation_may_lie_in_the_models_folder(measured):
    model, evaluation = measured
    for path in evaluation.iterdir():
        path.rename(model / path.name)
    found = recognise_sources([str(model)])
    assert list(found.evaluations) == [model]
    assert found.name_of_examples(model) == "model-adversarial"


def test_two_sources_of_one_name_are_refused(measured, tmp_path):
    model, _ = measured
    shutil.copytree(model, tmp_path / "elsewhere" / "model")
    with pytest.raises(SourceError, match="would both be the model 'model'; rename a folder"):
        recognise_sources([str(model), str(tmp_path / "elsewhere" / "model")])


# Staging


def test_all_that_belongs_to_the_sources_is_staged_and_fit_to_be_published(run_folder, tmp_path):
    found = recognise_sources([str(run_folder), "leaderboard"])
    staging = stage_sources(found, tmp_path / "push", "user")
    assert [(staged.repo_type, staged.name) for staged in staging.repositories] == [
        ("model", "quick-control"),
        ("model", "quick-rmcl"),
        ("dataset", "quick-rmcl-linf"),
        ("dataset", "rmcl-leaderboard"),
        ("space", "rmcl-leaderboard"),
    ]
    for staged in staging.repositories:
        assert staged.folder == tmp_path / "push" / f"{staged.repo_type}s" / staged.name
        check(staged, places=[run_folder])
    control, rmcl, _, board, _ = staging.repositories
    assert {"results/results.json", "model.safetensors", "README.md"} <= set(control.files)
    assert "results/evaluation.json" not in control.files, "the evaluation is of the other model"
    assert "results/evaluation.json" in rmcl.files
    assert "user/quick-rmcl" in (rmcl.folder / "README.md").read_text()
    rows = [json.loads(path.read_text()) for path in (board.folder / "rows").glob("*.json")]
    assert {row["model"]["repo"] for row in rows} == {"user/quick-rmcl"}
    assert {row["threat"]["name"] for row in rows} == {"linf-4", "words-20pct"}
    assert list((tmp_path / "push").glob("unfinished*")) == []
    assert not (run_folder / "seed-0" / "rmcl-tuned" / "README.md").exists(), "the run folder stays as it was"


def test_staging_again_gives_the_same_manifests(measured, tmp_path):
    def manifests():
        sources = recognise_sources([str(path) for path in measured])
        staging = stage_sources(sources, tmp_path / "push", "user")
        return {staged.name: (staged.folder / MANIFEST).read_text() for staged in staging.repositories}

    first = manifests()
    assert set(first) == {"model", "model-evaluation", "rmcl-leaderboard"}
    assert manifests() == first, "a repeated push would send it again"


def test_rows_that_the_board_refuses_are_told_and_the_rest_goes_on(measured, model_record, tmp_path):
    model, evaluation = measured
    model_record["threats"]["linf-4"]["publishable"] = False
    (evaluation / "evaluation.json").write_text(json.dumps(model_record))
    staging = stage_sources(recognise_sources([str(model), str(evaluation)]), tmp_path / "push", "user")
    assert {staged.name for staged in staging.repositories} >= {"model"}
    assert any("gets no row on the leaderboard: " in note for note in staging.notes)


def test_a_checkpoint_brings_its_training_state_in_a_repository_of_its_own(measured, tmp_path):
    model, evaluation = measured
    key_branch = {"queue": torch.randn(4, 8), "queue_pointer": torch.tensor(2)}
    torch.save({"key_branch": key_branch, "encoder_passes": 7}, model / STATE_FILE)
    staging = stage_sources(recognise_sources([str(model), str(evaluation)]), tmp_path / "push", "user")
    staged = {staged.name: staged for staged in staging.repositories if staged.repo_type == "model"}
    assert list(staged) == [model.name, f"{model.name}-training-state"]
    assert not [path for path in staged[model.name].files if "state" in path]
    state = read_training_state(
        tmp_path / "push" / "models" / f"{model.name}-training-state" / TRAINING_STATE
    )
    assert state["encoder_passes"] == 7
    assert torch.equal(state["key_branch"]["queue"], key_branch["queue"])

    torch.save({"key_branch": None, "encoder_passes": 7}, model / STATE_FILE)  # of Barlow Twins
    staging = stage_sources(recognise_sources([str(model), str(evaluation)]), tmp_path / "push", "user")
    assert [staged.name for staged in staging.repositories if staged.repo_type == "model"] == [model.name]
    assert "holds no momentum encoder and queue" in " ".join(staging.notes)


def test_a_folder_that_no_push_staged_is_not_replaced(measured, tmp_path):
    (tmp_path / "push" / "models" / "model").mkdir(parents=True)
    (tmp_path / "push" / "models" / "model" / "mine.txt").write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"was not staged by a push; move it, or choose another --output-dir"
    ):
        stage_sources(recognise_sources([str(path) for path in measured]), tmp_path / "push", "user")
    assert (tmp_path / "push" / "models" / "model" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ({}, ("stage_shards", {"name": "coco", "private": False})),
        ({"private": True}, ("stage_shards", {"name": "coco", "private": True})),
        ({"without_pictures": True}, ("stage_annotations", {"name": "coco"})),
    ],
)
def test_shards_are_staged_as_their_licence_is_asked_for(options, called, tmp_path, monkeypatch):
    (tmp_path / "coco" / "data").mkdir(parents=True)
    (tmp_path / "coco" / "manifest.json").write_text("{}")
    calls = []

    def stands_in(function):
        def stage(shards, folder, **given):
            calls.append((function, given))
            folder.mkdir(parents=True)
            (folder / "README.md").write_text(str(shards.name))
            return StagedRepository.seal(given["name"], "dataset", folder)

        return stage

    for function in ("stage_shards", "stage_annotations"):
        monkeypatch.setattr(dataset_repository, function, stands_in(function))
    sources = recognise_sources([str(tmp_path / "coco")])
    (staged,) = stage_sources(sources, tmp_path / "push", "user", **options).repositories
    assert calls == [called]
    assert staged.folder == tmp_path / "push" / "datasets" / "coco"
