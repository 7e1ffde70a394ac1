"""Steps, rows and models of a dry run, against the trainer's own; and that it reads and writes nothing."""

import sys

import pytest
import torch

from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining, RMCLViltForQuestionAnswering
from rmcl_hub.trainers import finetune, pretrain
from rmcl_hub.trainers.dry_run import build_on_meta, count_rows, dry_run, plan, report, trained_parameters
from rmcl_hub.trainers.recipe import (
    AttackRecipe,
    CorpusRecipe,
    DataRecipe,
    FinetuneRecipe,
    PretrainRecipe,
)

IMAGE = {"epsilon": 0.1, "step_size": 0.05, "num_steps": 2}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "projection_dim": 16,
    "queue_size": 16,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def coco(location="shards/coco_captions", **fields):
    corpora = {"coco_captions": CorpusRecipe(str(location), splits=["train"])}
    return DataRecipe(corpora=corpora, streaming=True, **fields)


@pytest.mark.parametrize(
    "training",
    [
        {"num_train_epochs": 2, "per_device_train_batch_size": 3},
        {"num_train_epochs": 1.5, "per_device_train_batch_size": 3},
        {"num_train_epochs": 2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 2, "per_device_train_batch_size": 3, "dataloader_drop_last": True},
        {"max_steps": 5, "per_device_train_batch_size": 8, "warmup_steps": 2},
        {"max_steps": 5, "per_device_train_batch_size": 8, "warmup_steps": 0.3},
    ],
)
def test_steps_and_warm_up_are_those_that_the_trainer_makes(training, build_trainer):
    """Eight pairs."""
    recipe = PretrainRecipe(attack=AttackRecipe(image=IMAGE), training={**training, "views": ["image"]})
    schedule = plan(recipe, rows=8, processes=1)
    given = {"max_steps": -1, **training}
    share = given.pop("warmup_steps", 0)  # `training_arguments` reads a share; the fixture hands it on
    trainer = build_trainer(views=["image"], warmup_steps=share, learning_rate=0.0, **given)
    trainer.train()
    assert schedule.steps == trainer.state.global_step == trainer.state.max_steps
    assert schedule.warmup_steps == trainer.args.get_warmup_steps(schedule.steps)
    examples = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    assert schedule.batch == examples


def test_processes_share_an_epoch():
    recipe = PretrainRecipe(
        data=coco(),
        training={
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 3,
        },
    )
    schedule = plan(recipe, rows=1030, processes=4)
    assert schedule.batch == 16 * 2 * 4
    assert schedule.steps_per_epoch == 9  # 257 rows: 17 batches, the last one short, by twos
    assert schedule.steps == 27


def test_half_precision_needs_no_accelerator_to_be_planned():
    recipe = PretrainRecipe(training={"fp16": True, "max_steps": 7})
    assert plan(recipe, 8, 1).steps == 7


def test_a_value_that_the_trainer_refuses_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        plan(PretrainRecipe(training={"lr_scheduler_type": "sideways"}), 8, 1)


def test_rows_are_documented_until_there_is_a_manifest(tmp_path, caption_manifest):
    data = coco(tmp_path / "shards")
    assert count_rows(PretrainRecipe(data=data)) == (82_783, "82,783 coco_captions train, documented")
    caption_manifest(tmp_path / "shards", "coco_captions", {"train": 7, "test": 3})
    assert count_rows(PretrainRecipe(data=data)) == (7, "7 coco_captions train, prepared")


def test_rows_of_a_fine_tuning_are_those_of_its_protocol():
    data = {"vqav2": CorpusRecipe("shards/vqav2")}
    recipe = FinetuneRecipe(task="vqa", protocol="clean", data=DataRecipe("vqa", corpora=data))
    rows, source = count_rows(recipe)
    assert rows == 443_757
    assert source == "443,757 vqav2 train_fit, documented of train_fit+train_dev together"
    recipe.protocol = "thesis"
    assert count_rows(recipe)[0] == 443_757 + 214_354  # train_dev is not counted twice


def test_rows_of_the_embedded_pairs():
    from rmcl_hub.datasets_scripts.openpairs import load_openpairs

    everything = len(load_openpairs("captions", "train"))
    assert count_rows(PretrainRecipe()) == (everything, "embedded pairs")
    assert count_rows(PretrainRecipe(data=DataRecipe(max_examples=20, streaming=True)))[0] == 20


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_the_model_on_meta_has_the_parameters_of_the_run(projector, build_trainer, tiny_model, tmp_path):
    model = tiny_model(projector=projector)
    model.save_pretrained(tmp_path / "start")
    recipe = PretrainRecipe(init_from=str(tmp_path / "start"))
    on_meta = build_on_meta(recipe)
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}
    assert on_meta.num_parameters() == model.num_parameters()
    trainer = build_trainer(model)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trained_parameters(recipe, on_meta) == sum(parameter.numel() for parameter in trained)


def test_without_local_weights_it_is_vilt_b32():
    model = build_on_meta(PretrainRecipe(init_from="checkpoints/vilt-b32-mlm"))
    assert isinstance(model, RMCLViltForPreTraining)
    # ViLT-B/32 has 111.6 million (arXiv:2102.03334, Table 6: 87.4 without word embeddings)
    assert sum(p.numel() for p in model.vilt.parameters()) == pytest.approx(111.6e6, rel=1e-3)
    words = model.get_input_embeddings().weight.numel()
    assert sum(p.numel() for p in model.vilt.parameters()) - words == pytest.approx(87.4e6, rel=0.02)


