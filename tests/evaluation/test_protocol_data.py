import os

import pytest

from rmcl_hub.datasets_scripts.openpairs import load_openpairs
from rmcl_hub.evaluation.file_overlap import PreparedSplits
from rmcl_hub.evaluation.protocol_data import (
    UNNAMED,
    check_same_protocol,
    describe_protocol,
    load_protocol_data,
    protocol_lines,
)


class TestLoadProtocolData:
    def test_a_prepared_corpus(self, coco):
        data = load_protocol_data("retrieval", str(coco))
        assert data.entry == {
            "name": "clean",
            "corpus": "coco_captions",
            "splits": ["test"],
            "galleries": [{"size": 1000, "count": 5}, {"size": 5000, "count": 1}],
            "contamination": "",
            "location": os.path.relpath(coco),
        }
        assert isinstance(data.train, PreparedSplits)
        assert data.train.splits == ("train", "restval")
        assert len(data.test) == data.train.corpus.split("test").rows

    def test_several_test_splits_come_one_after_the_other(self, coco, monkeypatch):
        from rmcl_hub.datasets_scripts.protocols import Protocol
        from rmcl_hub.evaluation import protocol_data

        both = Protocol("clean", "coco_captions", "retrieval", ("train",), (), ("validation", "test"))
        monkeypatch.setattr(protocol_data, "find_protocol", lambda name, corpus: both)
        data = load_protocol_data("retrieval", str(coco))
        rows = [data.train.corpus.split(name).rows for name in ("validation", "test")]
        assert len(data.test) == sum(rows)
        alone = load_protocol_data("retrieval", str(coco)).test["image_id"]
        assert data.test["image_id"][rows[0] :] == alone[rows[0] :]

    def test_galleries_are_of_retrieval_only(self, coco):
        entry = load_protocol_data("matching", str(coco), "thesis").entry
        assert entry["galleries"] == []
        assert "the checkpoint is chosen on the test pictures" in entry["contamination"]

    @pytest.mark.parametrize(
        ("task", "split", "rows"),
        [("vqa", None, ("vqa", "test")), ("matching", "validation", ("captions", "validation"))],
    )
    def test_the_embedded_set(self, task, split, rows):
        data = load_protocol_data(task, split=split)
        assert data.entry["name"] == data.entry["corpus"] == "openpairs"
        assert data.entry["splits"] == [rows[1]]
        assert data.entry["location"] is None
        assert data.test.to_dict() == load_openpairs(*rows).to_dict()
        assert len(data.train) == len(load_openpairs(rows[0], "train"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "vqa"}, "holds coco_captions, which is for task 'retrieval', not 'vqa'; give a corpus"),
            ({"protocol": "thesus"}, "There is no protocol 'thesus' of 'coco_captions'; there are: clean of"),
            ({"split": "test"}, "the protocol says which splits of a corpus are tested; leave --split out"),
        ],
    )
    def test_what_does_not_fit_the_corpus(self, coco, options, message):
        with pytest.raises(ValueError, match=message):
            load_protocol_data(**{"task": "retrieval", "location": str(coco), **options})

    def test_a_split_that_was_not_prepared(self, coco_without_test):
        with pytest.raises(
            ValueError, match=r"has no split 'test', only train, .*; prepare it with --splits test"
        ):
            load_protocol_data("retrieval", str(coco_without_test))

    def test_a_folder_without_a_corpus(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is no prepared corpus; make one with `rmcl-hub data"):
            load_protocol_data("retrieval", str(tmp_path))

    def test_a_protocol_without_its_corpus(self):
        with pytest.raises(
            ValueError, match="protocol 'thesis' is one of a corpus, and none was given; add --data"
        ):
            load_protocol_data("vqa", protocol="thesis")

    def test_a_task_that_the_embedded_set_has_not(self):
        with pytest.raises(ValueError, match="the embedded set has no rows of task 'snli_ve'; add --data"):
            load_protocol_data("snli_ve")


@pytest.fixture
def entry():
    return {
        **UNNAMED,
        "name": "clean",
        "corpus": "vqav2",
        "splits": ["trainable_val", "rest_val"],
        "location": "/data/vqav2",
    }


class TestCheckSameProtocol:
    def test_the_place_does_not_matter(self, entry):
        check_same_protocol(entry, {**entry, "location": None})

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "thesis"},
            {"corpus": "nlvr2"},
            {"splits": ["rest_val"]},
            {"galleries": [{"size": 5, "count": 1}]},
            {"contamination": "all is known"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_everything_else_does(self, entry, change):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match="never mixed in one table, but these differ in") as caught:
            check_same_protocol(entry, {**entry, **change})
        assert f"differ in {name}: {entry[name]!r} and {value!r}. Evaluate both" in str(caught.value)


def test_what_captions_say(entry):
    assert describe_protocol(entry) == "clean protocol of vqav2, trainable_val + rest_val"
    embedded = {**entry, "name": "openpairs", "corpus": "openpairs", "splits": ["test"]}
    assert describe_protocol(embedded) == "embedded openpairs, test"
    assert describe_protocol(UNNAMED) == ""
    assert "custom gallery of vqav2" in describe_protocol({**entry, "name": "custom"})
    assert list(protocol_lines("vqa", entry)) == [f"vqa: {describe_protocol(entry)}"]
    assert list(protocol_lines("vqa", {**entry, "contamination": "seen before"})) == [
        "vqa: clean protocol of vqav2, trainable_val + rest_val (contaminated)",
        "CONTAMINATED, not to be compared with other protocols: seen before",
    ]
    assert list(protocol_lines("vqa", UNNAMED)) == ["vqa: rows without a protocol"]
