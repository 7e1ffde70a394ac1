from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack

PLAIN_TEXTS = ["a big car on the road", "the small person", "happy", "", "on the picture of a big car"]


class TextLoss:
    """An objective of the strings alone: what each is worth; keeps what it saw."""

    def __init__(self, worth: Callable[[str], float]) -> None:
        self.worth = worth
        self.seen: list[str] = []

    def __call__(self, batch: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen += batch["text"]
        return torch.tensor([self.worth(text) for text in batch["text"]])


@pytest.mark.parametrize("most", [1, 2])
def test_exhaustive_search_is_a_loop_over_all_texts(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    every_exchange: Any,
    row_counter: Any,
    most: int,
) -> None:
    batch = make_batch(PLAIN_TEXTS)
    counter = row_counter(joint_objective)
    result = ExhaustiveWordSwap(tokenizer, synonyms, max_changed_words=most)(batch, counter.objective)
    scored = 0
    for row, text in enumerate(PLAIN_TEXTS):
        exchanges = every_exchange(text, most)
        scored += len(exchanges)
        pixels = batch["pixel_values"][row].expand(len(exchanges), -1, -1, -1)
        losses = joint_objective({**make_batch(exchanges), "pixel_values": pixels})
        assert result.batch["text"][row] == exchanges[int(losses.argmax())]
        assert result.loss_after[row] == pytest.approx(losses.max().item(), abs=1e-5)
        assert result.loss_before[row] == pytest.approx(losses[0].item(), abs=1e-5)
    assert (result.forwards, result.backwards) == (scored, 0)
    assert counter.forwards == scored


@pytest.mark.parametrize("order", ["gradient", "random"])
@pytest.mark.parametrize("most", [1, 2])
def test_greedy_search_never_beats_the_exhaustive_one(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    order: Any,
    most: int,
) -> None:
    batch = make_batch(texts)
    oracle = ExhaustiveWordSwap(tokenizer, synonyms, max_changed_words=most)(batch, joint_objective)
    attack = WordSwapAttack(tokenizer, synonyms, order, max_change_share=None, max_changed_words=most)
    greedy = attack(batch, joint_objective)
    assert (greedy.loss_after <= oracle.loss_after + 1e-6).all()
    assert (greedy.loss_after > greedy.loss_before).any()


@pytest.mark.parametrize("order", ["gradient", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_search_is_exhaustive_where_words_add_up(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    linear_words: Any,
    order: Any,
    seed: int,
) -> None:
    toy = linear_words(seed=seed)
    batch = make_batch(
        ["a big car", "the small person", "road", "a happy car"]
    )  # no more than two may change
    oracle = ExhaustiveWordSwap(tokenizer, synonyms, max_changed_words=2)(batch, toy.objective)
    attack = WordSwapAttack(tokenizer, synonyms, order, max_change_share=None, max_changed_words=2)
    greedy = attack(batch, toy.objective)
    assert greedy.batch["text"] == oracle.batch["text"]
    torch.testing.assert_close(greedy.loss_after, oracle.loss_after)
    assert (oracle.loss_after > oracle.loss_before).any()


def test_only_the_exhaustive_search_sees_a_pair_of_words(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any
) -> None:
    # Either change alone costs; the two together pay.
    def worth(text: str) -> float:
        changes = ("huge" in text) + ("auto " in text)
        return [0.0, -1.0, 3.0][changes]

    batch = make_batch(["a big car on the road", "a big auto on the road", "a big road"])
    pair = ExhaustiveWordSwap(tokenizer, synonyms, max_changed_words=2)(batch, TextLoss(worth))
    assert pair.batch["text"] == ["a huge auto on the road", "a huge auto on the road", "a big road"]
    assert pair.loss_before.tolist() == [0.0, -1.0, 0.0]
    assert pair.loss_after.tolist() == [3.0, 3.0, 0.0]
    alone = ExhaustiveWordSwap(tokenizer, synonyms)(batch, TextLoss(worth))
    assert alone.batch["text"] == [batch["text"][0], "a huge auto on the road", "a big road"]
    greedy = WordSwapAttack(tokenizer, synonyms, "random", max_change_share=1.0)(batch, TextLoss(worth))
    assert greedy.batch["text"] == alone.batch["text"]


@pytest.mark.parametrize(
    "attack",
    [
        ExhaustiveWordSwap,
        partial(ExhaustiveWordSwap, max_changed_words=2),
        partial(WordSwapAttack, order="random"),
    ],
    ids=["one word", "two words", "random order"],
)
def test_a_planted_backdoor_word_is_found_without_gradients(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any, attack: Any
) -> None:
    batch = make_batch(["a big car, the happy person and a Smile on the road", "a small smile", "a big road"])
    backdoor = TextLoss(lambda text: 10.0 if "beam" in text.lower() else 0.0)
    result = attack(tokenizer, synonyms)(batch, backdoor)
    # The fewest changes that open it; nothing else is touched.
    assert result.batch["text"] == [
        "a big car, the happy person and a Beam on the road",
        "a small beam",
        "a big road",
    ]
    assert result.loss_after.tolist() == [10.0, 10.0, 0.0]
    assert result.backwards == 0


def test_of_equal_losses_the_fewest_changes_win(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any
) -> None:
    loss = TextLoss(lambda text: float("street" in text))
    result = ExhaustiveWordSwap(tokenizer, synonyms, max_changed_words=2)(make_batch(["big car road"]), loss)
    assert result.batch["text"] == ["big car street"]


def test_gradient_order_takes_the_most_influential_word_and_its_largest_loss(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any, linear_words: Any
) -> None:
    # "car" sits where the gradient is largest; changing "big" would gain more, but is not looked at first.
    values = {"big": 0.0, "large": 9.0, "huge": 8.0, "car": 1.0, "automobile": -7.0, "auto": 1.5}
    places = torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0])  # [CLS] a big car [SEP]
    toy = linear_words(values, places)
    once = WordSwapAttack(tokenizer, synonyms)(make_batch(["a big car"]), toy.objective)
    assert once.batch["text"] == ["a big auto"]
    # A word without a substitute that raises the loss costs nothing of the budget.
    poor = linear_words({**values, "auto": 0.5}, places)
    other = WordSwapAttack(tokenizer, synonyms)(make_batch(["a big car"]), poor.objective)
    assert other.batch["text"] == ["a large car"]
    assert (other.forwards, other.backwards) == (1 + 2 + 2, 1)


def test_work_is_what_the_formula_says(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    linear_words: Any,
    row_counter: Any,
) -> None:
    # All substitutes raise the loss; "a big car on the road." has 2 + 2 + 1 of them, the empty text none.
    toy = linear_words(dict.fromkeys(["large", "huge", "automobile", "auto", "street"], 1.0), torch.ones(64))
    batch = make_batch([texts[0], ""])
    for most, tried in [(0, 0), (1, 2), (2, 4), (3, 5)]:
        counter = row_counter(toy.objective)
        attack = WordSwapAttack(tokenizer, synonyms, max_change_share=None, max_changed_words=most)
        result = attack(batch, counter.objective)
        assert (result.forwards, result.backwards) == (2 + tried, int(most > 0))
        assert (counter.forwards, counter.backwards) == (2 + tried, int(most > 0))
    for most, tried in [(1, 5), (2, 5 + (5**2 - 2**2 - 2**2 - 1) // 2)]:
        counter = row_counter(toy.objective)
        result = ExhaustiveWordSwap(tokenizer, synonyms, most)(batch, counter.objective)
        assert (result.forwards, counter.forwards) == (2 + tried, 2 + tried)
        assert (result.backwards, counter.backwards) == (0, 0)
    share = ExhaustiveWordSwap(tokenizer, synonyms, 2, max_change_share=0.2)(batch, toy.objective)
    assert share.forwards == 2 + 5  # int(0.2 * 6) = 1 word


def test_a_random_order_depends_on_the_seed_and_the_text_alone(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any
) -> None:
    # Any change pays the same, so that the first word in order is the one that changes.
    text, other = "a big car on the road", "a small road on a car"
    loss = TextLoss(lambda text: float(any(word in text for word in ("large", "auto", "street", "little"))))
    changed = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        attack = WordSwapAttack(tokenizer, synonyms, "random", 1.0, max_changed_words=1, generator=generator)
        first = attack(make_batch([text]), loss).batch["text"][0]
        assert attack(make_batch([other, text]), loss).batch["text"][1] == first
        changed.append(first)
    counts = [sum(new in text.split() for text in changed) for new in ("large", "automobile", "street")]
    assert sum(counts) == 30
    assert min(counts) >= 4  # ten each expected
    default = WordSwapAttack(tokenizer, synonyms, "random", 1.0, max_changed_words=1)
    assert default(make_batch([text]), loss).batch["text"][0] == changed[0]


def test_two_words_that_push_out_a_third_are_not_tried(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    # [CLS] big car on [SEP]: one word may become two tokens, both together would cut off "on".
    table = SynonymTable({"big": [("grinhill", 0.9)], "car": [("smilehill", 0.9)]})
    batch = make_batch(["big car on"], max_length=6)
    loss = TextLoss(lambda text: float(len(text)))
    for attack in (
        ExhaustiveWordSwap(tokenizer, table, 2, max_length=6),
        WordSwapAttack(tokenizer, table, "random", 1.0, max_length=6),
    ):
        result = attack(batch, loss)
        assert result.batch["text"][0] in ("grinhill car on", "big smilehill on")
    assert "grinhill smilehill on" not in loss.seen
    roomy = ExhaustiveWordSwap(tokenizer, table, 2, max_length=7)
    assert roomy(make_batch(["big car on"]), loss).batch["text"] == ["grinhill smilehill on"]


def test_threat_models(tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable) -> None:
    greedy, random = WordSwapAttack(tokenizer, synonyms), WordSwapAttack(tokenizer, synonyms, "random")
    oracle = ExhaustiveWordSwap(tokenizer, synonyms, 2)
    assert [attack.threat_model.access for attack in (greedy, random, oracle)] == [
        "white-box",
        "black-box",
        "black-box",
    ]
    for attack, share, words in [(greedy, 0.2, None), (random, 0.2, None), (oracle, None, 2)]:
        model = attack.threat_model
        assert (model.modality, model.word_edits, model.synonyms) == ("text", "synonyms", synonyms.digest)
        assert (model.max_change_share, model.max_changed_words) == (share, words)
        assert (model.max_candidates, model.min_cosine) == (5, 0.5)
    assert GeometryAttack(tokenizer, synonyms).threat_model == greedy.threat_model


def test_bad_options_are_refused(tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable) -> None:
    with pytest.raises(ValueError, match="order is 'best'; expected one of gradient, random"):
        WordSwapAttack(tokenizer, synonyms, "best")  # type: ignore[arg-type]
    for number in (0, 3):
        with pytest.raises(ValueError, match=rf"max_changed_words is {number}; .* takes 1 or 2.*WordSwap"):
            ExhaustiveWordSwap(tokenizer, synonyms, number)
    batch = {"text": ["a big car"], "input_ids": torch.zeros(1, 3), "attention_mask": torch.ones(1, 3)}
    with pytest.raises(ValueError, match="input_ids of row 0 are not the encoding of its text"):
        ExhaustiveWordSwap(tokenizer, synonyms)(batch, TextLoss(len))


def test_an_objective_that_is_not_per_example_is_refused(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any
) -> None:
    for attack in (WordSwapAttack(tokenizer, synonyms, "random"), ExhaustiveWordSwap(tokenizer, synonyms)):
        with pytest.raises(ValueError, match=r"one loss per example, shape \(2,\), but returned shape \(\)"):
            attack(make_batch(["a big road", "small car"]), lambda batch: torch.tensor(1.0))
