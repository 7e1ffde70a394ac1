from dataclasses import replace

import pytest

from rmcl_hub.evaluation.intervals import wilson_interval
from rmcl_hub.evaluation.outcomes import correctness, load_outcomes, save_outcomes, summarise


def test_summary_of_the_hand_table(outcomes):
    numbers = summarise({0: outcomes})["pgd-4"]["overall"]
    expected = {
        "clean_accuracy": (6, 8),
        "robust_accuracy": (3, 8),
        "attack_success_rate": (3, 6),
        "flip_rate": (4, 8),
    }
    for name, (successes, n) in expected.items():
        low, high = wilson_interval(successes, n)
        assert numbers[name] == {"value": successes / n, "low": low, "high": high, "n": n, "method": "Wilson"}
    assert numbers["max_delta_linf"] == pytest.approx(4 / 255)
    assert numbers["mean_loss_after"] == 1.5


def test_every_question_type_is_a_stratum(outcomes):
    summary = summarise({0: outcomes})["pgd-4"]
    assert set(summary) == {"overall", "colour", "object"}
    assert summary["colour"]["clean_accuracy"]["n"] + summary["object"]["clean_accuracy"]["n"] == 8


def test_success_rate_is_none_where_nothing_was_right(outcomes):
    wrong = [replace(row, clean_correct=False) for row in outcomes]
    rate = summarise({0: wrong})["pgd-4"]["overall"]["attack_success_rate"]
    assert rate == {"value": None, "low": 0.0, "high": 1.0, "n": 0, "method": "undefined"}


def test_several_seeds_are_pooled_but_not_taken_for_more_examples(outcomes):
    one = summarise({0: outcomes})["pgd-4"]["overall"]["robust_accuracy"]
    two = summarise({0: outcomes, 1: outcomes})["pgd-4"]["overall"]["robust_accuracy"]
    assert two["value"] == one["value"]
    assert two["n"] == 16
    assert two["method"].startswith("bootstrap")
    low, high = wilson_interval(6, 16)
    assert two["high"] - two["low"] > high - low


def test_word_change_rate_is_per_sentence(outcomes):
    changed = [replace(row, words_changed=index % 2, num_words=2) for index, row in enumerate(outcomes)]
    assert summarise({0: changed})["pgd-4"]["overall"]["word_change_rate"] == 0.25


def test_table_survives_the_disk(outcomes, tmp_path):
    save_outcomes(outcomes, tmp_path / "outcomes.parquet")
    assert load_outcomes(tmp_path / "outcomes.parquet") == outcomes


def test_correctness_columns(outcomes):
    assert correctness(outcomes).tolist() == [
        [row.clean_correct, row.adversarial_correct] for row in outcomes
    ]


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="no outcomes to summarise"):
        summarise({0: []})
