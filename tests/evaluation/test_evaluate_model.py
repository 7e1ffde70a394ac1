"""`rmcl-hub evaluate` and `rmcl-hub rescore` as a user runs them: a saved model, good and bad input."""

import json
from pathlib import Path

import pytest

from rmcl_hub import cli
from rmcl_hub.datasets_scripts.corpora import CORPORA
from rmcl_hub.datasets_scripts.miniature_tasks import write_nlvr2, write_snli_ve, write_vqav2
from rmcl_hub.datasets_scripts.openpairs import vqa_answers
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.evaluation_schema import check_record
from rmcl_hub.evaluation.metrics import nlvr2_consistency
from rmcl_hub.evaluation.robustness import read_evaluation
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImagesAndTextClassification,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
)

CORPORA_OF = {"vqav2": write_vqav2, "nlvr2": write_nlvr2, "snli_ve": write_snli_ve}
ENTAILMENT = {"num_images": 1, "modality_type_vocab_size": 2, "num_labels": 3}


@pytest.fixture
def saved(save_tiny):
    return save_tiny(RMCLViltForQuestionAnswering, id2label=dict(enumerate(vqa_answers())))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))

    def run(model, task, *words, to="out"):
        options = [
            "--task",
            task,
            "--effort",
            "quick",
            "--batch-size",
            "6",
            "--output-dir",
            str(tmp_path / to),
        ]
        return cli.main(["evaluate", "--model", str(model), *options, *words])

    return run


@pytest.fixture
def evaluate(saved, run):
    return lambda *words: run(saved, "vqa", "--max-examples", "12", *words)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Name of a task's corpus to the folder of its prepared miniature; made when first asked for."""
    made = {}

    def prepared(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "shards"
            official = made[name].parent / "official"
            CORPORA_OF[name](official)
            prepare(CORPORA[name], official, made[name], num_workers=1, unofficial=True)
        return made[name]

    return prepared


def read_record(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_evaluate_then_rescore(evaluate, saved, tmp_path, capsys):
    assert evaluate("--threat", "joint-linf-8-words-1", "--threat", "linf-8", "--defence", "none") == 0
    table = capsys.readouterr().out
    record = read_record(tmp_path / "out")
    assert table.startswith("vqa: embedded openpairs, test\n")
    assert record["protocol"]["name"] == "openpairs"
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
        (["--threat", "linf-4", "--data", "nowhere"], "nowhere holds no manifest.json, so it is no prepared"),
        (["--threat", "linf-4", "--protocol", "clean"], "none was given; add --data with the folder"),
        (["--threat", "linf-4", "--control", "nowhere"], "nowhere/evaluation.json does not exist"),
    ],
)
def test_bad_words_end_in_a_sentence_not_a_traceback(evaluate, caplog, words, message):
    assert evaluate(*words) == 2
    assert message in caplog.text


def test_a_model_that_is_not_there(evaluate, caplog, tmp_path):
    assert evaluate("--threat", "linf-4", "--model", str(tmp_path / "none")) == 2
    assert "there is no model folder" in caplog.text


