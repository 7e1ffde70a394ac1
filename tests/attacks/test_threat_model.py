import json

import pytest

from rmcl_hub.attacks.threat_model import ThreatModel

IMAGE = ThreatModel(modality="image", norm="linf", epsilon=4 / 255)
TEXT = ThreatModel(modality="text", max_change_share=0.2, max_candidates=5, min_cosine=0.5, synonyms="abc")


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
        "max_candidates": 5,
        "min_cosine": 0.5,
        "synonyms": "abc",
        "access": "white-box",
        "knowledge": "objective",
    }


def test_reads_as_a_sentence() -> None:
    assert str(IMAGE) == "white-box attack on image: linf epsilon 0.01569 (4/255)"
    assert str(TEXT) == "white-box attack on text: at most 20% of the words"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "audio"}, "modality is 'audio'; expected 'image', 'text' or 'both'"),
        ({"modality": "image"}, r"modality 'image' needs epsilon, in \[0, 1\]"),
        ({"modality": "both", "epsilon": 0.1}, "modality 'both' needs max_change_share"),
        ({"modality": "image", "epsilon": 4}, r"epsilon is 4; expected a radius in \[0, 1\]"),
        (
            {"modality": "image", "epsilon": 0.1, "eps": 1},
            r"Unknown threat model fields \['eps'\]; known fields are",
        ),
    ],
)
def test_impossible_models_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel.from_dict(fields)
