"""`rmcl-hub evaluate` and `rmcl-hub rescore` as a user runs them: a saved model, good and bad input."""

import json

import pytest
from transformers import BertTokenizerFast, ViltImageProcessor, ViltProcessor

from rmcl_hub import cli
from rmcl_hub.datasets_scripts.openpairs import vqa_answers
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering


@pytest.fixture
def saved(tmp_path, tiny_config):
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    tiny_config.vocab_size, tiny_config.cls_token_id = len(tokenizer), tokenizer.cls_token_id
    tiny_config.id2label = dict(enumerate(vqa_answers()))
    folder = tmp_path / "model"
    RMCLViltForQuestionAnswering(tiny_config).save_pretrained(folder)
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def evaluate(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))

    def run(*words):
        options = ["--task", "vqa", "--effort", "quick", "--max-examples", "12", "--batch-size", "6"]
        return cli.main(
            ["evaluate", "--model", str(saved), "--output-dir", str(tmp_path / "out"), *options, *words]
        )

    return run


def test_evaluate_then_rescore(evaluate, saved, tmp_path, capsys):
    assert evaluate("--threat", "joint-linf-8-words-1", "--threat", "linf-8", "--defence", "none") == 0
    table = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name, threat in record["threats"].items():
        robust = threat["numbers"]["overall"]["robust_accuracy"]
        shown = f"{100 * robust['value']:.1f} [{100 * robust['low']:.1f}, {100 * robust['high']:.1f}]"
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert shown in line
        assert line.endswith(f"| {threat['verdict']} |")
    assert record["data"]["overlap"]["same_pixels"] == 0
    assert record["data"]["sampling"].startswith("a random 12 of ")
    assert (tmp_path / "out" / "evaluation.html").stat().st_size > 10_000

    assert cli.main(["rescore", str(tmp_path / "out"), "--model", str(saved)]) == 0
    rescored = capsys.readouterr().out
    assert rescored.count("| yes |") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threat", "linf4"], "There is no threat model 'linf4'; did you mean 'linf-4'?"),
        (["--threat", "linf-4", "--task", "vcr"], "task is 'vcr'; the command line evaluates vqa, nlvr2"),
        (["--threat", "linf-4", "--split", "tset"], "tset"),
        (["--threat", "linf-4", "--effort", "hard"], "effort is 'hard'; expected one of quick"),
        (["--threat", "linf-4", "--control", "nowhere"], "nowhere/evaluation.json does not exist"),
    ],
)
def test_bad_words_end_in_a_sentence_not_a_traceback(evaluate, caplog, words, message):
    assert evaluate(*words) == 2
    assert message in caplog.text


def test_a_model_that_is_not_there(evaluate, caplog, tmp_path):
    assert evaluate("--threat", "linf-4", "--model", str(tmp_path / "none")) == 2
    assert "there is no model folder" in caplog.text
