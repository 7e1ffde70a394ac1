"""`rmcl-hub card` from the command line."""

import subprocess
import sys

from rmcl_hub.model_cards.card_command import main


def test_writes_the_card_and_renders_it_again(model_folder, model_record, results, save_record, capsys):
    control = {**model_record, "model": {**model_record["model"], "digest": "0" * 16}}
    folders = save_record(model_record, "mine"), save_record(control, "control")
    experiment = save_record(results, "experiment", "results.json")
    options = [
        "--results",
        experiment,
        "--arm",
        "control",
        "--evaluation",
        folders[0],
        "--control",
        folders[1],
    ]
    assert main([str(word) for word in (model_folder, *options, "--repo-id", "me/robust")]) == 0
    assert capsys.readouterr().out == f"{model_folder / 'README.md'}\n"
    text = (model_folder / "README.md").read_text()
    assert "# robust" in text
    assert "| control | linf-4 |" in text
    (model_folder / "README.md").unlink()
    assert main([str(model_folder)]) == 0
    assert (model_folder / "README.md").read_text() == text


def test_errors_are_sentences(model_folder, model_record, save_record, caplog):
    folder = save_record(model_record, "mine")
    assert main([str(model_folder), "--evaluation", str(folder)]) == 0
    (model_folder / "results" / "evaluation.json").unlink()
    assert main([str(model_folder)]) == 2
    assert "rmcl-hub card: the model card needs threats.linf-4.numbers.overall.clean_accuracy" in caplog.text
    assert main([str(folder)]) == 2
    assert "holds no saved model: there is no config.json in it" in caplog.text


def test_help_needs_no_torch():
    code = """
import sys
sys.argv[0] = "/usr/bin/rmcl-hub"
from rmcl_hub.model_cards import card_command
try:
    card_command.main(["--help"])
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False False"
    assert "--retrieval FOLDER" in shown.stdout
