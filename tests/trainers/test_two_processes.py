"""Two processes over gloo do what one does with the whole batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl.projectors import MoCoProjector
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator

SCRIPT = Path(__file__).parents[2] / "trainers" / "pretrain.py"


@pytest.fixture
def forget_processes():
    """Accelerate keeps what it learned about the processes for good; other tests must not inherit it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(build_trainer, tiny_model, processor, tmp_path):
    """A function that trains two steps on the processes there are; each leaves `<name>-<rank>.pt`."""

    def run(name, projector, batch_size, pretraining_weight=0.0):
        model = tiny_model(projector=projector, momentum=0.5, contrastive_temperature=0.2)
        if projector == "barlow_twins":
            # The objective is the subject here, and batch normalisation would see the batch of its process.
            model.projector = MoCoProjector(model.config.hidden_size, model.config.projection_dim)
        trainer = build_trainer(
            model,
            collator=PretrainingCollator(processor, max_text_length=24),
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=batch_size,
            pretraining_weight=pretraining_weight,
            learning_rate=0.01,  # small, lest two steps make much of rounding
            max_steps=2,
        )
        trainer.train()
        result = {
            "weights": trainer.model.state_dict(),
            "key_branch": {} if trainer.key_branch is None else trainer.key_branch.state_dict(),
            "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
            "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        }
        torch.save(result, tmp_path / f"{name}-{trainer.args.process_index}.pt")

    return run


@pytest.mark.usefixtures("forget_processes")
@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_weights_queue_and_loss_equal_those_of_one_process(run, tmp_path, projector):
    debug_launcher(run, ("two", projector, 4), num_processes=2)
    run("one", projector, 8)
    first, second, one = (torch.load(tmp_path / f"{name}.pt") for name in ("two-0", "two-1", "one-0"))
    assert (first["world_size"], second["world_size"], one["world_size"]) == (2, 2, 1)
    for name in ("weights", "key_branch"):
        assert_close(first[name], second[name], atol=0, rtol=0)
        assert_close(first[name], one[name], atol=1e-4, rtol=1e-3)
    assert first["losses"] == pytest.approx(one["losses"], rel=5e-5, abs=2e-4)  # float32, two steps


@pytest.mark.usefixtures("forget_processes")
def test_processes_agree_when_vilts_own_objectives_stay(run, tmp_path):
    debug_launcher(run, ("two", "moco", 4, 0.1), num_processes=2)
    first, second = (torch.load(tmp_path / f"two-{rank}.pt") for rank in (0, 1))
    for name in ("weights", "key_branch"):
        assert_close(first[name], second[name], atol=0, rtol=0)


def test_the_script_runs_under_torchrun(tmp_path):
    """As the README says it; on CPUs `accelerate launch` would start one process and say nothing."""
    recipe = {
        "stage": "rmcl",
        "image_size": 32,
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": 16,
            "projection_dim": 8,
            "queue_size": 16,
        },
        "data": {"max_examples": 16, "max_text_length": 12},
        "attack": {"image": {"epsilon": 0.03, "step_size": 0.02, "num_steps": 1, "random_start": True}},
        "training": {
            "views": ["image"],
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 1,
            "disable_tqdm": True,
        },
    }
    path, output = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    overrides = ["--training.use_cpu", "true", "--output_dir", str(output)]
    finished = subprocess.run(
        [*launch, str(SCRIPT), str(path), *overrides],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    state = torch.load(output / "checkpoint-2" / "rmcl_state.pt", weights_only=True)
    assert state["key_branch"]["queue_pointer"] == 2 * 2 * 2  # steps x pairs of a process x processes
    assert (output / "checkpoint-2" / "rng_state_1.pth").is_file()  # of the second process
    assert json.loads((output / "config.json").read_text())["model_type"] == "rmcl_vilt"