def test_heads_of_fine_tuning(tmp_path):
    data = {"vqav2": CorpusRecipe(str(tmp_path))}
    vqa = FinetuneRecipe("vqa", "clean", init_from="x", data=DataRecipe("vqa", corpora=data))
    model = build_on_meta(vqa)
    assert isinstance(model, RMCLViltForQuestionAnswering)
    assert model.classifier[-1].out_features == 3129
    vqa.freeze_encoder = True
    assert trained_parameters(vqa, model) == sum(p.numel() for p in model.classifier.parameters())
    nlvr2 = FinetuneRecipe("nlvr2", init_from="x", data=DataRecipe("nlvr2"))
    assert build_on_meta(nlvr2).vilt.embeddings.token_type_embeddings.weight.shape[0] == 3


def test_trained_are_the_parameters_that_a_step_of_the_objectives_reaches(tiny_model, clean_batch, processor):
    from rmcl_hub.trainers.pretraining_collator import PretrainingCollator

    model = tiny_model()
    for objectives in (["mlm"], ["itm"], ["mlm", "itm"]):
        model.zero_grad()
        batch = PretrainingCollator(processor, objectives, max_text_length=24)(_pairs(clean_batch))
        batch.pop("text")
        model(**batch).loss.backward()
        reached = sum(p.numel() for p in model.parameters() if p.grad is not None)
        # an unmatched pooler gets no gradient from masked words; AdamW keeps moments of what has one
        pooler = 0 if "itm" in objectives else sum(p.numel() for p in model.vilt.pooler.parameters())
        recipe = PretrainRecipe(stage="vilt", objectives=objectives)
        assert trained_parameters(recipe, model) == reached + pooler


def _pairs(batch):
    from PIL import Image

    return [
        {"image": Image.new("RGB", (32, 32), (row * 9, 80, 80)), "image_id": str(row), "captions": [text]}
        for row, text in enumerate(batch["text"])
    ]


def test_a_dry_run_of_pretraining_tells_everything_and_leaves_nothing(write, capsys, tmp_path):
    path = write(
        f"stage: rmcl\ninit_from: checkpoints/vilt\nmodel: {SMALL}\n"
        "data: {corpora: {coco_captions: {location: shards/coco}}, streaming: true}\n"
        "attack: {image: {preset: thesis}, text: {vectors: vectors.txt}}\n"
        "training: {num_train_epochs: 1, per_device_train_batch_size: 16, fp16: true}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert pretrain.main([path, "--dry-run", "--processes", "8", "--training.warmup_steps", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "82,783 coco_captions train, documented" in out
    assert "128 = 16 a process x 1 accumulated x 8 processes" in out
    assert "647, of which warm-up 65" in out
    assert (
        "rmcl-hub data prepare coco_captions --source <its published files> --output-dir shards/coco" in out
    )
    assert "convert_vilt_checkpoint dandelin/vilt-b32-mlm checkpoints/vilt" in out
    assert "not there yet: vectors.txt" in out
    assert "at most" in out.split("passes")[1]
    assert "key encoder" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_builds_no_trainer_and_touches_no_pictures(write, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a dry run must not")

    monkeypatch.setattr(pretrain, "pretrain", refuse)
    monkeypatch.setattr("rmcl_hub.datasets_scripts.images.decode_image", refuse)
    monkeypatch.setattr(torch.optim, "AdamW", refuse)
    assert pretrain.main([write(f"model: {SMALL}\nimage_size: 32"), "--dry-run"]) == 0


def test_a_dry_run_of_fine_tuning(write, capsys):
    path = write(
        "task: nlvr2\nprotocol: clean\ninit_from: runs/x\ndata: {corpora: {nlvr2: {location: s}}}\n"
        "training: {num_train_epochs: 10, per_device_train_batch_size: 128}\n"
    )
    assert finetune.main([path, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "86,373 nlvr2 train, documented" in out
    assert "6,750, of which warm-up 0; an epoch has 675" in out


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("stag: rmcl", [], "did you mean 'stage'"),
        ("training: {learning_rat: 1}", [], "did you mean 'learning_rate'"),
        ("model: {projector: clip}", [], "projector must be 'moco' or 'barlow_twins', got 'clip'"),
        ("data: {max_text_length: 41}", [], "41, but the encoder has 40 text positions"),
        ("stage: rmcl", ["--processes", "none"], "--processes must be a number of at least 1, got 'none'"),
        ("stage: rmcl", ["--processes=0"], "--processes must be a number of at least 1, got '0'"),
        ("stage: rmcl", ["--processes"], "--processes must be a number of at least 1, got ''"),
    ],
)
def test_wrong_fields_end_with_status_2_and_the_reason(text, words, message, write, capsys):
    assert dry_run(PretrainRecipe, "rmcl-hub pretrain", "", [write(text), "--dry-run", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_recipe_ends_with_status_2(capsys):
    assert pretrain.main(["nowhere.yaml", "--dry-run"]) == 2
    assert "No recipe 'nowhere.yaml'" in capsys.readouterr().err


def test_wrong_paths_end_with_status_2_before_anything_is_estimated(tmp_path):
    (tmp_path / "start").mkdir()
    lines, status = report(PretrainRecipe(init_from="start"))
    assert status == 2
    assert any("wrong: start holds no config.json" in line for line in lines)
    assert not any("GB" in line for line in lines)


def test_values_with_spaces_and_equals_signs_survive(write, capsys):
    words = [write("stage: rmcl"), "--dry-run", "--processes=2", "--attack.image={preset: thesis}"]
    assert dry_run(PretrainRecipe, "rmcl-hub pretrain", "", words) == 0
    assert "x 2 processes" in capsys.readouterr().out


def test_the_help_names_the_flag_and_loads_nothing_heavy(capsys):
    before = set(sys.modules)
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    assert "[--dry-run [--processes N]]" in capsys.readouterr().out
    assert set(sys.modules) - before <= {"rmcl_hub.trainers.recipe"}
