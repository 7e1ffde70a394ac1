"""What the tests of publication share."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import BertTokenizerFast, ViltImageProcessor, ViltProcessor

from rmcl_hub import modeling_rmcl
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.adversarial_examples import AdversarialWriter
from rmcl_hub.evaluation.outcomes import OVERALL, save_outcomes, summarise
from rmcl_hub.evaluation.pictures import picture_pair
from rmcl_hub.evaluation.provenance import model_digest


def worst_of(rows):
    return max(rows, key=lambda row: (not row.adversarial_correct, not row.correct_8bit, row.loss_after))


def consistent_evaluation(record, random_outcomes):
    """Outcomes for every attack of a record, whose numbers and pairs become what follows from them."""
    outcomes, num_examples = [], record["data"]["num_examples"]
    for number, (name, threat) in enumerate(record["threats"].items()):
        declared, parts = ThreatModel.load(name), []
        threat.update(threat_model=declared.to_dict(), digest=declared.digest, sentence=str(declared))
        for place, entry in enumerate(threat["attacks"].values()):
            rows = random_outcomes(number, 0.7, {entry["run"]: 0.2 + 0.1 * place}, num_examples)
            parts.append([replace(row, loss_after=1.5 + place) for row in rows])
            entry["numbers"] = summarise({0: parts[-1]})[entry["run"]][OVERALL]
        worst = [replace(worst_of(rows), attack=name) for rows in zip(*parts, strict=True)]
        threat["numbers"] = summarise({0: worst})[name]
        shown = [row for row in worst if row.clean_correct][:2]
        ramp, mask = torch.linspace(0, 1, 48).expand(3, 48, 48), torch.ones(48, 48, dtype=torch.long)
        threat["pairs"] = [picture_pair(row, ramp, ramp.flip(2), mask) for row in shown]
        outcomes += [row for rows in (*parts, worst) for row in rows]
    return outcomes


@pytest.fixture
def evaluation_folder(evaluation_record, random_outcomes_of, tmp_path):
    """What `rmcl-hub evaluate` writes: a record, outcomes and adversarial examples that agree.

    Two threat models, linf-4 and words-20pct, 64 examples.
    """
    folder = tmp_path / "evaluation"
    outcomes = consistent_evaluation(evaluation_record, random_outcomes_of)
    write = AdversarialWriter(folder)
    for name in evaluation_record["threats"]:
        rows = [row for row in outcomes if row.attack == name]
        write(name, rows, {"pixel_values": torch.zeros(len(rows), 3, 2, 2)})
    save_outcomes(outcomes, folder / "outcomes.parquet")
    (folder / "evaluation.json").write_text(json.dumps(evaluation_record))
    return folder


@pytest.fixture(scope="session")
def question_model(tmp_path_factory, vocabulary_file):
    """Folder and digest of a saved toy model that answers questions; for reading only."""
    folder = tmp_path_factory.mktemp("models") / "model"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = modeling_rmcl.RMCLViltConfig(vocab_size=67, image_size=32, patch_size=16, **sizes)
    model = modeling_rmcl.RMCLViltForQuestionAnswering(config)
    model.save_pretrained(folder)
    _save_processor(folder, BertTokenizerFast(str(vocabulary_file)))
    return folder, model_digest(model)


def _save_processor(folder, tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


@pytest.fixture
def save_model(tiny_config, tiny_tokenizer, tmp_path):
    """A function from a class name to the folder of a saved toy model of it, with its processor."""

    def save(class_name):
        tiny_config.num_images, tiny_config.modality_type_vocab_size = 2, 3  # for the head of NLVR2
        getattr(modeling_rmcl, class_name)(tiny_config).save_pretrained(tmp_path / "model")
        _save_processor(tmp_path / "model", tiny_tokenizer)
        return tmp_path / "model"

    return save


@pytest.fixture
def model_folder(question_model, tmp_path):
    """A saved toy model that answers questions."""
    return Path(shutil.copytree(question_model[0], tmp_path / "model"))


@pytest.fixture
def model_record(evaluation_record, question_model):
    """An evaluation of `model_folder`: VQA on openpairs, linf-4 and words-20pct, both to be published."""
    evaluation_record["model"]["digest"] = question_model[1]
    return evaluation_record


@pytest.fixture
def save_record(tmp_path):
    """A function that writes a record as a command does, into a folder of its own, which it returns."""

    def save(record, name, file="evaluation.json"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(record))
        return folder

    return save


@pytest.fixture
def user(loopback_hub, monkeypatch):
    """Acts as "user" in this process; repeats requests at once instead of after seconds."""
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token("user"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
