import json
from pathlib import Path

import pytest

from rmcl_hub.attacks.threat_model import PRESETS, ThreatModel, count_words

IMAGE = ThreatModel(modality="image", norm="linf", epsilon=4 / 255)
TEXT = ThreatModel(
    modality="text",
    word_edits="synonyms",
    max_change_share=0.2,
    max_candidates=5,
    min_cosine=0.5,
    synonyms="abc",
)


def test_survives_json_and_identifies_by_content() -> None:
    for model in (IMAGE, TEXT, IMAGE.combined_with(TEXT)):
        again = ThreatModel.from_dict(json.loads(json.dumps(model.to_dict())))
        assert again == model
        assert again.digest == model.digest
        assert len(model.digest) == 16
    assert len({IMAGE, TEXT, ThreatModel.from_dict(IMAGE.to_dict())}) == 2
    digests = {
        model.digest
        for model in (
            IMAGE,
            TEXT,
            ThreatModel("image", "linf", 2 / 255),
            ThreatModel("image", "linf", 4 / 255, access="transfer"),
        )
    }
    assert len(digests) == 4


def test_combination_allows_what_both_allow() -> None:
    both = IMAGE.combined_with(TEXT)
    assert both == TEXT.combined_with(IMAGE)
    assert both.to_dict() == {
        "modality": "both",
        "norm": "linf",
        "epsilon": 4 / 255,
        "max_change_share": 0.2,
        "max_changed_words": None,
        "word_edits": "synonyms",
        "max_candidates": 5,
        "min_cosine": 0.5,
        "synonyms": "abc",
        "access": "white-box",
        "knowledge": "objective",
    }


def test_reads_as_a_sentence() -> None:
    assert str(IMAGE) == "white-box attack on image: linf epsilon 0.01569 (4/255)"
    assert str(TEXT) == "white-box attack on text: at most 20% of the words, synonyms"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "audio"}, "modality is 'audio'; expected 'image' or 'text' or 'both'"),
        ({"modality": "image", "norm": "linf"}, r"modality 'image' needs norm .* and epsilon"),
        ({"modality": "image", "epsilon": 0.1}, r"modality 'image' needs norm .* and epsilon"),
        (
            {"modality": "image", "norm": "linf", "epsilon": -0.1},
            r"epsilon is -0.1; expected a radius in \[0, 1\]",
        ),
        ({"modality": "image", "norm": "linf", "epsilon": 4}, r"epsilon is 4; expected a radius in \[0, 1\]"),
        ({"modality": "image", "norm": "l2", "epsilon": -1}, "epsilon is -1; expected an L2 norm >= 0"),
        ({"modality": "image", "norm": "l1", "epsilon": 0.1}, "norm is 'l1'; expected 'linf' or 'l2'"),
        ({"modality": "both", "norm": "linf", "epsilon": 0.1}, "modality 'both' needs max_change_share"),
        ({"modality": "text", "max_change_share": 0.2}, "word_edits is None; expected 'synonyms' or"),
        ({"modality": "text", "word_edits": "typos", "max_changed_words": -1}, "max_changed_words is -1"),
        ({"modality": "text", "word_edits": "typos", "max_change_share": 20}, "max_change_share is 20"),
        (
            {"modality": "text", "word_edits": "typos", "max_changed_words": 1, "epsilon": 0.1},
            "modality 'text' leaves pixels alone, so it takes no epsilon; use modality 'both'",
        ),
        (
            {"modality": "image", "norm": "linf", "epsilon": 0.1, "max_changed_words": 1},
            "modality 'image' leaves words alone, so it takes no max_changed_words",
        ),
        (
            {"modality": "image", "epsilon": 0.1, "eps": 1},
            r"Unknown threat model fields \['eps'\]; known fields are",
        ),
    ],
)
def test_impossible_models_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel.from_dict(fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("thesis", {"modality": "image", "norm": "linf", "epsilon": 0.0025}),
        ("linf-4", {"modality": "image", "norm": "linf", "epsilon": 4 / 255}),
        ("linf-0.5", {"modality": "image", "norm": "linf", "epsilon": 0.5 / 255}),
        ("l2-0.5", {"modality": "image", "norm": "l2", "epsilon": 0.5}),
        ("words-1", {"modality": "text", "word_edits": "synonyms", "max_changed_words": 1}),
        ("words-20pct", {"modality": "text", "word_edits": "synonyms", "max_change_share": 0.2}),
        ("typos-2", {"modality": "text", "word_edits": "typos", "max_changed_words": 2}),
        ("invisible-1", {"modality": "text", "word_edits": "invisible", "max_changed_words": 1}),
        (
            "joint-linf-4-words-20pct",
            {
                "modality": "both",
                "norm": "linf",
                "epsilon": 4 / 255,
                "word_edits": "synonyms",
                "max_change_share": 0.2,
            },
        ),
    ],
)
def test_presets_are_data(name: str, fields: dict) -> None:
    assert ThreatModel.load(name) == ThreatModel(**fields)


