"""Work in processes: order, errors, and a process that dies."""

import os
import sys

import pytest

from rmcl_hub.datasets_scripts.processes import map_in_processes


def test_one_worker_is_this_process_and_lazy():
    done = []

    def note(job):
        done.append(job)
        return os.getpid(), job

    results = map_in_processes(note, [1, 2, 3], num_workers=1)
    assert next(results) == (os.getpid(), 1)
    assert done == [1]
    assert list(map_in_processes(note, [4], num_workers=8)) == [(os.getpid(), 4)]
    assert list(map_in_processes(note, [])) == []


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        list(map_in_processes(str, [1, 2], num_workers=0))


def test_a_process_that_dies_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rmcl-hub"])
    with pytest.raises(OSError, match=r"A worker process was killed, .* with a smaller --num-workers"):
        list(map_in_processes(os._exit, [1, 1], num_workers=2))


def test_results_come_in_order_and_errors_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rmcl-hub"])
    results = map_in_processes(os.stat, ["/", "/nowhere", "/"], num_workers=2)
    assert next(results).st_ino == os.stat("/").st_ino  # noqa: PTH116 - a function that processes know by name
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        next(results)
