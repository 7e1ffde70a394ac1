"""What a model's repository holds, and what keeps a folder from being one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, ViltProcessor

from rmcl_hub.evaluation.provenance import model_digest
from rmcl_hub.model_cards.model_repository import stage_model
from rmcl_hub.model_cards.refusals import check
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"
PROCESSOR = {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
OF_TRAINING = ("optimizer.pt", "rmcl_state.pt", "scheduler.pt", "training_args.bin", "trainer_state.json")


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_readers_get_model_code_and_processor_and_nothing_of_the_training(model_folder, tmp_path):
    saved = content_of(model_folder)
    for name in (
        *OF_TRAINING,
        "complete.json",
        "stage.json",
        "runs/events.out",
        "checkpoint-2/model.safetensors",
    ):
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_bytes(b"\0")
    staged = stage_model(model_folder, tmp_path / "staged", name="rmcl-vilt", card=CARD)
    assert (staged.name, staged.repo_type) == ("rmcl-vilt", "model")
    assert content_of(staged.folder).keys() - saved.keys() == {"README.md", "hub-manifest.json"}
    assert {name: content_of(staged.folder)[name] for name in saved} == saved
    assert PROCESSOR & saved.keys() >= {"tokenizer.json"}
    check(staged)
    model = RMCLViltForQuestionAnswering.from_pretrained(staged.folder)
    assert type(AutoProcessor.from_pretrained(staged.folder)) is ViltProcessor
    assert staged.manifest["sources"] == {
        "class": "RMCLViltForQuestionAnswering",
        "digest": model_digest(model),
    }


@pytest.mark.parametrize("class_name", ["RMCLViltModel", "RMCLViltForPreTraining", "RMCLViltForMaskedLM"])
def test_other_classes(class_name, save_model, tmp_path):
    staged = stage_model(save_model(class_name), tmp_path / "staged")
    assert staged.name == "model"
    assert staged.manifest["sources"]["class"] == class_name
    weights = load_file(staged.folder / "model.safetensors")
    assert not [name for name in weights if "queue" in name or "momentum" in name]


def test_the_card_that_was_written_beside_the_model_goes_along(model_folder, tmp_path):
    belongs = {
        "results/evaluation.json": b"{}",
        "assets/pair.png": b"png",
        ".eval_results/openpairs.yaml": b"- 1",
    }
    record = {"files": ["results/evaluation.json"], "derived": list(belongs)[1:]}
    others = {"assets/other.png": b"png", "results/results.json": b"{}"}
    files = {"README.md": CARD.encode(), "results/sources.json": json.dumps(record).encode(), **belongs}
    for name, content in {**files, **others}.items():
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_bytes(content)
    staged = content_of(stage_model(model_folder, tmp_path / "staged").folder)
    assert {name: staged[name] for name in files} == files
    assert not others.keys() & staged.keys()
    assert (
        content_of(stage_model(model_folder, tmp_path / "own", card="# Own").folder)["README.md"] == b"# Own"
    )


def test_weights_in_several_files(model_folder, tmp_path):
    model = RMCLViltForQuestionAnswering.from_pretrained(model_folder)
    (model_folder / "model.safetensors").unlink()
    model.save_pretrained(model_folder, max_shard_size="20KB")
    shards = {path.name for path in model_folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    staged = stage_model(model_folder, tmp_path / "staged")
    assert staged.files.keys() >= shards | {"model.safetensors.index.json"}
    assert staged.manifest["sources"]["digest"] == model_digest(model)
    lost = min(shards)
    (model_folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds no {lost}\. .*save_pretrained"):
        stage_model(model_folder, tmp_path / "again")


def test_weights_that_are_a_pickle_are_refused(model_folder, tmp_path):
    torch.save(load_file(model_folder / "model.safetensors"), model_folder / "pytorch_model.bin")
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no model\.safetensors, but pytorch_model\.bin, a pickle.*save_pretrained"
    ):
        stage_model(model_folder, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("fault", ["missing", "mismatched", "unexpected"])
def test_weights_of_another_model_are_refused(fault, model_folder, tmp_path):
    """Transformers would fill in what is missing at random."""
    weights = load_file(model_folder / "model.safetensors")
    if fault == "missing":
        del weights["classifier.3.weight"]
    elif fault == "mismatched":
        weights["classifier.3.weight"] = torch.zeros(5, 64)
    else:
        weights["queue"] = torch.zeros(3)
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError,
        match=rf"not those of a RMCLViltForQuestionAnswering: 1 {fault} keys, such as .*(classifier|queue)",
    ):
        stage_model(model_folder, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_code_must_be_complete(model_folder, tmp_path):
    code = model_folder / "projectors.py"  # imported by a module that auto_map names
    code.rename(tmp_path / "elsewhere.py")
    with pytest.raises(
        FileNotFoundError, match=r"lacks projectors\.py, which its model's code needs.*save_pretrained"
    ):
        stage_model(model_folder, tmp_path / "staged")
    shutil.move(tmp_path / "elsewhere.py", code)
    config = json.loads((model_folder / "config.json").read_text())
    del config["auto_map"], config["custom_pipelines"]
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match=r"names no code \(auto_map\)"):
        stage_model(model_folder, tmp_path / "staged")


def test_a_processor_must_lie_beside_the_model(model_folder, tmp_path):
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no processor .*tokenizer\.json.*processor\.save_pretrained"
    ):
        stage_model(model_folder, tmp_path / "staged")


def test_nothing_is_staged_over_something(model_folder, tmp_path):
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        stage_model(model_folder, tmp_path / "staged")
