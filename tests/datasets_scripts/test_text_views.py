"""EDA's operations by what they must keep and change, and paraphrases by their rank."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from rmcl_hub.datasets_scripts.text_views import (
    eda,
    random_deletion,
    random_insertion,
    random_swap,
    rank_views,
    synonym_replacement,
    text_view,
)

SYNONYMS = {"dog": ["puppy", "hound"], "big": ["large"], "runs": ["races", "dashes"], "house": ["home"]}
SENTENCE = "a big dog runs past the old house with a ball ."
OPERATIONS = [synonym_replacement, random_insertion, random_swap, random_deletion]


def synonyms(word):
    return SYNONYMS.get(word.lower(), [])


def sources():
    return [random.Random(f"draw {number}") for number in range(200)]


def sentence_of(length):
    return [f"word{place}" if place % 2 else "dog" for place in range(length)]


def changed_places(words, others):
    return [place for place, (word, other) in enumerate(zip(words, others, strict=True)) if word != other]


def is_part_of(words, others):
    rest = iter(others)
    return all(word in rest for word in words)


@pytest.mark.parametrize(("length", "count"), [(1, 1), (2, 1), (9, 1), (10, 1), (19, 1), (20, 2), (31, 3)])
def test_as_many_words_change_as_a_tenth_of_the_sentence(length, count):
    words = sentence_of(length)
    for draws in sources():
        replaced = synonym_replacement(words, synonyms, draws)
        places = changed_places(words, replaced)
        assert len(places) == count
        assert all(words[place] == "dog" and replaced[place] in SYNONYMS["dog"] for place in places)

        inserted = random_insertion(words, synonyms, draws)
        assert Counter(inserted) - Counter(words) == Counter(
            word for word in inserted if word in SYNONYMS["dog"]
        )
        assert len(inserted) == length + count
        assert is_part_of(words, inserted)

        swapped = random_swap(words, synonyms, draws)
        assert Counter(swapped) == Counter(words)
        assert len(changed_places(words, swapped)) <= 2 * count


def test_every_synonym_and_every_place_can_come():
    replaced = {tuple(synonym_replacement(["dog", "the", "Big"], synonyms, draws)) for draws in sources()}
    assert replaced == {("puppy", "the", "Big"), ("hound", "the", "Big"), ("dog", "the", "large")}
    inserted = {tuple(random_insertion(["the", "house"], synonyms, draws)) for draws in sources()}
    assert inserted == {("home", "the", "house"), ("the", "home", "house"), ("the", "house", "home")}
    swapped = {tuple(random_swap(["a", "b", "c"], synonyms, draws)) for draws in sources()}
    assert swapped == {("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")}


def test_all_words_with_synonyms_change_if_they_are_too_few():
    words = ["dog", *(f"word{place}" for place in range(39))]  # four should change
    assert changed_places(words, synonym_replacement(words, synonyms, random.Random(0))) == [0]


def test_a_comma_stays():
    assert synonym_replacement(["big,"], synonyms, random.Random(0)) == ["large,"]


@pytest.mark.parametrize("length", [2, 3, 10, 40])
def test_a_deletion_takes_some_words_and_never_all(length):
    words = [f"word{place}" for place in range(length)]
    left = [random_deletion(words, synonyms, draws) for draws in sources()]
    assert all(0 < len(rest) < length and is_part_of(rest, words) for rest in left)
    if length == 40:
        assert np.mean([length - len(rest) for rest in left]) == pytest.approx(4, abs=0.5)
        assert len({word for rest in left for word in set(words) - set(rest)}) == length


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("words", [[], ["thing"]])
def test_nothing_to_change_is_left_alone(operation, words):
    assert operation(words, synonyms, random.Random(0)) == words


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_leave_their_input_alone(operation):
    words = SENTENCE.split()
    operation(words, synonyms, random.Random(0))
    assert words == SENTENCE.split()


def test_eda_is_one_of_four_operations_and_never_the_sentence():
    kinds, words = Counter(), SENTENCE.removesuffix(" .").split()
    for draws in sources():
        view = eda(SENTENCE, synonyms, draws)
        assert view != SENTENCE
        assert view.endswith(" .")
        others = view.removesuffix(" .").split()
        kinds[len(others) > len(words), len(others) < len(words), Counter(others) == Counter(words)] += 1
    assert len(kinds) == 4
    assert min(kinds.values()) > 25


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "house house",
            {"house", "home house", "house home"}
            | {"home house house", "house home house", "house house home"},
        ),  # a swap shows nothing
        ("big!", {"large!", "large big!", "big large!"}),
        ("the thing", {"thing the", "the", "thing"}),
        ("thing.", {"thing."}),
        ("...", {"..."}),
    ],
)
def test_eda_returns_the_sentence_only_if_nothing_else_is_possible(sentence, expected):
    views = {eda(sentence, synonyms, draws) for draws in sources()}
    assert views == expected


def test_eda_draws_from_the_given_source_alone():
    state = random.getstate()
    views = [eda(SENTENCE, synonyms, draws) for draws in sources()]
    assert random.getstate() == state
    random.seed(5)
    assert [eda(SENTENCE, synonyms, draws) for draws in sources()] == views


@pytest.mark.parametrize(("epoch", "expected"), [(0, "first"), (1, "second"), (2, "third"), (9, "third")])
def test_every_epoch_has_its_paraphrase_and_the_last_one_stays(epoch, expected):
    views = ["first", "A big dog", "second", "a  big dog.", "third"]
    assert text_view("a big dog .", views, epoch, synonyms, random.Random(0)) == expected


@pytest.mark.parametrize("views", [None, [], ["A big dog"]])
def test_without_paraphrases_there_is_eda(views):
    view = text_view("a big dog", views, 3, synonyms, random.Random(0))
    assert view == eda("a big dog", synonyms, random.Random(0)) != "a big dog"


VECTORS = {"original": [1, 0], "same way": [9, 0.1], "near": [20, 20], "across": [0, 3], "against": [-1, 0]}


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_views_are_ranked_by_cosine_not_by_length(kind):
    asked = []

    def embed(texts):
        asked.extend(texts)
        return kind([VECTORS[text] for text in texts])

    candidates = ["across", "against", "near", "Original.", "same way", "near"]
    assert rank_views("original", candidates, embed) == ["same way", "near", "across", "against"]
    assert asked == ["original", "across", "against", "near", "same way"]


def test_nothing_is_embedded_if_all_candidates_are_the_sentence():
    assert rank_views("a dog", ["A dog.", "a dog"], embed=None) == []


def test_one_vector_per_text():
    with pytest.raises(ValueError, match=r"one vector per text, shape \(3, dim\), got \(2, 5\)"):
        rank_views("a", ["b", "c"], lambda texts: np.zeros((2, 5)))
