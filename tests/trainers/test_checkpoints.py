"""Only whole checkpoints count: cut off, half-deleted and half-written ones are passed over, and named."""

import json
import logging

import pytest

from rmcl_hub.trainers.checkpoints import (
    MARKER,
    checkpoint_folders,
    delete_older,
    discard,
    fault,
    mark_complete,
    newest_complete,
    recorded_run,
)


@pytest.fixture
def write(tmp_path):
    """A function that writes the checkpoint of a step, whole unless told otherwise."""

    def write(step, complete=True):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "global_step" / "shard.pt").write_bytes(b"state")
        if complete:
            mark_complete(folder, {"processes": 2, "step": step})
        return folder

    return write


def names(tmp_path):
    return {path.name for path in tmp_path.iterdir()}


def test_a_whole_checkpoint_has_no_fault_and_remembers_its_run(write):
    assert fault(write(3)) is None
    assert recorded_run(write(12)) == {"processes": 2, "step": 12}


def test_every_file_is_listed_with_its_size_and_nothing_is_left_over(write):
    folder = write(3)
    listed = json.loads((folder / MARKER).read_text())["files"]
    assert listed == {"global_step/shard.pt": 5, "model.safetensors": 7}
    assert {path.name for path in folder.iterdir()} == {"global_step", "model.safetensors", MARKER}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MARKER).unlink(), "no complete.json, which is written last"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weig"), "has 4 bytes instead of 7"),
        (lambda folder: (folder / "global_step" / "shard.pt").unlink(), "shard.pt is missing"),
    ],
)
def test_the_newest_whole_one_is_found_and_the_others_are_named(write, tmp_path, caplog, damage, reason):
    write(3), write(9)
    damage(write(12))
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-9"
    assert "Passing over" in caplog.text
    assert "checkpoint-12" in caplog.text
    assert reason in caplog.text


def test_newest_is_by_step_not_by_name_or_time(write, tmp_path):
    write(100), write(20), (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-100", "checkpoint-20"]
    assert newest_complete(tmp_path).name == "checkpoint-100"


def test_no_whole_checkpoint_is_none(write, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert newest_complete(tmp_path) is None
    assert not caplog.records
    write(3, complete=False)
    assert newest_complete(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {3, 6, 9, 12}),
        (0, None, {3, 6, 9, 12}),
        (1, None, {12}),
        (2, None, {9, 12}),
        (1, 3, {3, 12}),
        (2, 3, {3, 12}),
        (3, 3, {3, 9, 12}),
        (2, 12, {9, 12}),
    ],
)
def test_the_new_the_best_and_the_newest_others_stay(write, tmp_path, limit, best, left):
    for step in (3, 6, 9):
        write(step)
    delete_older(write(12), limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert names(tmp_path) == {f"checkpoint-{step}" for step in left}


def test_unfinished_ones_do_not_take_the_place_of_whole_ones(write, tmp_path):
    write(3), write(6, complete=False), write(20, complete=False)
    delete_older(write(9), 2)
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-9"}


def test_a_discarded_one_loses_its_marker_before_anything_else(write, monkeypatch):
    folder = write(3)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if killed right after the marker
    discard(folder)
    assert (folder / "model.safetensors").is_file()
    assert "no complete.json" in fault(folder)
