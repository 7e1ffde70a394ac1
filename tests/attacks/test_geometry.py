from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.synonyms import SynonymTable


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_exchanges(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    linear_words: Any,
    every_exchange: Callable[[str], list[str]],
    seed: int,
) -> None:
    toy = linear_words(seed=seed)
    texts = [text.lower() for text in texts if "," not in text]
    attack = GeometryAttack(tokenizer, synonyms, max_change_share=1.0)

    result = attack(make_batch(texts), toy.objective)

    for row, text in enumerate(texts):
        variants = every_exchange(text)
        losses = toy.loss_of_texts(variants)
        assert result.batch["text"][row] == variants[int(losses.argmax())]
        assert result.loss_after[row] == pytest.approx(losses.max().item(), abs=1e-5)
        assert result.loss_before[row] == pytest.approx(losses[0].item(), abs=1e-5)
    assert (result.loss_after > result.loss_before).any()


def test_one_change_goes_to_the_most_influential_word_and_its_best_substitute(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any, linear_words: Any
) -> None:
    # "car" sits where the gradient is largest; changing "big" would gain more, but is not looked at first.
    values = {"big": 0.0, "large": 9.0, "huge": 8.0, "car": 1.0, "automobile": -7.0, "auto": 1.5}
    places = torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0])  # [CLS] a big car [SEP]
    toy = linear_words(values, places)
    once = GeometryAttack(tokenizer, synonyms)(make_batch(["a big car"]), toy.objective)
    assert once.batch["text"] == ["a big auto"]  # a projection of -8 is longer, but points the wrong way
    twice = GeometryAttack(tokenizer, synonyms, max_change_share=1.0)(
        make_batch(["a big car"]), toy.objective
    )
    assert twice.batch["text"] == ["a large auto"]


def test_a_word_that_cannot_raise_the_loss_is_left_and_the_next_one_tried(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any, linear_words: Any
) -> None:
    values = {"car": 1.0, "automobile": 0.0, "auto": 0.5, "huge": 1.0}
    toy = linear_words(values, torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    result = GeometryAttack(tokenizer, synonyms)(make_batch(["a big car"]), toy.objective)
    assert result.batch["text"] == ["a huge car"]
    assert (result.forwards, result.backwards) == (1 + 2 + 2, 1)
    one_loop = GeometryAttack(tokenizer, synonyms, max_loops=1)(make_batch(["a big car"]), toy.objective)
    assert one_loop.batch["text"] == ["a big car"]
    assert torch.equal(one_loop.loss_after, one_loop.loss_before)


def test_work_is_what_the_formula_says(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    linear_words: Any,
    row_counter: Any,
    changed_words: Any,
) -> None:
    for options in ({}, {"max_change_share": 0.5}, {"max_change_share": 1.0, "max_loops": 2}):
        counter = row_counter(joint_objective)
        result = GeometryAttack(tokenizer, synonyms, **options)(make_batch(texts), counter.objective)
        assert (result.forwards, result.backwards) == (counter.forwards, counter.backwards)

    # All substitutes raise the loss; "a big car on the road." has 2 + 2 + 1 of them, in whatever order.
    everything = dict.fromkeys(["large", "huge", "automobile", "auto", "street"], 1.0)
    toy = linear_words(everything, torch.ones(64))
    for share, loops, candidates, accepted, gradients in [
        (1.0, 10, 5, 3, 3),  # no word is left after the third change: no fourth gradient
        (0.34, 10, 4, 2, 2),  # int(0.34 * 6) = 2 changes, then the budget is spent
        (1.0, 1, 2, 1, 1),
        (0.0, 10, 0, 0, 0),
    ]:
        counter = row_counter(toy.objective)
        attack = GeometryAttack(tokenizer, synonyms, max_change_share=share, max_loops=loops)
        result = attack(make_batch([texts[0]]), counter.objective)
        assert len(changed_words(texts[0], result.batch["text"][0])) == accepted
        assert counter.forwards == max(gradients, 1) + candidates
        assert counter.backwards == gradients


def test_every_text_is_tried_beside_its_own_image(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
) -> None:
    batch = make_batch(["a big car on the road", "a big car on the road"])
    result = GeometryAttack(tokenizer, synonyms)(batch, joint_objective)
    assert (result.loss_after > result.loss_before).all()
    torch.testing.assert_close(result.loss_after, joint_objective(result.batch))


def test_gradients_follow_words_that_became_longer(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, linear_words: Any
) -> None:
    # "grinhill" is two tokens, so "car" and "road" move from places 2 and 3 to 3 and 4, where "road" leads.
    table = SynonymTable({"big": [("grinhill", 0.9)], "car": [("auto", 0.9)], "road": [("street", 0.9)]})
    toy = linear_words(
        {"grin": 1.0, "auto": 1.0, "street": 1.0}, torch.tensor([1.0, 5.0, 4.0, 2.0, 3.0, 1.0])
    )
    attack = GeometryAttack(tokenizer, table, max_change_share=None, max_changed_words=2)
    result = attack(make_batch(["big car road"]), toy.objective)
    assert result.batch["text"] == ["grinhill car street"]


def test_no_loops_are_refused(tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable) -> None:
    with pytest.raises(ValueError, match="max_loops is 0; expected at least 1"):
        GeometryAttack(tokenizer, synonyms, max_loops=0)
