"""`rmcl-hub retrieve` as a user runs it, on a miniature COCO and on the embedded set."""

import json

import pytest

from rmcl_hub import cli
from rmcl_hub.datasets_scripts.protocols import Gallery, find_protocol
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.galleries import evaluate_galleries
from rmcl_hub.evaluation.protocol_data import load_protocol_data
from rmcl_hub.evaluation.provenance import model_digest
from rmcl_hub.evaluation.retrieval_command import choose_galleries, load_retrieval_model
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
)


@pytest.fixture
def retrieve(tmp_path, monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))

    def retrieve(model, *words):
        return cli.main(["retrieve", "--model", str(model), "--output-dir", str(tmp_path / "out"), *words])

    return retrieve


@pytest.fixture
def record(tmp_path):
    return lambda: json.loads((tmp_path / "out" / "retrieval.json").read_text())


def table_of(printed):
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {tuple(row[:2]): row[2:] for row in rows}


class TestOnCoco:
    def test_a_custom_gallery_of_a_contaminated_protocol(self, save_tiny, retrieve, coco, record, capsys):
        folder = save_tiny(RMCLViltForImageAndTextRetrieval)
        assert retrieve(folder, "--data", str(coco), "--protocol", "thesis", "--gallery", "5") == 0
        found, printed = record(), capsys.readouterr().out
        assert found["protocol"]["name"] == "custom"
        assert found["protocol"]["galleries"] == [{"size": 5, "count": 1}]
        assert "the checkpoint is chosen on the test pictures" in found["protocol"]["contamination"]
        first, second = printed.splitlines()[:2]
        assert first == "retrieval: custom gallery of coco_captions, test, which no protocol declares"
        assert second.startswith("CONTAMINATED, not to be compared with other protocols: the checkpoint is")
        assert "5 pictures" in printed

        model, processor = load_retrieval_model(str(folder), "cross")
        assert found["model"] == {
            "name": folder.name,
            "class": "RMCLViltForImageAndTextRetrieval",
            "digest": model_digest(model),
        }
        test = load_protocol_data("retrieval", str(coco)).test
        expected = evaluate_galleries(model, test, processor, [Gallery(5)], scorer="cross", batch_size=64)
        assert found["numbers"]["forwards"] == expected["forwards"]
        assert found["seconds"] > 0
        table = table_of(printed)
        for direction, items in (("text_to_image", "5 pictures"), ("image_to_text", "texts")):
            numbers = expected["galleries"][0][direction]
            measured = found["numbers"]["galleries"][0][direction]
            rate = measured["recall"]["1"]
            assert rate == pytest.approx(numbers["recall"]["1"])
            (row,) = [cells for key, cells in table.items() if key[0] == direction.replace("_", " ")]
            (gallery,) = [key[1] for key in table if key[0] == direction.replace("_", " ")]
            assert gallery.endswith(items)
            shown = f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
            assert row[:2] == [str(numbers["num_queries"]), shown]

    def test_the_declared_galleries(self, save_tiny, retrieve, coco, record, capsys, monkeypatch):
        """Galleries of the size of the miniature: five of two pictures, and one of ten."""
        from dataclasses import replace

        from rmcl_hub.evaluation import protocol_data

        clean = replace(find_protocol("clean", "coco_captions"), galleries=(Gallery(2, 5), Gallery(10)))
        monkeypatch.setattr(protocol_data, "find_protocol", lambda name, corpus: clean)
        assert retrieve(save_tiny(RMCLViltForPreTraining), "--data", str(coco)) == 0
        found, printed = record(), capsys.readouterr().out
        assert found["protocol"]["name"] == "clean"
        assert found["protocol"]["galleries"] == [{"size": 2, "count": 5}, {"size": 10, "count": 1}]
        assert printed.startswith("retrieval: clean protocol of coco_captions, test\n")
        assert "CONTAMINATED" not in printed
        assert {("text to image", "5 x 2 pictures"), ("text to image", "10 pictures")} <= set(
            table_of(printed)
        )

    def test_under_attack(self, save_tiny, retrieve, coco, record, capsys):
        words = ["--data", str(coco), "--gallery", "12", "--effort", "quick", "--max-queries", "3"]
        attacks = ["--threat", "linf-8", "--threat", "words-1"]
        assert retrieve(save_tiny(RMCLViltForImageAndTextRetrieval), *words, *attacks) == 0
        attacked = record()["attacked"]
        assert attacked["gallery"]["num_images"] == 12
        for direction, threat in (("image_to_text", "linf-8"), ("text_to_image", "words-1")):
            numbers = attacked["directions"][direction]
            assert numbers["num_queries"] == 3
            found = numbers["attacks"][threat]
            assert found["num_attacked"] > 0
            assert found["forwards"] > found["num_attacked"]
            assert all(row["rank"] >= row["clean_rank"] for row in found["outcomes"])
        attack = attacked["directions"]["image_to_text"]["attacks"]["linf-8"]
        assert max(row["distance"] for row in attack["outcomes"]) == pytest.approx(8 / 255, rel=1e-3)
        printed = capsys.readouterr().out
        assert "query attacked, gallery of 12 pictures and " in printed
        assert "| image to text | linf-8 | " in printed
        assert "| text to image | words-1 | 12 | 3 | " in printed


