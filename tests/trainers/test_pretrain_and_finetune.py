"""Both scripts from the command line to a folder that the Auto classes load, on a few packaged examples."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoModel, AutoProcessor

from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining, RMCLViltModel
from rmcl_hub.trainers import finetune, pretrain
from rmcl_hub.trainers.recipe import DataRecipe, FinetuneRecipe, PretrainRecipe

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "projection_dim": 8,
    "queue_size": 16,
    "itc_weight": 1.0,
}
DATA = {"max_examples": 16, "max_text_length": 12}
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": "1e-2",
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
}
RMCL = {
    "stage": "rmcl",
    "data": DATA,
    "attack": {"image": {"preset": "standard", "epsilon": 0.03}, "text": {"max_change_share": 0.5}},
    "training": TRAINING,
}


def run(script, folder, recipe, *overrides):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert script.main([str(path), *overrides]) == 0


@pytest.fixture(scope="module")
def vilt_folder(tmp_path_factory):
    """A ViLT after two steps of its own objectives."""
    folder = tmp_path_factory.mktemp("vilt")
    recipe = {"stage": "vilt", "image_size": 32, "model": MODEL, "data": DATA, "training": TRAINING}
    run(pretrain, folder, recipe, "--output_dir", str(folder / "vilt"))
    return folder / "vilt"


def weights_of(folder):
    return RMCLViltModel.from_pretrained(folder).state_dict()


def types_of(weights):
    return weights["embeddings.token_type_embeddings.weight"]


def test_a_pretrained_folder_loads_by_the_auto_classes(vilt_folder):
    model = AutoModel.from_pretrained(vilt_folder)
    processor = AutoProcessor.from_pretrained(vilt_folder)
    assert isinstance(model, RMCLViltModel)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.cls_token_id == processor.tokenizer.cls_token_id
    assert not list(vilt_folder.glob("checkpoint-*"))


def test_a_small_encoder_starts_from_pretrained_words(tmp_path):
    recipe = PretrainRecipe(
        stage="vilt",
        output_dir=str(tmp_path),
        image_size=32,
        model=MODEL,
        data=DataRecipe(**DATA),
        training={**TRAINING, "learning_rate": 0.0},
    )
    trainer = pretrain.pretrain(recipe)
    vectors = trainer.model.get_input_embeddings().weight
    words = trainer.processing_class.tokenizer.get_vocab()

    def cosine(one, other):
        return torch.cosine_similarity(vectors[words[one]], vectors[words[other]], dim=0)

    assert cosine("dog", "cat") > cosine("dog", "house") + 0.05


def test_rmcl_continues_a_checkpoint_with_either_projector(vilt_folder, tmp_path):
    run(pretrain, tmp_path, RMCL, "--init_from", str(vilt_folder), "--output_dir", str(tmp_path / "moco"))
    moco = RMCLViltForPreTraining.from_pretrained(tmp_path / "moco")
    before = weights_of(vilt_folder)
    assert any(not torch.equal(value, before[name]) for name, value in moco.vilt.state_dict().items())

    recipe = {**RMCL, "model": {"projector": "barlow_twins", "projection_dim": 12}}
    run(pretrain, tmp_path, recipe, "--init_from", str(vilt_folder), "--output_dir", str(tmp_path / "barlow"))
    barlow = RMCLViltForPreTraining.from_pretrained(tmp_path / "barlow")
    assert barlow.projector.layers[-2].out_features == 12
    AutoModel.from_pretrained(tmp_path / "barlow")


def test_a_stream_trains_too(vilt_folder, tmp_path):
    overrides = ["--data.streaming", "true", "--init_from", str(vilt_folder), "--output_dir", str(tmp_path)]
    run(pretrain, tmp_path, {**RMCL, "training": {**TRAINING, "views": ["image"]}}, *overrides)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_a_frozen_encoder_stays_and_its_head_moves(vilt_folder, tmp_path, task):
    recipe = {"task": task, "freeze_encoder": True, "data": {**DATA, "config": task}, "training": TRAINING}
    run(finetune, tmp_path, recipe, "--init_from", str(vilt_folder), "--output_dir", str(tmp_path / "out"))
    before, after = weights_of(vilt_folder), weights_of(tmp_path / "out")
    if task == "nlvr2":  # the second image's type starts as the first's
        before["embeddings.token_type_embeddings.weight"] = types_of(before)[[0, 1, 1]]
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    model, processor = finetune.load_finetuned(task, tmp_path / "out")
    assert processor.tokenizer("a dog")["input_ids"]
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    assert not torch.equal(model.classifier[0].bias, fresh.classifier[0].bias)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), RMCLViltModel)


def test_finetuning_moves_encoder_and_head_at_their_own_rates(vilt_folder, tmp_path):
    recipe = FinetuneRecipe(
        task="vqa",
        output_dir=str(tmp_path),
        init_from=str(vilt_folder),
        head_learning_rate=1e-2,
        data=DataRecipe(config="vqa", **DATA),
        training={**TRAINING, "learning_rate": 1e-4, "weight_decay": 0.1},
    )
    before = weights_of(vilt_folder)
    trainer = finetune.finetune(recipe)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["initial_lr"] == (1e-4 if name.startswith("vilt.") else 1e-2), name
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name
            seen.add(name)
    assert seen == set(names.values())
    after = weights_of(tmp_path)
    assert not torch.equal(
        after["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"]
    )


def test_answers_are_the_labels_of_the_saved_model(vilt_folder, tmp_path):
    recipe = {"task": "vqa", "data": {**DATA, "config": "vqa"}, "training": TRAINING}
    run(finetune, tmp_path, recipe, "--init_from", str(vilt_folder), "--output_dir", str(tmp_path / "out"))
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers

    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert [labels[str(index)] for index in range(len(labels))] == vqa_answers()


@pytest.mark.parametrize("script", [pretrain, finetune])
def test_an_unwritable_output_folder_is_an_error_before_any_work(script, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(pretrain, "load_data", lambda *_: pytest.fail("work began"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"init_from: {tmp_path / 'missing'}")
    assert script.main([str(recipe), "--output_dir", str(tmp_path / "file" / "run")]) == 2
    (told,) = [record.getMessage() for record in caplog.records]
    command = script.__name__.split(".")[-1]
    pattern = (
        rf"rmcl-hub {command}: Cannot write to output_dir .*file/run: .*Choose another with --output_dir\."
    )
    assert re.fullmatch(pattern, told)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_misspelt_field_leaves_nothing_behind(tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {hiden_size: 32}")
    assert pretrain.main([str(recipe), "--output_dir", str(tmp_path / "run")]) == 2
    assert "rmcl-hub pretrain: " in caplog.text
    assert "did you mean 'hidden_size'" in caplog.text
    assert not (tmp_path / "run").exists()


def test_finetuning_needs_a_start(tmp_path):
    with pytest.raises(ValueError, match="init_from is missing: give the folder or hub id"):
        finetune.finetune(FinetuneRecipe(output_dir=str(tmp_path)))


def test_texts_longer_than_the_encoder_reads_are_refused(vilt_folder, tmp_path):
    recipe = PretrainRecipe(
        output_dir=str(tmp_path), init_from=str(vilt_folder), data=DataRecipe(max_text_length=99)
    )
    with pytest.raises(ValueError, match=r"max_text_length is 99, but the encoder has 40 text positions"):
        pretrain.pretrain(recipe)


def test_a_subset_of_the_data_depends_on_the_seed_alone():
    def ids(seed):
        return pretrain.load_data(DataRecipe(max_examples=5), seed)["image_id"][:]

    assert len(set(ids(0))) == 5
    assert ids(0) == ids(0) != ids(1)
