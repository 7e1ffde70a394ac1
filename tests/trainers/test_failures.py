"""What goes wrong in long runs: signals, memory, disks, losses, lost processes and damaged shards."""

import errno
import os
import signal
from multiprocessing import active_children

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from torch.testing import assert_close
from transformers import TrainerCallback

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.trainers.checkpoints import fault, newest_complete


@pytest.fixture(autouse=True)
def _forget_processes():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def trainer(build_trainer, no_attack, tmp_path):
    """A function to a trainer of six steps that saves every second one; what it logs is in its state."""

    def build(name="run", **training):
        given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, **training}
        return build_trainer(
            attacks=(no_attack, no_attack),
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=2,
            **given,
        )

    return build


class At(TrainerCallback):
    """Calls a function at the end of a step, before the trainer looks at what callbacks asked for."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.call()


def saved(tmp_path, name="run"):
    return {path.name for path in (tmp_path / name).glob("checkpoint-*") if fault(path) is None}


# SIGTERM --------------------------------------------------------------------------------------------------


def test_sigterm_saves_after_the_step_and_ends_with_status_0(trainer, tmp_path, caplog):
    whole = trainer("whole")
    whole.train()
    stopped = trainer(save_total_limit=1)
    stopped.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit) as ended:
        stopped.train()
    assert ended.value.code == 0
    assert stopped.state.global_step == 3
    assert saved(tmp_path) == {"checkpoint-3"}
    assert "checkpoint-3 is saved" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, resumed.model.get_parameter(name)), name


def test_sigterm_to_the_process_group_spares_the_workers_of_a_loader(trainer):
    """They are in groups of their own, but still end when their process ends them."""
    batches = iter(trainer(dataloader_num_workers=1).get_train_dataloader())
    next(batches)
    (worker,) = active_children()
    assert os.getpgid(worker.pid) != os.getpgrp()
    worker.terminate()
    worker.join(timeout=60)
    assert not worker.is_alive()


def _stop_second_process(build, folder):
    """One process gets the signal in step 3, both end after it."""
    run = build("two", save_strategy="no")
    if run.args.process_index == 1:
        run.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    try:
        run.train()
    except SystemExit as ended:
        (folder / f"ended-{run.args.process_index}").write_text(f"{ended.code} {run.state.global_step}")


def test_processes_agree_on_the_last_step(trainer, tmp_path):
    debug_launcher(_stop_second_process, (trainer, tmp_path), num_processes=2)
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["0 3", "0 3"]
    assert saved(tmp_path, "two") == {"checkpoint-3"}


# Memory and disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_exhausted_memory_names_the_knobs(trainer, tmp_path, monkeypatch, error):
    run = trainer()

    def exhaust(*_, **__):
        raise error

    run.add_callback(At(3, lambda: monkeypatch.setattr(run, "compute_loss", exhaust)))
    with pytest.raises(
        torch.OutOfMemoryError, match=r"in step 3 with per_device_train_batch_size 2"
    ) as raised:
        run.train()
    told = str(raised.value)
    for knob in ("gradient_accumulation_steps", "gradient_checkpointing", "candidate_batch_size"):
        assert knob in told
    assert str(error) in told
    assert f"{tmp_path}/run/checkpoint-2" in told


def test_other_errors_stay_what_they_are(trainer, monkeypatch):
    run = trainer()

    def fail(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(run, "compute_loss", fail)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        run.train()


def test_a_full_disk_names_the_folder_and_leaves_the_checkpoint_before(
    trainer, tmp_path, monkeypatch, caplog
):
    run, save = trainer(save_total_limit=1), torch.save

    def full(content, path, *args, **kwargs):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match=r"checkpoint-4 cannot be written: .*No space left.*GB are free"
    ) as raised:
        run.train()
    assert "save_total_limit" in str(raised.value)
    assert str(raised.value).endswith(f"the last whole checkpoint is {tmp_path}/run/checkpoint-2.")
    assert saved(tmp_path) == {"checkpoint-2"}

    monkeypatch.setattr(torch, "save", save)
    resumed, whole = trainer(save_total_limit=1), trainer("whole")
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert "Passing over" in caplog.text
    assert_close(resumed.model.projector.state_dict(), whole.model.projector.state_dict(), atol=0, rtol=0)
    assert saved(tmp_path) == {"checkpoint-6"}


# Losses ---------------------------------------------------------------------------------------------------


def test_a_bad_micro_batch_stops_the_run_before_its_gradient_counts(trainer):
    """`logging_nan_inf_filter`, on by default, hides bad losses from the log; the guard comes first."""
    run = trainer(gradient_accumulation_steps=2, max_steps=2)
    assert run.args.logging_nan_inf_filter
    calls, compute_loss = [], run.compute_loss

    def second_is_infinite(*args, **kwargs):
        calls.append([value.clone() for value in run.model.parameters()])
        return compute_loss(*args, **kwargs) * (float("inf") if len(calls) == 4 else 1)

    run.compute_loss = second_is_infinite
    with pytest.raises(FloatingPointError, match=r"The loss is (inf|nan) in step 2\."):
        run.train()
    assert len(calls) == 4
    assert_close(list(run.model.parameters()), calls[2], atol=0, rtol=0)


# Lost processes -------------------------------------------------------------------------------------------


def _lose_second_process(build):
    run = build("lost", max_steps=1000, save_strategy="no")
    if run.args.process_index == 1:
        run.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    run.train()


def test_a_killed_process_ends_the_other(trainer):
    """Without the connection's end the other would wait in its step for good, and this test with it."""
    with pytest.raises(Exception, match=r"SIGKILL|closed by peer|reset by peer"):
        debug_launcher(_lose_second_process, (trainer,), num_processes=2)


# Data -----------------------------------------------------------------------------------------------------


def test_a_shard_damaged_in_mid_stream_is_named_and_the_checkpoint_before_serves(trainer, tmp_path):
    write_coco_captions(tmp_path / "published")
    shards = tmp_path / "shards"
    prepare(CocoCaptions, tmp_path / "published", shards, ["train"], 8, num_workers=1, unofficial=True)
    contents = {path: path.read_bytes() for path in (shards / "data").glob("train-*")}

    def build(name="run"):
        run = trainer(name, max_steps=12, dataloader_num_workers=1)
        parts = [MixturePart(PreparedCorpus(str(shards)), ["train"])]
        run.train_dataset = MixtureStream(parts, batch_size=2, buffer_size=1)
        return run

    def damage():
        for path, content in contents.items():
            path.write_bytes(b"\0" * len(content))

    whole = build("whole")
    whole.train()
    run = build()
    run.add_callback(At(3, damage))
    with pytest.raises(OSError, match=r"(?s)Shard .*/data/train-.* cannot be read .*data prepare"):
        run.train()
    for path, content in contents.items():
        path.write_bytes(content)
    newest = newest_complete(tmp_path / "run")
    assert newest is not None
    resumed = build()
    resumed.train(resume_from_checkpoint=str(newest))
    assert_close(resumed.model.vilt.state_dict(), whole.model.vilt.state_dict(), atol=0, rtol=0)
