import numpy as np
import pytest

from rmcl_hub.evaluation.intervals import wilson_interval
from rmcl_hub.evaluation.metrics import best_ranks
from rmcl_hub.evaluation.shortlist import Shortlist, complete_scores, listed_items, recall_errors

QUERIES, GALLERY = 20, 15


@pytest.fixture
def rankings():
    """Scores of the encoder, cheap scores on few levels, and right answers."""
    generator = np.random.default_rng(0)
    relevant = generator.random((QUERIES, GALLERY)) < 0.15
    relevant[:, 0] |= ~relevant.any(axis=1)
    scores = generator.normal(size=(QUERIES, GALLERY))
    return scores, generator.integers(4, size=(QUERIES, GALLERY)).astype(float), relevant


class TestListedItems:
    @pytest.mark.parametrize("size", [1, 4, 15, 99])
    def test_the_first_of_a_sort_that_puts_wrong_answers_first_among_equals(self, rankings, size):
        _, cheap, relevant = rankings
        listed = listed_items(cheap, relevant, size)
        for row, right, chosen in zip(cheap, relevant, listed, strict=True):
            assert chosen.sum() == min(size, GALLERY)
            worst = row[chosen].min()
            assert chosen[row > worst].all()
            assert not chosen[row < worst].any()
            tied = row == worst
            if (chosen & tied & right).any():
                assert chosen[tied & ~right].all()

    def test_a_right_answer_among_equals_is_left_out(self):
        assert listed_items(np.zeros((1, 3)), np.array([[True, False, False]]), 2).tolist() == [
            [False, True, True]
        ]


class TestCompleteScores:
    def test_all_listed_changes_nothing(self, rankings):
        scores, cheap, relevant = rankings
        assert (complete_scores(scores, np.ones_like(relevant), cheap) == scores).all()

    def test_listed_by_score_then_the_rest_by_cheap_score(self, rankings):
        scores, cheap, relevant = rankings
        listed = listed_items(cheap, relevant, 5)
        complete = complete_scores(np.where(listed, scores, np.nan), listed, cheap)
        keys = np.where(listed, scores, -100 + cheap)
        for row, key in zip(complete, keys, strict=True):
            assert (np.sign(row[:, None] - row) == np.sign(key[:, None] - key)).all()  # ties stay ties


class TestRecallErrors:
    def test_hand_table(self):
        ranks, exact = np.array([1, 1, 7, 2, 9, 1]), np.array([1, 3, 2, 2, 9, 1])
        errors = recall_errors(ranks, exact, [1, 5, 10])
        assert [error["difference"] for error in errors.values()] == pytest.approx([1 / 6, -1 / 6, 0.0])
        assert [error["n"] for error in errors.values()] == [6, 6, 6]
        one, none = wilson_interval(1, 6, confidence=0.975), wilson_interval(0, 6, confidence=0.975)
        assert (errors["1"]["low"], errors["1"]["high"]) == (one[0] - none[1], one[1] - none[0])
        assert (errors["5"]["low"], errors["5"]["high"]) == (none[0] - one[1], none[1] - one[0])

    def test_is_the_difference_of_two_recalls(self, rankings):
        scores, cheap, relevant = rankings
        listed = listed_items(cheap, relevant, 3)
        ranks = best_ranks(complete_scores(scores, listed, cheap), relevant)
        exact = best_ranks(scores, relevant)
        for k, error in recall_errors(ranks, exact, [1, 5]).items():
            assert error["difference"] == pytest.approx(np.mean(ranks <= int(k)) - np.mean(exact <= int(k)))

    @pytest.mark.parametrize("rate", [0.0, 0.1])
    def test_the_interval_covers_the_truth_in_95_of_100_samples(self, rate):
        """`rate` of the queries gained and lost each: the true difference is 0."""
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            kind = generator.choice(3, p=[rate, rate, 1 - 2 * rate], size=50)
            ranks, exact = np.where(kind == 0, 1, 9), np.where(kind == 1, 1, 9)
            error = recall_errors(ranks, exact, [5])["5"]
            covered += error["low"] <= 0 <= error["high"]
        assert covered >= 380


def test_a_list_of_nothing():
    with pytest.raises(ValueError, match="size is 0; expected at least 1"):
        Shortlist(0)
    with pytest.raises(ValueError, match=r"num_checked is 0; expected at least 1\. A shortlist whose error"):
        Shortlist(5, num_checked=0)