class TestPreparedCorpora:
    def test_vqav2_in_both_protocols_which_are_not_mixed(
        self, prepared, save_tiny, run, tmp_path, capsys, caplog
    ):
        folder = prepared("vqav2")
        answers = json.loads((folder / "answers.json").read_text())
        model = save_tiny(RMCLViltForQuestionAnswering, id2label=dict(enumerate(answers)))
        words = [model, "vqa", "--data", str(folder), "--threat", "linf-8", "--max-examples", "8"]
        assert run(*words, to="clean") == 0
        clean = read_record(tmp_path / "clean")
        check_record(clean)
        assert clean["protocol"]["name"] == "clean"
        assert clean["protocol"]["splits"] == ["trainable_val", "rest_val"]
        assert clean["data"]["overlap"]["same_ids"] == 0
        threat = clean["threats"]["linf-8"]
        assert 0 <= threat["vqa_accuracy"]["robust"] <= threat["vqa_accuracy"]["clean"] <= 1
        shown = [100 * threat["vqa_accuracy"][key] for key in ("clean", "robust")]
        printed = capsys.readouterr().out
        assert printed.startswith("vqa: clean protocol of vqav2, trainable_val + rest_val\n")
        values = f"linf-8 {shown[0]:.1f} and {shown[1]:.1f}"
        assert f"VQA accuracy (mean soft score), clean and under attack: {values}" in printed

        assert run(*words, "--protocol", "thesis", "--control", str(tmp_path / "clean")) == 2
        assert "never mixed in one table, but these differ in name: 'clean' and 'thesis'" in caplog.text
        assert not (tmp_path / "out").exists()

        assert run(*words, "--protocol", "thesis", "--defence", "none") == 0
        thesis = read_record(tmp_path / "out")
        assert thesis["data"]["overlap"]["same_ids"] > 0
        threat = thesis["threats"]["linf-8"]
        assert not threat["publishable"]
        assert any("contaminated protocol: all test questions but those" in why for why in threat["reasons"])
        assert "\nCONTAMINATED, not to be compared" in capsys.readouterr().out
        html = " ".join((tmp_path / "out" / "evaluation.html").read_text().split())
        assert (
            "contaminated</span> thesis protocol of vqav2, trainable_val + rest_val (contaminated):" in html
        )

    def test_nlvr2_and_its_consistency_and_the_moved_corpus(self, prepared, save_tiny, run, tmp_path, capsys):
        folder = prepared("nlvr2")
        model = save_tiny(
            RMCLViltForImagesAndTextClassification, num_images=2, modality_type_vocab_size=3, num_labels=2
        )
        assert run(model, "nlvr2", "--data", str(folder), "--threat", "linf-8") == 0
        check_record(read_record(tmp_path / "out"))
        evaluation = read_evaluation(tmp_path / "out")
        worst = [row for row in evaluation.outcomes if row.attack == "linf-8"]
        right = [row.clean_correct for row in worst]
        found = evaluation.record["threats"]["linf-8"]["consistency"]
        assert found["clean"] == nlvr2_consistency(right, [row.id for row in worst])
        robust = [row.clean_correct and row.adversarial_correct for row in worst]
        assert found["robust"] == nlvr2_consistency(robust, [row.id for row in worst])
        assert "NLVR2 consistency, clean and under attack: linf-8" in capsys.readouterr().out

        moved = folder.rename(folder.with_name("moved"))
        words = ["rescore", str(tmp_path / "out"), "--model", str(model)]
        try:
            assert cli.main(words) == 2
            assert cli.main([*words, "--data", str(moved)]) == 0
        finally:
            moved.rename(folder)
        assert cli.main(words) == 0
        assert capsys.readouterr().out.count("| yes |") == 2

    def test_consistency_is_not_told_of_a_sample(self, prepared, save_tiny, run, tmp_path):
        settings = {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 2}
        model = save_tiny(RMCLViltForImagesAndTextClassification, **settings)
        words = ["--data", str(prepared("nlvr2")), "--threat", "linf-8", "--max-examples", "4"]
        assert run(model, "nlvr2", *words) == 0
        assert "consistency" not in read_record(tmp_path / "out")["threats"]["linf-8"]

    def test_snli_ve(self, prepared, save_tiny, run, tmp_path, caplog):
        model = save_tiny(RMCLViltForImagesAndTextClassification, **ENTAILMENT)
        words = [model, "snli_ve", "--data", str(prepared("snli_ve")), "--threat", "linf-8"]
        assert run(*words, "--max-examples", "6") == 0
        record = read_record(tmp_path / "out")
        check_record(record)
        assert record["answers"] == ["entailment", "neutral", "contradiction"]
        assert record["protocol"]["corpus"] == "snli_ve"
        assert run(*words, "--protocol", "thesis") == 2
        assert "There is no protocol 'thesis' of 'snli_ve'; there are: clean of vqav2" in caplog.text

    def test_matching_on_coco(self, coco, save_tiny, run, tmp_path):
        model = save_tiny(RMCLViltForPreTraining)
        assert run(model, "matching", "--data", str(coco), "--threat", "linf-8", "--max-examples", "6") == 0
        record = read_record(tmp_path / "out")
        check_record(record)
        assert record["data"]["overlap"]["how"].startswith("file by file with ")

    def test_a_split_that_was_not_prepared(self, coco_without_test, save_tiny, run, caplog):
        model = save_tiny(RMCLViltForPreTraining)
        assert run(model, "matching", "--data", str(coco_without_test), "--threat", "linf-8") == 2
        assert (
            "has no split 'test', only train, restval, validation; prepare it with --splits test"
            in caplog.text
        )


@pytest.fixture
def measured_record(tmp_path):
    """A record without its outcomes, and the function that writes it."""
    record = json.loads((Path(__file__).parent / "evaluation_record.json").read_text())
    return record, lambda: (tmp_path / "evaluation.json").write_text(json.dumps(record))


def test_rows_of_a_program_are_not_looked_for(measured_record, saved, tmp_path, caplog):
    record, write = measured_record
    record["protocol"] |= {"name": "unnamed", "corpus": "unnamed", "splits": []}
    write()
    assert cli.main(["rescore", str(tmp_path), "--model", str(saved)]) == 2
    assert "the record names no protocol, because a program passed the rows; call rescore()" in caplog.text


def test_an_old_record_is_refused_with_the_remedy(measured_record, evaluate, tmp_path, caplog):
    record, write = measured_record
    del record["protocol"]
    write()
    assert evaluate("--threat", "linf-8", "--control", str(tmp_path)) == 2
    assert "protocol: is missing (What the numbers are about; only numbers with equal" in caplog.text
    assert "Evaluate again with this version" in caplog.text
