"""What all attacks on words have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective, frozen
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack

GRADIENT_ATTACKS: dict[str, Callable[..., Any]] = {"geometry": GeometryAttack, "greedy": WordSwapAttack}
GREEDY_ATTACKS = {**GRADIENT_ATTACKS, "random order": partial(WordSwapAttack, order="random")}
ALL_ATTACKS = {
    **{name: partial(attack, max_change_share=0.5) for name, attack in GREEDY_ATTACKS.items()},
    "one word": partial(WordSwapAttack, max_change_share=None, max_changed_words=1),
    "exhaustive": partial(ExhaustiveWordSwap, max_changed_words=2),
}
gradient_attacks = pytest.mark.parametrize("attack_class", GRADIENT_ATTACKS.values(), ids=GRADIENT_ATTACKS)
greedy_attacks = pytest.mark.parametrize("attack_class", GREEDY_ATTACKS.values(), ids=GREEDY_ATTACKS)
all_attacks = pytest.mark.parametrize("attack_class", ALL_ATTACKS.values(), ids=ALL_ATTACKS)


@gradient_attacks
def test_pieces_of_a_word_are_averaged(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, linear_words: Any, attack_class: Any
) -> None:
    # "smilehill" is two pieces whose gradients cancel: "car" comes first although each piece's is larger.
    table = SynonymTable({"smilehill": [("grin", 0.9)], "car": [("auto", 0.9)]})
    toy = linear_words({"grin": 5.0, "auto": 1.0}, torch.tensor([1.0, 3.0, -3.0, 1.0, 1.0]))
    batch = make_batch(["smilehill car"])
    assert batch["input_ids"].shape == (1, 5)
    result = attack_class(tokenizer, table)(batch, toy.objective)
    assert result.batch["text"] == ["smilehill auto"]


@greedy_attacks
@pytest.mark.parametrize(
    ("share", "words", "changes"),
    [
        (0.0, None, 0),
        (0.1, None, 1),
        (0.25, None, 3),
        (0.5, None, 6),
        (1.0, None, 7),
        (None, 0, 0),
        (None, 1, 1),
        (None, 2, 2),
        (None, 99, 7),
        (0.25, 2, 2),
        (0.25, 5, 3),
    ],
)
def test_budget_of_changes(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    linear_words: Any,
    changed_words: Any,
    attack_class: Any,
    share: float | None,
    words: int | None,
    changes: int,
) -> None:
    # Every substitute raises the loss, so only the budget stops the attack: 13 words, 7 with substitutes.
    values = dict.fromkeys(
        ["large", "huge", "little", "tiny", "automobile", "street", "individual", "image", "glad"], 1.0
    )
    toy = linear_words(values, torch.ones(64))
    text = texts[2]
    attack = attack_class(tokenizer, synonyms, max_change_share=share, max_changed_words=words)
    result = attack(make_batch([text]), toy.objective)
    assert len(changed_words(text, result.batch["text"][0])) == changes
    threat_model = attack.threat_model
    assert (threat_model.max_change_share, threat_model.max_changed_words) == (share, words)
    assert changes == min(threat_model.word_budget(text), 7)


@greedy_attacks
def test_a_short_text_may_change_one_word_if_another_one_remains(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    linear_words: Any,
    attack_class: Any,
) -> None:
    toy = linear_words({"auto": 1.0, "huge": 0.0}, torch.ones(64))
    texts = ["big car", "the car", "car", "car on the on the"]
    result = attack_class(tokenizer, synonyms)(make_batch(texts), toy.objective)
    assert result.batch["text"] == ["big auto", "the car", "car", "auto on the on the"]
    # Under a number of words, and no share, the threat model says so.
    one = attack_class(tokenizer, synonyms, max_change_share=None, max_changed_words=1)
    result = one(make_batch(texts), toy.objective)
    assert result.batch["text"] == ["big auto", "the auto", "auto", "auto on the on the"]


@greedy_attacks
@pytest.mark.parametrize(
    ("text", "share", "length", "allowed", "changes"),
    [
        # Truncation hides all but two of eight words: what is changed is a share of what the model sees.
        ("big car road road road road road road", 0.5, 4, 4, 1),
        # The tokenizer splits the ideographs into words of their own, the threat model counts three words.
        ("big \u8f66\u8f66\u8f66\u8f66\u8f66\u8f66\u8f66 car", 0.34, 40, 1, 1),
    ],
)
def test_the_budget_never_exceeds_the_threat_models(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    linear_words: Any,
    attack_class: Any,
    text: str,
    share: float,
    length: int,
    allowed: int,
    changes: int,
) -> None:
    toy = linear_words(dict.fromkeys(["auto", "huge", "street"], 1.0), torch.ones(64))
    attack = attack_class(tokenizer, synonyms, max_change_share=share, max_length=length)
    result = attack(make_batch([text], max_length=length), toy.objective)
    pairs = zip(text.split(), result.batch["text"][0].split(), strict=True)
    assert sum(old != new for old, new in pairs) == changes
    assert attack.threat_model.word_budget(text) == allowed


@all_attacks
def test_strings_keep_their_rest_and_agree_with_their_ids(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    changed_words: Any,
    attack_class: Any,
) -> None:
    batch = make_batch(texts)
    attack = attack_class(tokenizer, synonyms)
    result = attack(batch, joint_objective)
    changes = [changed_words(*pair) for pair in zip(texts, result.batch["text"], strict=True)]
    assert sum(map(len, changes)) >= 4
    for text, of_text in zip(texts, changes, strict=True):
        assert len(of_text) <= attack.threat_model.word_budget(text)
    for old, new in (change for of_text in changes for change in of_text):
        assert new.lower() in dict(synonyms.candidates(old))
        assert old.lower() not in ("the", "a", "of")
        assert (new.isupper(), new.istitle()) == (old.isupper(), old.istitle())
    expected = tokenizer(result.batch["text"], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(result.batch[name], expected[name])
    torch.testing.assert_close(result.loss_after, joint_objective(result.batch))
    torch.testing.assert_close(result.loss_before, joint_objective(batch))
    assert (result.loss_after >= result.loss_before).all()
    assert result.batch["text"][4] == ""
    assert result.batch["pixel_values"] is batch["pixel_values"]


@greedy_attacks
def test_only_whole_visible_words_are_exchanged(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    linear_words: Any,
    attack_class: Any,
) -> None:
    everything = dict.fromkeys(["large", "auto", "street", "glad", "##hill", "grin", "beam", "[UNK]"], 1.0)
    toy = linear_words(everything, torch.ones(64))
    attack = attack_class(tokenizer, synonyms, max_change_share=1.0, max_length=6)
    texts = [
        "big-car road",  # parts of a compound stay
        "don't car's road",
        "a shirt up",  # its only substitute is unknown to the tokenizer
        "a person on the road",  # [CLS] a person on the [SEP]: "road" is cut off
    ]
    result = attack(make_batch(texts, max_length=6), toy.objective)
    assert result.batch["text"] == [
        "big-car street",
        "don't car's road",
        "a shirt up",
        "a person on the road",
    ]

    longer = SynonymTable({"car": [("grinhill", 0.9), ("auto", 0.8)]})  # two pieces: would push out "road"
    attack = attack_class(tokenizer, longer, max_change_share=1.0, max_length=6)
    result = attack(make_batch(["a car on road"], max_length=6), toy.objective)
    assert result.batch["text"] == ["a auto on road"]
    longer = SynonymTable({"smile": [("grin", 0.9)]})
    attack = attack_class(tokenizer, longer, max_change_share=1.0, max_length=5)
    result = attack(make_batch(["on a smilehill"], max_length=5), toy.objective)
    assert result.batch["text"] == ["on a smilehill"]  # what is seen of the word is "smile"


@greedy_attacks
def test_substitutes_of_several_words_do_not_shift_the_others(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, linear_words: Any, attack_class: Any
) -> None:
    table = SynonymTable(
        {"big": [("very-large", 0.9), ("red large", 0.9)], "car": [("auto", 0.9)], "road": [("street", 0.9)]}
    )
    toy = linear_words(dict.fromkeys(["red", "large", "auto", "street"], 1.0), torch.ones(64))
    attack = attack_class(tokenizer, table, max_change_share=1.0)
    result = attack(make_batch(["big car on road"]), toy.objective)
    assert result.batch["text"] == ["red large auto on street"]


@greedy_attacks
def test_only_synonyms_spare_stop_words_and_must_be_known_to_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, linear_words: Any, attack_class: Any
) -> None:
    table = SynonymTable({"the": [("red", 0.9)], "shirt": [("shrit", 0.9)]})
    toy = linear_words({"red": 1.0, "[UNK]": 1.0}, torch.ones(64))
    batch = make_batch(["the Shirt up"])
    attack = attack_class(tokenizer, table, max_change_share=1.0)
    assert attack(batch, toy.objective).batch["text"] == ["the Shirt up"]
    table.kind = "typos"
    attack = attack_class(tokenizer, table, max_change_share=1.0)
    assert attack(batch, toy.objective).batch["text"] == ["red shrit up"]  # in the casing of the source
    assert attack.threat_model.word_edits == "typos"
    assert attack.threat_model.min_cosine is None


@all_attacks
def test_substitutes_that_the_tokenizer_cannot_tell_from_the_word_are_not_tried(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any, attack_class: Any
) -> None:
    table = SynonymTable({"car": [("c\u00e1r", 0.9)], "road": [("r\u00f3ad", 0.9)]})  # it strips accents
    batch = make_batch(["a car on the road"])
    result = attack_class(tokenizer, table)(batch, joint_objective)
    assert result.batch["text"] == batch["text"]
    assert result.forwards == 1
    assert torch.equal(result.loss_after, result.loss_before)


@pytest.mark.parametrize(
    "attack_class", [GREEDY_ATTACKS["random order"], ExhaustiveWordSwap], ids=["random order", "exhaustive"]
)
def test_the_largest_loss_is_kept_and_what_is_not_a_number_never(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, attack_class: Any
) -> None:
    table = SynonymTable({"car": [("auto", 0.9), ("automobile", 0.8), ("street", 0.7), ("road", 0.6)]})
    attack = attack_class(tokenizer, table, max_change_share=1.0)
    nan = float("nan")
    for worth, best in [
        ({"auto": nan, "automobile": 2.0, "street": 5.0, "road": 1.0, "car": 0.0}, "street"),
        ({"auto": nan, "automobile": -1.0, "street": nan, "road": -2.0, "car": 0.0}, "car"),
        ({"auto": 1.0, "automobile": 2.0, "street": 5.0, "road": 1.0, "car": nan}, "car"),  # above what?
    ]:
        result = attack(
            make_batch(["a car"]),
            lambda batch, worth=worth: torch.tensor([worth[text.split()[1]] for text in batch["text"]]),
        )
        assert result.batch["text"] == [f"a {best}"]
        torch.testing.assert_close(result.loss_after, torch.tensor([worth[best]]), equal_nan=True)


@greedy_attacks
def test_thresholds_of_candidates(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    linear_words: Any,
    attack_class: Any,
) -> None:
    toy = linear_words({"huge": 2.0, "large": 1.0}, torch.ones(64))
    batch = make_batch(["big road"])
    for options, expected in [
        ({}, "huge road"),
        ({"max_candidates": 1}, "large road"),
        ({"min_cosine": 0.8}, "large road"),
        ({"min_cosine": 0.95}, "big road"),
    ]:
        attack = attack_class(tokenizer, synonyms, **options)
        assert attack(batch, toy.objective).batch["text"] == [expected]


@all_attacks
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_batch_order_padding_and_chunks_do_not_matter(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    row_counter: Any,
    attack_class: Any,
    chunk: int,
) -> None:
    attack = attack_class(tokenizer, synonyms, candidate_batch_size=chunk)
    batch = make_batch(texts)
    counter = row_counter(joint_objective)
    together = attack(batch, counter.objective)
    assert (together.forwards, together.backwards) == (counter.forwards, counter.backwards)
    again = attack(batch, joint_objective)
    assert together.batch["text"] == again.batch["text"]
    assert together.batch["text"] != texts
    order = list(reversed(range(len(texts))))
    turned_batch = {name: values[order] for name, values in batch.items() if name != "text"}
    turned = attack({**turned_batch, "text": texts[::-1]}, joint_objective)
    assert turned.batch["text"][::-1] == together.batch["text"]
    work = [0, 0]
    for row, text in enumerate(texts):
        single = {**make_batch([text]), "pixel_values": batch["pixel_values"][row : row + 1]}
        alone = attack(single, joint_objective)
        assert alone.batch["text"] == [together.batch["text"][row]]
        torch.testing.assert_close(alone.loss_after[0], together.loss_after[row])
        work = [work[0] + alone.forwards, work[1] + alone.backwards]
    assert work == [together.forwards, together.backwards]


@all_attacks
def test_nothing_of_the_callers_changes(
    encoder: nn.Module,
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    encoder.train()
    encoder.norm.eval()
    encoder.mix.weight.grad = torch.ones(6, 6)
    batch = make_batch(texts)
    before = list(texts)
    kept = {
        name: value.clone() for name, value in {**batch, **encoder.state_dict()}.items() if name != "text"
    }
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)

    attack = attack_class(tokenizer, synonyms)
    attack(batch, joint_objective)  # dropout draws random numbers in here
    with frozen(encoder):
        attack(batch, joint_objective)

    assert torch.equal(torch.rand(3), expected_draw)
    assert batch["text"] is texts
    assert texts == before
    for name, value in {**batch, **encoder.state_dict()}.items():
        assert name == "text" or torch.equal(value, kept[name]), name
    assert torch.equal(encoder.mix.weight.grad, torch.ones(6, 6))
    assert encoder.words.weight.grad is None
    assert encoder.training
    assert not encoder.norm.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@gradient_attacks
def test_works_where_the_caller_disabled_gradients(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    with torch.no_grad():
        result = attack_class(tokenizer, synonyms)(make_batch(texts), joint_objective)
    assert result.backwards > 0
    assert not result.loss_after.requires_grad


@greedy_attacks
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_candidates": 0}, "max_candidates is 0"),
        ({"candidate_batch_size": 0}, "candidate_batch_size is 0"),
        ({"max_change_share": 20}, r"max_change_share is 20; expected a share of the words, in \[0, 1\]"),
        ({"max_change_share": None}, "needs max_change_share, a share of words in .* or max_changed_words"),
        ({"max_changed_words": -1}, "max_changed_words is -1; expected a number of words >= 0"),
        ({"min_cosine": 50}, "min_cosine is 50; expected a cosine"),
    ],
)
def test_bad_options_are_refused(
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    attack_class: Any,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        attack_class(tokenizer, synonyms, **options)


@gradient_attacks
def test_bad_input_is_refused(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    attack_class: Any,
) -> None:
    attack = attack_class(tokenizer, synonyms)
    batch = make_batch(["a big road", "small car"])
    with pytest.raises(TypeError, match=f"{attack_class.__name__} needs a JointObjective, got function"):
        attack(batch, lambda batch: torch.zeros(2))
    with pytest.raises(ValueError, match="needs text, attention_mask in the batch, which has"):
        attack({"input_ids": batch["input_ids"]}, joint_objective)
    with pytest.raises(ValueError, match=r"input_ids of row 1 are not the encoding of its text 'small road'"):
        attack({**batch, "text": ["a big road", "small road"]}, joint_objective)
    embed, words = joint_objective.embed, joint_objective.word_embeddings
    mean = JointObjective(embed, lambda embedding, batch: embedding.mean(), words)
    with pytest.raises(ValueError, match=r"one loss per example, shape \(2,\), but returned shape \(\)"):
        attack(batch, mean)
    cut = JointObjective(lambda batch: embed(batch).detach(), joint_objective.loss, words)
    with pytest.raises(ValueError, match="does not depend on inputs_embeds through gradients"):
        attack(batch, cut)
