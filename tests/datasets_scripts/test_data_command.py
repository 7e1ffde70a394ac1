"""`rmcl-hub data`: its help, its exit codes, and what it says to bad input."""

import subprocess
import sys

import pytest

from rmcl_hub.datasets_scripts import data_command
from rmcl_hub.datasets_scripts.data_command import main


def test_help_does_not_import_what_takes_seconds():
    code = """
import sys
sys.argv[0] = "/usr/bin/rmcl-hub"
from rmcl_hub.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*(name in sys.modules for name in ("torch", "transformers", "datasets", "pyarrow")))
"""
    for words in (["data", "--help"], ["data", "prepare", "--help"], ["data", "check", "--help"]):
        shown = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.splitlines()[-1] == "False False False False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "arguments are required: COMMAND"),
        ("fetch", "invalid choice: 'fetch'"),
        ("prepare", "arguments are required: corpus, --source, --output-dir"),
        ("prepare coco_caption", "There is no corpus 'coco_caption'; did you mean 'coco_captions'?"),
        ("prepare nonsense", "There is no corpus 'nonsense'; choose one of coco_captions"),
        ("prepare coco_captions --source a", "arguments are required: --output-dir"),
        (
            "prepare coco_captions --rows-per-shard 0",
            "--rows-per-shard: must be a whole number of at least 1, got 0",
        ),
        (
            "prepare coco_captions --num-workers -1",
            "--num-workers: must be a whole number of at least 1, got -1",
        ),
        (
            "prepare coco_captions --num-workers 1.5",
            "--num-workers: must be a whole number of at least 1, got 1.5",
        ),
        ("prepare coco_captions --format zip", "--format: invalid choice: 'zip'"),
        ("check", "arguments are required: LOCATION"),
    ],
)
def test_bad_input_is_answered_with_what_would_be_good(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert message in capsys.readouterr().err


def test_prepare_and_check_print_tables(miniature_corpora, tmp_path, capsys):
    root, out = str(miniature_corpora["coco_captions"]), str(tmp_path / "out")
    common = ["--source", root, "--output-dir", out, "--unofficial", "--num-workers", "1"]
    assert main(["prepare", "coco_captions", *common]) == 0
    printed = capsys.readouterr().out
    assert "| validation | 6 | 6 | 14 | 5,000, 25,010 | none |" in printed
    assert "- validation has 4,994 fewer pictures and 24,996 fewer texts than documented" in printed
    assert main(["check", out, "--num-workers", "1"]) == 0
    assert "| coco_captions | validation | 6 | 6 | 14 |" in capsys.readouterr().out
    shard = tmp_path / "out" / "data" / "test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["check", out, "--num-workers", "1"]) == 1


def test_what_could_not_run_ends_with_two_and_one_sentence(miniature_corpora, tmp_path, caplog):
    root, out = str(miniature_corpora["coco_captions"]), str(tmp_path / "out")
    common = ["coco_captions", "--source", root, "--output-dir", out]
    assert main(["prepare", *common]) == 2
    assert "rmcl-hub data prepare: " in caplog.text
    assert "13,510,573,713 are published" in caplog.text
    assert main(["check", str(tmp_path)]) == 2
    assert "holds no manifest.json" in caplog.text


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, caplog, miniature_corpora, tmp_path):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_command, "_prepare", interrupt)
    assert main(["prepare", "coco_captions", "--source", "a", "--output-dir", "b"]) == 130
    assert "The same command goes on where it was" in caplog.text
