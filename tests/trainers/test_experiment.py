"""The whole experiment on a few examples: what it writes, that it resumes, and that its control is fair."""

import hashlib
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoModel, AutoModelForVisualQuestionAnswering

from rmcl_hub.attacks.joint import IndependentAttack
from rmcl_hub.evaluation.outcomes import load_outcomes
from rmcl_hub.trainers.experiment import named_attacks, passes_per_plain_example, with_equal_passes
from rmcl_hub.trainers.quickstart import main
from rmcl_hub.trainers.recipe import AttackRecipe, ExperimentRecipe, PretrainRecipe, load_recipe

PACKAGED = ("quickstart", "openpairs")


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory):
    """The packaged quickstart, cut down to a few steps and examples."""
    folder = tmp_path_factory.mktemp("experiment")
    recipe = load_recipe(ExperimentRecipe, "quickstart")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "disable_tqdm": True, "logging_steps": 1}
    for name in ("pretrain", "rmcl", "control"):
        stage = getattr(recipe, name)
        data = replace(stage.data, max_examples=16)
        setattr(recipe, name, replace(stage, data=data, training=training))
    recipe.pretrain.model |= small
    for name, protocol in recipe.protocols.items():
        data = replace(protocol.data, max_examples=16)
        recipe.protocols[name] = replace(protocol, data=data, training=training)
    recipe.evaluation = replace(recipe.evaluation, max_questions=6, max_pairs=6, batch_size=6)
    recipe.output_dir = str(folder / "run")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(asdict(recipe)))
    return path, folder / "run"


@pytest.fixture(scope="module")
def run(tiny_recipe):
    path, folder = tiny_recipe
    assert main([str(path)]) == 0
    return folder


def test_writes_results_report_and_a_model_that_loads(run):
    results = json.loads((run / "results.json").read_text())
    assert set(results["models"]) == {"control", "rmcl"}
    assert {row["protocol"] for row in results["comparisons"]} == {"frozen", "finetuned", ""}
    assert results["comparisons"][0]["num_examples"] == 6
    assert str(run.parent) not in json.dumps(results), "published results name no folder of this machine"
    for arm, entry in results["models"].items():
        files = sorted((run / "seed-0").glob(f"{arm}*/model.safetensors"))
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        assert sorted(entry["weights"]) == sorted(hashes)
        assert len(set(hashes)) == 3
    assert "<svg" in (run / "report.html").read_text()
    assert (run / "model" / "README.md").is_file()
    assert AutoModel.from_pretrained(run / "model").config.hidden_size == 32
    assert AutoModelForVisualQuestionAnswering.from_pretrained(run / "model").config.num_labels > 10


def test_control_gets_the_encoder_passes_of_rmcl(run):
    rmcl = json.loads((run / "seed-0" / "rmcl" / "stage.json").read_text())
    control = json.loads((run / "seed-0" / "control" / "stage.json").read_text())
    batch_of_control = 4 * passes_per_plain_example(PretrainRecipe(objectives=["mlm"]), itc_weight=1.0)
    assert abs(control["encoder_passes"] - rmcl["encoder_passes"]) <= batch_of_control / 2
    assert rmcl["encoder_passes"] > 2 * 4 * 5, "keys, attacks and queries all count"


def test_both_arms_start_from_the_same_checkpoint(run):
    starts = {
        json.loads((run / "seed-0" / arm / "stage.json").read_text())["recipe"]["init_from"]
        for arm in ("control", "rmcl")
    }
    assert starts == {str(run / "seed-0" / "vilt")}


def test_the_frozen_protocol_leaves_the_encoder_as_it_was_and_the_other_does_not(run):
    def weight(stage):
        model = AutoModel.from_pretrained(run / "seed-0" / stage)
        return getattr(model, "vilt", model).encoder.layer[0].attention.attention.query.weight

    assert weight("rmcl-frozen").equal(weight("rmcl"))
    assert not weight("rmcl-finetuned").equal(weight("rmcl"))


def test_the_joint_attack_is_never_weaker_than_its_parts(run):
    outcomes = load_outcomes(run / "seed-0" / "rmcl-finetuned" / "outcomes.parquet")
    correct = {}
    for row in outcomes:
        correct.setdefault(row.attack, {})[row.id] = row.adversarial_correct
    for part in ("pgd-4", "words", "both-combined"):
        assert all(correct[part][example] for example, right in correct["both"].items() if right)


def test_a_second_run_repeats_nothing(run, tiny_recipe, monkeypatch):
    weights = (run / "seed-0").rglob("*.safetensors")
    before = {path: path.stat().st_mtime_ns for path in weights}

    def fail(*_):
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr("rmcl_hub.trainers.pretrain.pretrain", fail)
    monkeypatch.setattr("rmcl_hub.trainers.finetune.finetune", fail)
    assert main([str(tiny_recipe[0])]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_changed_stage_is_run_again(run, tiny_recipe, monkeypatch):
    monkeypatch.setattr("rmcl_hub.trainers.finetune.finetune", lambda recipe: pytest.fail("finetune started"))
    with pytest.raises(pytest.fail.Exception, match="finetune started"):
        main([str(tiny_recipe[0]), "--protocols.frozen.training.max_steps", "3"])


def test_equal_passes_by_hand():
    control = PretrainRecipe(objectives=["mlm", "itm"], training={"per_device_train_batch_size": 10})
    assert passes_per_plain_example(control, itc_weight=0) == 4
    assert with_equal_passes(control, 4000, itc_weight=0).training["max_steps"] == 100
    assert with_equal_passes(control, 6000, itc_weight=1.0).training["max_steps"] == 100


def test_parts_of_a_joint_attack_that_have_a_name_are_not_run_twice(tiny_tokenizer):
    image, text = {"preset": "standard"}, {"max_loops": 1}
    attacks, unions = named_attacks(
        {
            "both": AttackRecipe(image=image, text=text),
            "pgd": AttackRecipe(image=image),
        },
        SimpleNamespace(tokenizer=tiny_tokenizer),
        max_text_length=12,
    )
    assert set(attacks) == {"pgd", "both-combined", "both-text"}
    assert isinstance(attacks["both-combined"], IndependentAttack)
    assert unions == {"both": ["pgd", "both-text", "both-combined"]}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_experiments_load_and_test_on_held_out_concepts(name):
    recipe = load_recipe(ExperimentRecipe, name)
    assert recipe.evaluation.split == "test"
    assert recipe.pretrain.data.split == recipe.rmcl.data.split == recipe.control.data.split == "train"
    assert all(protocol.data.split == "train" for protocol in recipe.protocols.values())
