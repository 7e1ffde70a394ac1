import json
import math
from pathlib import Path

import pytest

from rmcl_hub.evaluation import results as results_module
from rmcl_hub.evaluation.results import curve_from_logs, read_results, write_atomically, write_results


def test_round_trip(results, tmp_path):
    path = write_results(results, tmp_path / "new" / "folder")
    assert path.name == "results.json"
    assert read_results(path) == read_results(path.parent) == results


def test_nothing_is_left_of_a_failed_write(results, tmp_path, monkeypatch):
    write_results(results, tmp_path)
    before = (tmp_path / "results.json").read_text()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results({**results, "title": "other"}, tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_missing_field_is_named_before_anything_is_written(results, tmp_path):
    del results["seeds"], results["notes"]
    with pytest.raises(ValueError, match=r"results lack notes, seeds; see evaluation/results\.py"):
        write_results(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_field_is_named_when_read(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"title": "old"}))
    with pytest.raises(ValueError, match="results lack baselines, comparisons"):
        read_results(tmp_path)


def test_nan_is_refused(results, tmp_path):
    results["seconds"]["pretrain"] = math.nan
    with pytest.raises(ValueError, match="store None where a number is undefined"):
        write_results(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the quickstart or an evaluation first"):
        read_results(tmp_path / "results.json")


def test_unwritable_folder_is_named(results, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*file/folder .*choose a folder that you may write"):
        write_results(results, tmp_path / "file" / "folder")


def test_written_file_is_readable_by_others(tmp_path):
    path = write_atomically(tmp_path / "page.html", "é")
    assert path.read_text(encoding="utf-8") == "é"
    assert path.stat().st_mode & 0o777 == 0o644


def test_curve_takes_finite_values_of_its_key():
    logs = {
        "rmcl": [{"step": 1, "loss": 2.0}, {"step": 2, "lr": 0.1}, {"step": 3, "loss": math.nan}],
        "control": [{"step": 5, "loss": 1}],
    }
    curve = curve_from_logs("Loss", "nats", "loss", logs)
    assert curve["series"] == {"rmcl": [[1.0, 2.0]], "control": [[5.0, 1.0]]}
    assert (curve["title"], curve["y_label"]) == ("Loss", "nats")


def test_every_field_of_the_layout_is_documented():
    documentation = results_module.Results.__doc__
    assert all(f"{name}:" in documentation for name in results_module.Results.__annotations__)
