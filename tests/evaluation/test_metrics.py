import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_hit_rate
from torchmetrics.functional.text import word_error_rate

from rmcl_hub.evaluation.metrics import (
    attack_success_rate,
    best_ranks,
    flip_rate,
    perturbation_norms,
    recall_at_k,
    robust_accuracy,
    vqa_accuracy,
    word_change_rate,
    words_changed,
)

# clean right, attacked right: 3 survive, 2 broken, 1 "repaired" by the attack, 2 wrong throughout
CLEAN = [1, 1, 1, 1, 1, 0, 0, 0]
ATTACKED = [1, 1, 1, 0, 0, 1, 0, 0]


def random_ranking(seed, queries=40, gallery=12, levels=6):
    """Scores on few levels, so with many ties, half of them negative; 1 to 3 right items."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(levels, size=(queries, gallery)) - levels / 2
    relevant = np.zeros((queries, gallery), dtype=bool)
    for row in relevant:
        row[generator.choice(gallery, size=generator.integers(1, 4), replace=False)] = True
    return scores, relevant


class TestRates:
    def test_hand_table(self):
        assert robust_accuracy(CLEAN, ATTACKED) == 3 / 8
        assert attack_success_rate(CLEAN, ATTACKED) == 2 / 5
        assert flip_rate(CLEAN, ATTACKED) == 3 / 8

    def test_an_example_repaired_by_the_attack_is_not_robust(self):
        assert robust_accuracy([0], [1]) == 0.0

    @pytest.mark.parametrize("convert", [np.array, torch.tensor, lambda x: np.array(x, dtype=bool)])
    def test_arrays_and_tensors(self, convert):
        assert attack_success_rate(convert(CLEAN), convert(ATTACKED)) == 2 / 5

    @pytest.mark.parametrize("seed", range(5))
    def test_identities(self, seed):
        generator = np.random.default_rng(seed)
        labels, before, after = generator.integers(4, size=(3, 200))
        clean, attacked = before == labels, after == labels
        robust = robust_accuracy(clean, attacked)
        assert robust == pytest.approx(clean.mean() * (1 - attack_success_rate(clean, attacked)))
        assert flip_rate(before, after) >= clean.mean() - robust

    def test_loop_over_examples(self):
        generator = np.random.default_rng(7)
        clean, attacked = generator.random((2, 300)) < 0.6
        broken = [not after for before, after in zip(clean, attacked, strict=True) if before]
        assert attack_success_rate(clean, attacked) == pytest.approx(sum(broken) / len(broken))

    def test_attack_success_without_a_correct_example_is_an_error(self):
        with pytest.raises(ValueError, match="none of the 2 examples was initially correct"):
            attack_success_rate([0, 0], [0, 1])

    def test_errors(self):
        with pytest.raises(ValueError, match="clean_correct is empty"):
            robust_accuracy([], [])
        with pytest.raises(ValueError, match="clean_correct has 2 examples and adversarial_correct 1"):
            robust_accuracy([1, 0], [1])
        with pytest.raises(ValueError, match=r"values other than 0 and 1; pass `predictions == labels`"):
            robust_accuracy([3, 1], [1, 1])
        with pytest.raises(ValueError, match="expected 1 dimension"):
            flip_rate(np.zeros((2, 2)), np.zeros((2, 2)))


class TestRecallAtK:
    @pytest.mark.parametrize("k", [1, 3, 12])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_loop_with_the_worst_order_of_ties(self, seed, k):
        scores, relevant = random_ranking(seed)
        hits = []
        for row, right in zip(scores, relevant, strict=True):
            order = sorted(range(len(row)), key=lambda item: (-row[item], right[item]))  # wrong ones first
            hits.append(any(right[item] for item in order[:k]))
        assert recall_at_k(scores, relevant, k) == pytest.approx(np.mean(hits))

    @pytest.mark.parametrize("k", [1, 5])
    def test_is_torchmetrics_hit_rate(self, k):
        generator = np.random.default_rng(3)
        scores = generator.random((30, 20)) + 1.0  # positive, for torchmetrics drops scores <= 0
        relevant = generator.random((30, 20)) < 0.1
        relevant[:, 0] |= ~relevant.any(axis=1)
        expected = [
            retrieval_hit_rate(torch.tensor(row), torch.tensor(right), top_k=k).item()
            for row, right in zip(scores, relevant, strict=True)
        ]
        assert recall_at_k(scores, relevant, k) == pytest.approx(np.mean(expected))
        assert 0 < np.mean(expected) < 1

    def test_negative_scores_are_ranked_like_others(self):
        scores, relevant = random_ranking(5)
        assert recall_at_k(scores - 100, relevant, 3) == recall_at_k(scores, relevant, 3)

    def test_a_constant_score_finds_nothing(self):
        assert recall_at_k(np.zeros((4, 5)), np.eye(4, 5, dtype=bool), 4) == 0.0

    def test_whole_gallery_finds_everything(self):
        scores, relevant = random_ranking(2)
        assert recall_at_k(scores, relevant, 12) == 1.0

    def test_any_of_several_right_items_counts(self):
        assert recall_at_k([[3.0, 2.0, 1.0]], [[False, True, True]], 2) == 1.0

    def test_errors(self):
        relevant = np.eye(2, dtype=bool)
        with pytest.raises(ValueError, match=r"k=3 is outside \[1, 2\], the size of the gallery"):
            recall_at_k(np.eye(2), relevant, 3)
        with pytest.raises(ValueError, match="scores contain NaN"):
            recall_at_k([[np.nan, 1], [0, 1]], relevant, 1)
        with pytest.raises(ValueError, match="query 1 has no relevant item"):
            recall_at_k(np.eye(2), [[True, False], [False, False]], 1)
        with pytest.raises(ValueError, match=r"both must be \(queries, gallery\)"):
            recall_at_k(np.eye(2), np.eye(2, 3), 1)


class TestBestRanks:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_is_the_smallest_k_that_finds_the_query(self, seed):
        scores, relevant = random_ranking(seed)
        expected = [
            next(k for k in range(1, 13) if recall_at_k(row[None], right[None], k))
            for row, right in zip(scores, relevant, strict=True)
        ]
        ranks = best_ranks(scores, relevant)
        assert ranks.tolist() == expected
        assert 1 < ranks.mean() < 12

    def test_right_items_do_not_push_each_other_down(self):
        assert best_ranks([[5.0, 4.0, 3.0, 2.0]], [[False, True, True, True]]).tolist() == [2]


class TestPerturbationNorms:
    def test_against_torch(self):
        generator = torch.Generator().manual_seed(0)
        clean, attacked = torch.rand(2, 5, 3, 4, 6, generator=generator)
        change = (attacked - clean).flatten(1)
        for norm, order in (("linf", float("inf")), ("l2", 2)):
            expected = torch.linalg.vector_norm(change, ord=order, dim=1).numpy()
            assert perturbation_norms(clean, attacked, norm) == pytest.approx(expected, abs=1e-6)

    def test_pictures_of_several_sizes_and_pairs_of_pictures(self):
        clean = [np.zeros((3, 2, 2)), np.zeros((2, 3, 4, 4))]
        attacked = [clean[0] + 0.5, clean[1].copy()]
        attacked[1][1, 2, 3, 3] = 0.25
        assert perturbation_norms(clean, attacked).tolist() == [0.5, 0.25]
        assert perturbation_norms(clean, attacked, "l2") == pytest.approx([0.5 * 12**0.5, 0.25])

    def test_darker_counts_as_much_as_brighter(self):
        assert perturbation_norms([[0.75, 0.5]], [[0.25, 0.6]]).tolist() == [0.5]

    def test_errors(self):
        with pytest.raises(ValueError, match="norm is 'l1'; expected 'linf' or 'l2'"):
            perturbation_norms([[0.0]], [[0.0]], "l1")
        with pytest.raises(ValueError, match="got 1 clean and 2 adversarial pictures"):
            perturbation_norms([[0.0]], [[0.0], [0.0]])
        with pytest.raises(ValueError, match="got 0 clean and 0 adversarial pictures"):
            perturbation_norms([], [])
        with pytest.raises(ValueError, match=r"picture 1 has shape \(2,\) before and \(1,\) after"):
            perturbation_norms([[0.0], [0.0, 0.0]], [[0.0], [0.0]])
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \[-1, 0\]; undo the normalisation"):
            perturbation_norms([[0.0, -1.0]], [[0.0, 0.0]])
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \[0, nan\]|got \[nan, nan\]"):
            perturbation_norms([[0.0]], [[float("nan")]])
        with pytest.raises(ValueError, match="got none"):
            perturbation_norms([[]], [[]])


class TestVQAAccuracy:
    def test_hand_table(self):
        scores = torch.tensor([[0.3, 1.0, 0.0], [0.6, 0.0, 0.0]])
        assert vqa_accuracy(torch.tensor([1, 0]), scores) == pytest.approx(0.8)
        assert vqa_accuracy([0, 2], scores) == pytest.approx(0.15)

    def test_errors(self):
        with pytest.raises(ValueError, match="pass soft targets, not logits"):
            vqa_accuracy([0], [[2.0, -1.0]])
        with pytest.raises(ValueError, match="there are 2 answers"):
            vqa_accuracy([2], [[0.0, 1.0]])
        with pytest.raises(ValueError, match="pass the same examples"):
            vqa_accuracy([0, 1], [[0.0, 1.0]])


class TestWordChanges:
    @pytest.mark.parametrize(
        ("clean", "attacked", "changes"),
        [
            ("a red boat", "a red boat", 0),
            ("a red boat", "a crimson boat", 1),
            ("a red boat", "a deep crimson boat", 2),  # one substitution, one insertion
            ("a red boat", "boat", 2),
            ("A red boat", "a red boat", 1),  # a cased tokenizer would see it
        ],
    )
    def test_hand_table(self, clean, attacked, changes):
        assert words_changed(clean, attacked) == changes

    def test_is_the_numerator_of_torchmetrics_word_error_rate(self):
        generator = np.random.default_rng(0)
        for _ in range(30):
            clean, attacked = (" ".join(generator.choice(list("abcd"), size=size)) for size in (7, 6))
            assert words_changed(clean, attacked) == round(word_error_rate(attacked, clean).item() * 7)

    def test_rate_is_averaged_over_sentences(self):
        assert word_change_rate(["a b", "a b c d"], ["a x", "a b c d"]) == 0.25

    def test_rate_is_over_the_clean_words(self):
        assert word_change_rate(["a b"], ["a b c d"]) == 1.0
        assert word_change_rate(["a b c d"], ["a b"]) == 0.5

    def test_errors(self):
        with pytest.raises(ValueError, match="got 1 clean and 2 adversarial sentences"):
            word_change_rate(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="sentence 1 is empty"):
            word_change_rate(["a", " "], ["a", "b"])