def test_every_named_preset_loads_and_is_another_one() -> None:
    assert len({ThreatModel.load(name).digest for name in PRESETS}) == len(PRESETS)


def test_a_yaml_file_is_a_threat_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("modality: image\nnorm: linf\nepsilon: 0.03\n")
    assert ThreatModel.load(file) == ThreatModel("image", "linf", 0.03)
    file.write_text("modality: image\nnorm: linf\nepsilon: 3\n")
    with pytest.raises(ValueError, match=r"mine.yaml: epsilon is 3; expected a radius in \[0, 1\]"):
        ThreatModel.load(file)
    with pytest.raises(ValueError, match=r"There is no file .*other.yaml; presets are thesis"):
        ThreatModel.load(tmp_path / "other.yaml")


@pytest.mark.parametrize("name", ["linf4", "joint-linf-4", "joint-words-1-linf-4", "joint-linf-4-linf-4"])
def test_unknown_presets_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"There is no threat model '{name}'; .*Presets are thesis, linf-1"):
        ThreatModel.load(name)


@pytest.mark.parametrize(
    ("name", "words", "budget"),
    [
        ("words-20pct", 4, 1),
        ("words-20pct", 10, 2),
        ("words-20pct", 14, 2),
        ("words-0pct", 10, 0),
        ("words-1", 10, 1),
        ("linf-4", 10, 0),
    ],
)
def test_word_budget(name: str, words: int, budget: int) -> None:
    assert ThreatModel.load(name).word_budget(" ".join(["word"] * words)) == budget


def test_both_word_limits_hold_together() -> None:
    threat = ThreatModel("text", word_edits="typos", max_change_share=0.5, max_changed_words=2)
    assert [threat.word_budget("a " * words) for words in (2, 4, 10)] == [1, 2, 2]


def test_words_are_runs_of_letters_and_digits() -> None:
    assert count_words("a T-shirt, 2 red_blue balls!") == 7


def test_parts_of_a_joint_threat_model() -> None:
    joint = ThreatModel.load("joint-linf-4-words-20pct")
    assert joint.part("image") == ThreatModel.load("linf-4")
    assert joint.part("text") == ThreatModel.load("words-20pct")


@pytest.mark.parametrize(
    ("declared", "attack", "allowed"),
    [
        ("linf-4", "linf-4", True),
        ("linf-4", "linf-2", True),
        ("linf-4", "linf-8", False),
        ("linf-4", "l2-0.5", False),
        ("linf-4", "words-1", False),
        ("joint-linf-4-words-2", "words-1", True),
        ("joint-linf-4-words-2", "linf-4", True),
        ("joint-linf-4-words-2", "words-3", False),
        ("joint-linf-4-words-2", "typos-1", False),
        ("joint-linf-4-words-2", "joint-linf-4-words-2", True),
        ("words-1", "words-20pct", False),
        ("linf-4", "joint-linf-4-words-2", False),
    ],
)
def test_allows_what_stays_within(declared: str, attack: str, allowed: bool) -> None:
    assert ThreatModel.load(declared).allows(ThreatModel.load(attack)) is allowed


def test_limits_on_synonyms_are_limits() -> None:
    assert ThreatModel.load("words-20pct").allows(TEXT)
    assert not TEXT.allows(ThreatModel.load("words-20pct"))  # which has no limit on cosine or candidates
    assert not TEXT.allows(ThreatModel.from_dict({**TEXT.to_dict(), "min_cosine": 0.4}))
    assert TEXT.allows(ThreatModel.from_dict({**TEXT.to_dict(), "min_cosine": 0.6, "max_candidates": 4}))
    assert not TEXT.allows(ThreatModel.from_dict({**TEXT.to_dict(), "synonyms": "another"}))