def test_the_embedded_set_is_ranked_as_a_whole(save_tiny, retrieve, record, capsys):
    model = save_tiny(RMCLViltForPreTraining, itc_weight=1.0)
    assert retrieve(model, "--scorer", "dual", "--split", "validation") == 0
    found = record()
    assert found["protocol"]["name"] == "openpairs"
    (gallery,) = found["protocol"]["galleries"]
    assert gallery == {"size": found["numbers"]["num_images"], "count": 1}
    assert len(load_protocol_data("retrieval", split="validation").test) == gallery["size"]
    assert capsys.readouterr().out.startswith("retrieval: embedded openpairs, validation\n")
    assert found["attacked"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "5 x 1000 pictures are to be ranked, but there are 12; prepare the whole split, or name"),
        (["--gallery", "1000"], "5 x 1000 pictures are to be ranked"),
        (["--gallery", "13"], "1 x 13 pictures are to be ranked, but there are 12"),
        (["--protocol", "dirty"], "There is no protocol 'dirty' of 'coco_captions'"),
        (["--data", "nowhere"], "nowhere holds no manifest.json"),
        (["--gallery", "4", "--scorer", "dual"], "embeds no single pictures and texts, so --scorer dual has"),
        (["--gallery", "4", "--threat", "linf4"], "There is no threat model 'linf4'; did you mean 'linf-4'?"),
        (["--gallery", "4", "--threat", "joint-linf-4-words-1"], "is on both modalities, but one side of a"),
        (["--gallery", "4", "--effort", "hard"], "effort is 'hard'; expected one of quick"),
        (["--gallery", "4", "--model", "./none"], "there is no model folder './none'"),
    ],
)
def test_bad_words_end_in_a_sentence(save_tiny, retrieve, coco, tmp_path, caplog, words, message):
    assert retrieve(save_tiny(RMCLViltForImageAndTextRetrieval), "--data", str(coco), *words) == 2
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_dual_scores_are_not_attacked(save_tiny, retrieve, coco, caplog):
    model = save_tiny(RMCLViltForPreTraining, itc_weight=1.0)
    words = ["--data", str(coco), "--gallery", "4", "--scorer", "dual", "--threat", "linf-4"]
    assert retrieve(model, *words) == 2
    assert "--threat attacks scores of pairs; rank with --scorer cross" in caplog.text


def test_another_head_scores_no_pairs(save_tiny):
    folder = save_tiny(RMCLViltForQuestionAnswering)
    with pytest.raises(
        ValueError, match="was saved as RMCLViltForQuestionAnswering, which does not score pairs"
    ):
        load_retrieval_model(str(folder), "cross")


def test_one_of_the_declared_galleries_is_not_custom():
    protocol = find_protocol("clean", "coco_captions")
    assert choose_galleries(protocol, 5000, None) == (protocol.galleries, "clean")
    assert choose_galleries(protocol, 5000, 1000) == ((Gallery(1000, 5),), "clean")
    assert choose_galleries(protocol, 5000, 999) == ((Gallery(999),), "custom")
