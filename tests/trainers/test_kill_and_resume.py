"""Killed at any moment, also while it writes a checkpoint, a run ends with the bits of one that was not.

The short form of benchmarks/kill_and_resume.py, which also kills runs of two processes.
"""

import json
import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.trainers.checkpoints import MARKER, fault, newest_complete

STEPS, SAVE_STEPS = 7, 2  # an epoch has 6 steps


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """The miniature of COCO Captions as shards of 8 rows."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco_captions(folder / "published")
    shards = folder / "shards"
    prepare(CocoCaptions, folder / "published", shards, ["train"], 8, num_workers=1, unofficial=True)
    return PreparedCorpus(str(shards))


@pytest.fixture
def train(build_trainer, tiny_model, text_attack, coco, tmp_path):
    """A function that starts a streaming RMCL run or goes on with it, and returns all that must be equal."""

    def train(name, projector, resume=False):
        trainer = build_trainer(
            tiny_model(projector=projector, momentum=0.5, hidden_dropout_prob=0.1),
            attacks=(PGD(epsilon=0.1, step_size=0.05, num_steps=1, random_start=True), text_attack),
            output_dir=str(tmp_path / name),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            optim="adamw_torch",
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=SAVE_STEPS,
            save_total_limit=1,
            logging_steps=3,
        )
        parts = [MixturePart(coco, ["train"])]
        trainer.train_dataset = MixtureStream(parts, batch_size=2, buffer_size=5)
        trainer.train(resume_from_checkpoint=resume)
        last = tmp_path / name / f"checkpoint-{STEPS}"
        files = ("optimizer.pt", "scheduler.pt", "rmcl_state.pt")
        tensors = {file: torch.load(last / file) for file in files}
        tensors["weights"] = dict(trainer.model.named_parameters())
        for weights in (tensors["weights"], tensors["rmcl_state.pt"]["key_branch"] or {}):
            # the decoder's bias under Transformers 4's name, filled when a file is read and never used
            weights.pop("mlm_score.bias", None), weights.pop("encoder.mlm_score.bias", None)
        draws = torch.load(last / "rng_state.pth", weights_only=False)
        draws = {
            "numpy": draws["numpy"][1].tolist(),
            "torch": draws["cpu"].tolist(),
            "python": draws["python"],
        }
        curves = json.loads((last / "trainer_state.json").read_text())["log_history"]
        return tensors, draws, curves

    return train


def start(train, moment):
    """Run `moment(train)` in a process of its own."""
    process = get_context("fork").Process(target=moment, args=(train,))
    process.start()
    return process


def assert_same(ours, theirs):
    assert_close(ours[0], theirs[0], atol=0, rtol=0)
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_a_run_killed_at_a_random_moment(train, tmp_path, projector):
    whole = train("whole", projector)
    process = start(train, lambda train: train("run", projector))
    while not list((tmp_path / "run").glob(f"checkpoint-*/{MARKER}")):
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(random.Random(os.urandom(8)).uniform(0, 0.4))
    process.kill()
    process.join()
    assert_same(train("run", projector, resume=True), whole)


@pytest.mark.parametrize("file", ["rmcl_state.pt", MARKER])
def test_a_run_killed_while_it_writes_a_checkpoint(train, tmp_path, file, caplog):
    """Before a file of the second checkpoint, whose forerunner may not have been deleted yet."""

    def dies(path):
        if Path(path).parent.name == f"checkpoint-{2 * SAVE_STEPS}" and Path(path).name == file:
            os.kill(os.getpid(), signal.SIGKILL)

    def moment(train):
        save, replace = torch.save, Path.replace
        torch.save = lambda content, path: (dies(path), save(content, path))
        Path.replace = lambda self, target: (dies(target), replace(self, target))
        train("run", "moco")

    process = start(train, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert fault(tmp_path / "run" / f"checkpoint-{2 * SAVE_STEPS}")
    assert newest_complete(tmp_path / "run").name == f"checkpoint-{SAVE_STEPS}"
    assert "Passing over" in caplog.text
    resumed = train("run", "moco", resume=True)
    assert_same(resumed, train("whole", "moco"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"checkpoint-{STEPS}"]


def test_a_run_that_validates_and_keeps_the_best_goes_on_alike(build_trainer, no_attack, pairs, tmp_path):
    """Ended in the second epoch of a table, between validations that draw from the same random states."""

    def train(name, resume=False, ends_in=None):
        trainer = build_trainer(
            attacks=(no_attack, no_attack),
            output_dir=str(tmp_path / name),
            max_steps=7,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            eval_dataset=pairs[:4],
            save_strategy="steps",
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            save_total_limit=1,
        )
        end_step = trainer.end_step

        def end():
            end_step()
            if trainer.state.global_step == ends_in:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.end_step = end
        trainer.train(resume_from_checkpoint=resume)
        validations = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        best = Path(trainer.state.best_model_checkpoint).name
        return dict(trainer.model.projector.named_parameters()), validations, best

    whole = train("whole")
    assert len(set(whole[1])) >= 3  # Transformers 5 validates after the last step, too
    with pytest.raises(SystemExit):
        train("run", ends_in=5)
    resumed = train("run", resume=True)
    assert resumed[1:] == whole[1:]
    assert_close(resumed[0], whole[0], atol=0, rtol=0)


def test_a_run_killed_after_its_last_checkpoint_has_nothing_left_to_train(train):
    """The end lies within an epoch, where `Trainer` would make a step more before it looks at the limit."""
    whole = train("run", "moco")
    assert_same(train("run", "moco", resume=True), whole)


def test_a_finished_run_has_its_last_loss_but_no_weights_in_shards(build_trainer, no_attack, monkeypatch):
    def build():
        return build_trainer(
            attacks=(no_attack, no_attack), max_steps=2, save_strategy="steps", save_steps=2, logging_steps=1
        )

    whole = build()
    whole.train()
    resumed = build()
    finished = resumed.train(resume_from_checkpoint=True)
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert (finished.global_step, finished.training_loss) == (2, losses[1])
    assert losses[0] != losses[1]
    sharded = build()
    monkeypatch.setattr(sharded, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"checkpoint-2 is the end of its run.*in shards.*merge-weights"):
        sharded.train(resume_from_checkpoint=True)
