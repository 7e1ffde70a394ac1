"""`rmcl-hub vqa-answers` as a user runs it: a saved model, miniature questions, and what makes no file."""

import json
import re
import shutil

import pytest
import torch
from transformers import BertTokenizerFast, ViltImageProcessor, ViltProcessor

from rmcl_hub import cli
from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.miniature_tasks import write_nlvr2, write_vqav2
from rmcl_hub.datasets_scripts.nlvr2 import Nlvr2
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.datasets_scripts.vqav2 import Vqav2
from rmcl_hub.evaluation.vqa_answer_file import answer_questions, load_questions, write_answer_file
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

ANSWERS = ["yes", "no", "1", "people", "naïve 🧔", ""]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("vqav2")
    write_vqav2(root / "published", count=16)
    prepare(
        Vqav2,
        root / "published",
        root / "shards",
        ["train_fit", "test", "test_dev"],
        num_workers=1,
        unofficial=True,
    )
    return root / "shards"


@pytest.fixture
def model(tiny_config):
    tiny_config.vocab_size, tiny_config.cls_token_id = 30522, 101
    tiny_config.id2label = dict(enumerate(ANSWERS))
    return RMCLViltForQuestionAnswering(tiny_config)


@pytest.fixture
def processor():
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=BertTokenizerFast(str(vocabulary_path())))


@pytest.fixture
def saved(tmp_path, model, processor):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(saved, prepared, tmp_path):
    def run_with(*splits, model=saved, data=prepared):
        words = [
            "--model",
            str(model),
            "--data",
            str(data),
            "--output",
            str(tmp_path / "out" / "answers.json"),
        ]
        return cli.main(["vqa-answers", *words, "--split", *splits, "--batch-size", "3"])

    return run_with


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_file_has_one_answer_to_every_question(run, prepared, tmp_path, capsys):
    assert run("test_dev") == 0
    entries = read(tmp_path / "out" / "answers.json")
    assert {tuple(entry) for entry in entries} == {("question_id", "answer")}
    expected = sorted(map(int, load_corpus(prepared, "test_dev")["question_id"]))
    assert sorted(entry["question_id"] for entry in entries) == expected
    assert len(expected) == 8
    assert all(entry["answer"] in ANSWERS for entry in entries)
    assert capsys.readouterr().out == f"8 answers: {tmp_path / 'out' / 'answers.json'}\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.json"]


def test_the_whole_test_has_both_splits(run, tmp_path):
    assert run("test", "test_dev") == 0
    assert len({entry["question_id"] for entry in read(tmp_path / "out" / "answers.json")}) == 16


def test_answers_are_the_best_logits_of_the_question_alone(model, processor, prepared):
    questions = load_questions(str(prepared), ["test_dev"])

    def logits_of(row):
        inputs = processor(row["image"].convert("RGB"), row["question"], return_tensors="pt")
        with torch.no_grad():
            return model.eval()(**inputs).logits[0]

    logits = torch.stack([logits_of(row) for row in questions])
    with torch.no_grad():
        model.classifier[-1].bias -= logits.mean(dim=0)  # so that not all answers are the same
    expected = [ANSWERS[logits_of(row).argmax()] for row in questions]
    assert len(set(expected)) > 1
    entries = list(answer_questions(model.train(), processor, questions, batch_size=5))
    assert not model.training
    assert [entry["answer"] for entry in entries] == expected
    assert [str(entry["question_id"]) for entry in entries] == questions["question_id"][:]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], "our split test is only the rest, so give --split test test_dev"),
        (["test_dev", "test_dev"], "questions come twice in test_dev, test_dev of .*; name each split once"),
        (["val"], "has no split 'val', only train_fit, test, test_dev"),
        (["train_fit"], r"lacks questions of train_fit \(1 no annotation, 1 no text, 1 missing picture\)"),
    ],
)
def test_splits_that_make_no_file(run, splits, message, caplog, tmp_path):
    assert run(*splits) == 2
    assert re.search(message, caplog.text)
    assert not (tmp_path / "out").exists()


def test_a_model_without_names_is_refused_before_it_runs(run, model, tmp_path, saved, caplog):
    model.config.id2label = {index: f"LABEL_{index}" for index in range(len(ANSWERS))}
    shutil.copytree(saved, tmp_path / "nameless")
    model.save_pretrained(tmp_path / "nameless")
    assert run("test_dev", model=tmp_path / "nameless") == 2
    assert "have no names (LABEL_0, ...)" in caplog.text
    assert not (tmp_path / "out").exists()


def test_data_of_another_task_is_refused(tmp_path):
    write_nlvr2(tmp_path / "published")
    prepare(Nlvr2, tmp_path / "published", tmp_path / "shards", ["dev"], num_workers=1, unofficial=True)
    with pytest.raises(ValueError, match="holds nlvr2, which has no questions; give a folder of vqav2"):
        load_questions(str(tmp_path / "shards"), ["dev"])


class TestFile:
    ENTRIES = ({"question_id": 1001, "answer": "naïve 🧔"}, {"question_id": 2002, "answer": "no"})

    def test_is_replaced_at_once(self, tmp_path):
        path = tmp_path / "new" / "answers.json"
        for entries in (self.ENTRIES[:1], self.ENTRIES):
            write_answer_file(entries, [str(entry["question_id"]) for entry in entries], path)
            assert read(path) == list(entries)
        assert "naïve 🧔" in path.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("entries", "question_ids", "message"),
        [
            (ENTRIES + ENTRIES[:1], ["1001", "2002"], "1 questions have two answers, such as 1001"),
            (
                ENTRIES,
                ["1001", "2002", "3003"],
                "1 questions have no answer, such as 3003; the server wants one",
            ),
            (ENTRIES, ["1001"], "1 questions are not asked, such as 2002"),
            (
                ENTRIES,
                ["tone:0:openmoji/1F647", "2002"],
                "'tone:0:openmoji/1F647' is no number, so it is not one of",
            ),
        ],
    )
    def test_is_not_written_if_the_server_would_refuse_it(self, entries, question_ids, message, tmp_path):
        path = tmp_path / "answers.json"
        path.write_text("the old one")
        with pytest.raises(ValueError, match=message):
            write_answer_file(entries, question_ids, path)
        assert path.read_text() == "the old one"
