"""Answers are normalised and scored as the VQA evaluation documents it, and as its code does where odd."""

import itertools
import random
from collections import Counter

import pytest

from rmcl_hub.datasets_scripts.vqa_answer_text import (
    build_answer_vocabulary,
    consensus_accuracy,
    normalise_answer,
    soft_scores,
)

# What the page visualqa.org/evaluation documents, then what only the code says.
DOCUMENTED = [
    ("YES", "yes"),
    ("yes.", "yes"),
    ("2.5", "2.5"),
    ("two", "2"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("none", "0"),
    ("zero", "0"),
    ("a dog", "dog"),
    ("an apple and the Pear", "apple and pear"),
    ("dont", "don't"),
    ("couldntve", "couldntve"),
    ("couldnt've", "couldn't've"),
    ("girl's", "girl's"),
    ("2:50 pm", "2:50 pm"),
    ("100,978", "100978"),
    ("red/blue", "red blue"),
    ("it's", "it's"),
]
ODD = [
    ("red - blue", "red blue"),  # next to a space a mark vanishes
    ("t-shirt", "t shirt"),
    ("t-shirt -", "tshirt"),  # and everywhere, if it is next to one somewhere
    ("1,000-2,000", "10002000"),  # a comma between digits removes all marks
    ("a.b", "ab"),
    ("5.", "5"),
    (".5", ".5"),
    ("somebody'd", "somebodyd"),  # reversed in the official table
    ("Im", "im"),  # its capitals never match
    ("shes", "shes"),
    ("yall'd've", "y'all'd've"),
    ("  two\tdogs\nrun ", "2 dogs run"),
    ("the", ""),
    ("." * 33 + "b", ".b"),  # the first 32 periods go
    ("Ünïcode 狗!", "ünïcode 狗"),
]


@pytest.mark.parametrize(("answer", "expected"), [*DOCUMENTED, *ODD])
def test_the_rules(answer, expected):
    assert normalise_answer(answer) == expected


def test_a_normalised_answer_stays_as_it_is():
    pieces = ["a", "two", "dont", "red/blue", "1,000", "2.5", "U.S.", "it's", "?", "-", "dog ", "None"]
    draw = random.Random(0)
    for _ in range(2000):
        text = normalise_answer(" ".join(draw.choices(pieces, k=3)) + draw.choice(pieces))
        assert normalise_answer(text) == text


def leave_one_out(prediction, answers):
    """The accuracy by its definition: over every choice of all annotators but one."""
    choices = list(itertools.combinations(answers, len(answers) - 1))
    return sum(min(1, choice.count(prediction) / 3) for choice in choices) / len(choices)


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_accuracy_of_ten_annotators(agreeing, expected):
    answers = ["dog"] * agreeing + [f"cat {index}" for index in range(10 - agreeing)]
    assert consensus_accuracy("dog", answers) == expected
    assert soft_scores(answers).get("dog", 0) == expected


@pytest.mark.parametrize("annotators", [2, 5, 10])
def test_accuracy_and_soft_scores_are_the_definition(annotators):
    draw = random.Random(annotators)
    written = [
        "two dogs",
        "2 dogs",
        "The 2 dogs!",
        "dont know",
        "don't know",
        "red/blue",
        "red blue",
        "1,000",
    ]
    for _ in range(300):
        answers = draw.choices(draw.sample(written, 4), k=annotators)
        prediction = draw.choice(written)
        alike = len(set(answers)) == 1
        compared = answers if alike else [normalise_answer(answer) for answer in answers]
        expected = leave_one_out(prediction if alike else normalise_answer(prediction), compared)
        assert consensus_accuracy(prediction, answers) == pytest.approx(expected)
        scores = soft_scores(answers)
        assert list(scores) == list(dict.fromkeys(compared))
        assert scores == pytest.approx({text: leave_one_out(text, compared) for text in compared})
        assert all(consensus_accuracy(text, answers) == score for text, score in scores.items())


def test_answers_that_all_wrote_alike_are_compared_as_they_are():
    assert soft_scores(["the sky "] * 10) == {"the sky": 1}
    assert consensus_accuracy("the sky", ["the sky"] * 10) == 1
    assert consensus_accuracy("sky", ["the sky"] * 10) == 0
    assert consensus_accuracy("sky", ["the sky"] * 9 + ["Sky"]) == 1


def test_without_answers_there_is_no_score():
    with pytest.raises(ValueError, match="without answers cannot be scored; those of VQA's test splits"):
        consensus_accuracy("yes", [])
    with pytest.raises(ValueError, match="without answers"):
        soft_scores([])


def test_the_vocabulary_counts_normalised_answers_from_nine_on():
    given = {"yes": 12, "Yes.": 3, "two": 5, "2": 4, "dog": 8, "the cat": 9, "the": 9, "a": 1}
    answers = [text for text, count in given.items() for _ in range(count)]
    random.Random(0).shuffle(answers)
    assert build_answer_vocabulary(answers) == ["yes", "", "2", "cat"]
    assert build_answer_vocabulary(answers, min_occurrences=8) == ["yes", "", "2", "cat", "dog"]
    assert build_answer_vocabulary([]) == []
    counts = Counter(map(normalise_answer, answers))
    assert build_answer_vocabulary(answers, 1) == sorted(counts, key=lambda text: (-counts[text], text))
