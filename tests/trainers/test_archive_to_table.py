"""Every corpus from its published files to a result, by the commands that a user types, in miniature."""

import json

import pytest
import yaml
from transformers import AutoProcessor, set_seed

from rmcl_hub.attacks import PGD
from rmcl_hub.cli import main
from rmcl_hub.datasets_scripts.build_miniatures import WRITERS
from rmcl_hub.datasets_scripts.corpora import CORPORA, load_corpus
from rmcl_hub.datasets_scripts.protocols import find_protocol
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.evaluation.attack_loop import CAPTION_COLUMNS
from rmcl_hub.evaluation.retention import embedding_retention
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
from rmcl_hub.trainers.processing import build_processor

CAPTIONS = [name for name, corpus in CORPORA.items() if corpus.task == "captions"]
QUESTIONS = [name for name in CORPORA if name not in CAPTIONS]
TRAINING = {
    "max_steps": 20,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 5,
    "disable_tqdm": True,
    "use_cpu": True,
}
DATA = {"streaming": True, "buffer_size": 16, "max_text_length": 20}


@pytest.fixture(scope="module")
def prepare_corpus(tmp_path_factory):
    """A function that writes the miniature of a corpus and prepares it by command, once."""
    root, shards = tmp_path_factory.mktemp("corpora"), {}

    def prepare_corpus(name):
        if name not in shards:
            WRITERS[name](root / name)
            folder = root / f"{name}-shards"
            words = ["data", "prepare", name, "--source", str(root / name), "--output-dir", str(folder)]
            assert main([*words, "--rows-per-shard", "16", "--unofficial", "--num-workers", "1"]) == 0
            shards[name] = folder
        return shards[name]

    return prepare_corpus


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a pre-training model of toy size with the packaged vocabulary."""
    processor = build_processor(None, image_size=32, patch_size=16)
    set_seed(0)
    config = RMCLViltConfig(
        vocab_size=len(processor.tokenizer),
        cls_token_id=processor.tokenizer.cls_token_id,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        projection_dim=8,
        queue_size=16,
    )
    folder = tmp_path_factory.mktemp("encoder")
    RMCLViltForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def losses(capsys):
    """The logged losses of a run, from what `Trainer` printed."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss'")]
    return [float(yaml.safe_load(line)["loss"]) for line in lines]


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_pre_train_and_pairs_are_attacked(name, prepare_corpus, encoder, tmp_path, capsys):
    shards = prepare_corpus(name)
    recipe = {
        "stage": "rmcl",
        "init_from": str(encoder),
        "output_dir": str(tmp_path / "model"),
        "data": {**DATA, "corpora": {name: {"location": str(shards)}}},
        "attack": {
            "image": {"preset": "standard", "epsilon": 0.0157},
            "text": {"max_change_share": 0.5},
        },
        "training": {**TRAINING, "per_device_train_batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["pretrain", str(tmp_path / "recipe.yaml")]) == 0
    assert len(losses(capsys)) == 4
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    result = embedding_retention(
        RMCLViltForPreTraining.from_pretrained(tmp_path / "model"),
        load_corpus(shards, "train", cache_dir=str(tmp_path / "cache")).select(range(12)),
        PairCollator(processor, 20, max_unreadable=0, draw_caption=False),
        {"pgd": PGD.preset("standard", 4 / 255)},
        batch_size=6,
        columns=CAPTION_COLUMNS,
    )
    assert len(result.outcomes) == 12
    assert result.summary()["pgd"]["overall"]["max_delta_linf"] == pytest.approx(4 / 255, rel=1e-3)


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_fine_tune_and_are_attacked(name, prepare_corpus, encoder, tmp_path, capsys):
    shards = prepare_corpus(name)
    recipe = {
        "task": CORPORA[name].task,
        "protocol": "clean",
        "init_from": str(encoder),
        "output_dir": str(tmp_path / "model"),
        "data": {**DATA, "corpora": {name: {"location": str(shards)}}},
        "training": {**TRAINING, "eval_strategy": "steps", "eval_steps": 10},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["finetune", str(tmp_path / "recipe.yaml")]) == 0
    assert len(losses(capsys)) == 4
    words = [
        "evaluate",
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(shards),
        "--task",
        CORPORA[name].task,
    ]
    words += ["--threat", "linf-4", "--effort", "quick", "--max-examples", "6", "--defence", "none"]
    assert main([*words, "--output-dir", str(tmp_path / "result")]) == 0
    record = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert record["protocol"]["name"] == "clean"
    assert tuple(record["protocol"]["splits"]) == find_protocol("clean", name).test
    assert "| linf-4 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["coco_captions", "flickr30k"])
def test_retrieval_is_fine_tuned_from_captions(name, prepare_corpus, encoder, tmp_path, capsys):
    shards = prepare_corpus(name)
    recipe = {
        "task": "retrieval",
        "protocol": "clean",
        "num_negatives": 3,
        "init_from": str(encoder),
        "output_dir": str(tmp_path / "model"),
        "data": {**DATA, "corpora": {name: {"location": str(shards)}}},
        "training": TRAINING,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["finetune", str(tmp_path / "recipe.yaml")]) == 0
    words = ["retrieve", "--model", str(tmp_path / "model"), "--data", str(shards), "--gallery", "4"]
    assert main([*words, "--output-dir", str(tmp_path / "result")]) == 0
    result = json.loads((tmp_path / "result" / "retrieval.json").read_text())
    assert result["protocol"]["name"] == "custom"  # no protocol ranks four pictures
    assert result["protocol"]["corpus"] == name
    assert "| text to image | 4 pictures |" in capsys.readouterr().out


def test_vqa_answers_for_the_server_come_from_the_fine_tuned_model(prepare_corpus, encoder, tmp_path):
    shards = prepare_corpus("vqav2")
    recipe = {
        "task": "vqa",
        "protocol": "clean",
        "init_from": str(encoder),
        "output_dir": str(tmp_path / "model"),
        "data": {**DATA, "corpora": {"vqav2": {"location": str(shards)}}},
        "training": {**TRAINING, "max_steps": 2, "eval_strategy": "no"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["finetune", str(tmp_path / "recipe.yaml")]) == 0
    words = ["vqa-answers", "--model", str(tmp_path / "model"), "--data", str(shards)]
    assert main([*words, "--split", "test_dev", "--output", str(tmp_path / "answers.json")]) == 0
    answers = json.loads((tmp_path / "answers.json").read_text())
    vocabulary = json.loads((shards / "answers.json").read_text())
    assert answers
    assert all(set(entry) == {"question_id", "answer"} for entry in answers)
    assert {entry["answer"] for entry in answers} <= set(vocabulary)
