import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective, frozen
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.joint import IndependentAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable

SYNONYMS = SynonymTable(
    {
        "big": [("large", 0.9), ("huge", 0.7)],
        "small": [("little", 0.9), ("tiny", 0.6)],
        "car": [("automobile", 0.9), ("auto", 0.8)],
        "road": [("street", 0.7)],
        "person": [("individual", 0.7)],
        "picture": [("image", 0.9), ("photo", 0.8)],
        "happy": [("glad", 0.8), ("merry", 0.6)],
        "the": [("a", 0.9)],
        "shirt": [("unspellable", 0.9)],
        "smile": [("grin", 0.8), ("beam", 0.7)],
    }
)
TEXTS = [
    "A big car on the road.",
    "a happy person",
    "the picture of a small car, the big road and a happy person",
    "a road",
    "",
    "the Picture of the BIG road",
    "tiny",
]


class LinearWords:
    """Joint embedding `sum_i a_i E[token_i]` and loss `c . q`: every word contributes on its own.

    The norm of the gradient at place i is `|a_i| |c|`: `places` sets the order in which words are attacked,
    and `values` (one number per token) sets what each word adds to the loss.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, values: dict[str, float], places: Tensor) -> None:
        self.words = nn.Embedding(len(tokenizer), 2)
        nn.init.zeros_(self.words.weight)
        for token, value in values.items():
            self.words.weight.data[tokenizer.convert_tokens_to_ids(token), 0] = value
        self.places = places
        self.tokenizer = tokenizer
        self.objective = JointObjective(self.embed, self.loss, self.words)

    def embed(self, batch: dict[str, Any]) -> Tensor:
        words = batch["inputs_embeds"] if "inputs_embeds" in batch else self.words(batch["input_ids"])
        weights = self.places[: words.shape[1]] * batch["attention_mask"]
        return (words * weights.unsqueeze(-1)).sum(dim=1)

    @staticmethod
    def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return embedding @ torch.tensor([2.0, 0.0])

    def loss_of_texts(self, texts: list[str]) -> Tensor:
        encoding = self.tokenizer(texts, padding=True, return_tensors="pt")
        return self.objective(dict(encoding)).detach()


@pytest.fixture
def linear_words(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LinearWords]:
    def make(seed: int = 0, places: Tensor | None = None) -> LinearWords:
        generator = torch.Generator().manual_seed(seed)
        vocabulary = [token for token in tokenizer.get_vocab() if not token.startswith("[")]
        values = torch.randn(len(vocabulary), generator=generator).tolist()
        places = torch.rand(64, generator=generator) + 0.5 if places is None else places
        return LinearWords(tokenizer, dict(zip(sorted(vocabulary), values, strict=True)), places)

    return make


def words_of(text: str) -> list[str]:
    return text.replace(",", " ,").replace(".", " .").split()


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    pairs = list(zip(words_of(before), words_of(after), strict=True))
    return [(old, new) for old, new in pairs if old != new]


def every_exchange(text: str) -> list[str]:
    """All texts that exchanging any of the words for any of their substitutes gives."""
    options = []
    for word in text.split(" "):
        core = word.strip(".,")
        others = [] if core == "the" else [other for other, _ in SYNONYMS.candidates(core)]
        options.append([word, *(word.replace(core, other) for other in others)])
    return [" ".join(words) for words in itertools.product(*options)]


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_exchanges(
    linear_words: Callable[..., LinearWords], tokenizer: PreTrainedTokenizerFast, make_batch: Any, seed: int
) -> None:
    toy = linear_words(seed)
    texts = [text.lower() for text in TEXTS if "," not in text]
    attack = GeometryAttack(tokenizer, SYNONYMS, max_change_share=1.0)

    result = attack(make_batch(texts), toy.objective)

    for row, text in enumerate(texts):
        variants = every_exchange(text)
        losses = toy.loss_of_texts(variants)
        assert result.batch["text"][row] == variants[int(losses.argmax())]
        assert result.loss_after[row] == pytest.approx(losses.max().item(), abs=1e-5)
        assert result.loss_before[row] == pytest.approx(losses[0].item(), abs=1e-5)
    assert (result.loss_after > result.loss_before).any()


def test_one_change_goes_to_the_most_influential_word_and_its_best_substitute(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    # "car" sits where the gradient is largest; changing "big" would gain more, but is not looked at first.
    values = {"big": 0.0, "large": 9.0, "huge": 8.0, "car": 1.0, "automobile": -7.0, "auto": 1.5}
    places = torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0])  # [CLS] a big car [SEP]
    toy = LinearWords(tokenizer, values, places)
    once = GeometryAttack(tokenizer, SYNONYMS)(make_batch(["a big car"]), toy.objective)
    assert once.batch["text"] == ["a big auto"]  # a projection of -8 is longer, but points the wrong way
    twice = GeometryAttack(tokenizer, SYNONYMS, max_change_share=1.0)(
        make_batch(["a big car"]), toy.objective
    )
    assert twice.batch["text"] == ["a large auto"]


def test_a_word_that_cannot_raise_the_loss_is_left_and_the_next_one_tried(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    values = {"car": 1.0, "automobile": 0.0, "auto": 0.5, "huge": 1.0}
    toy = LinearWords(tokenizer, values, torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    result = GeometryAttack(tokenizer, SYNONYMS)(make_batch(["a big car"]), toy.objective)
    assert result.batch["text"] == ["a huge car"]
    # The gradients of the two pieces of "smilehill" cancel: "car" comes first, though each piece has more.
    assert (result.forwards, result.backwards) == (1 + 2 + 2, 1)
    one_loop = GeometryAttack(tokenizer, SYNONYMS, max_loops=1)(make_batch(["a big car"]), toy.objective)
    assert one_loop.batch["text"] == ["a big car"]
    assert torch.equal(one_loop.loss_after, one_loop.loss_before)


def test_pieces_of_a_word_are_averaged(tokenizer: PreTrainedTokenizerFast, make_batch: Any) -> None:
    # "smilehill" is two pieces whose gradients cancel: "car" comes first although each piece's is larger.
    table = SynonymTable({"smilehill": [("grin", 0.9)], "car": [("auto", 0.9)]})
    toy = LinearWords(tokenizer, {"grin": 5.0, "auto": 1.0}, torch.tensor([1.0, 3.0, -3.0, 1.0, 1.0]))
    batch = make_batch(["smilehill car"])
    assert batch["input_ids"].shape == (1, 5)
    result = GeometryAttack(tokenizer, table)(batch, toy.objective)
    assert result.batch["text"] == ["smilehill auto"]


@pytest.mark.parametrize(("share", "changes"), [(0.0, 0), (0.1, 1), (0.25, 3), (0.5, 6), (1.0, 7)])
def test_budget_of_changes(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, share: float, changes: int
) -> None:
    # Every substitute raises the loss, so only the budget stops the attack: 13 words, 7 with substitutes.
    values = dict.fromkeys(
        ["large", "huge", "little", "tiny", "automobile", "street", "individual", "image", "glad"], 1.0
    )
    toy = LinearWords(tokenizer, values, torch.ones(64))
    text = TEXTS[2]
    result = GeometryAttack(tokenizer, SYNONYMS, max_change_share=share)(make_batch([text]), toy.objective)
    assert len(changed_words(text, result.batch["text"][0])) == changes


def test_a_short_text_may_change_one_word_if_another_one_remains(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    toy = LinearWords(tokenizer, {"auto": 1.0, "huge": 1.0}, torch.ones(64))
    texts = ["big car", "the car", "car", "car on the on the"]
    result = GeometryAttack(tokenizer, SYNONYMS)(make_batch(texts), toy.objective)
    assert result.batch["text"] == ["huge car", "the car", "car", "auto on the on the"]


def test_strings_keep_their_rest_and_agree_with_their_ids(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    batch = make_batch(TEXTS)
    result = GeometryAttack(tokenizer, SYNONYMS, max_change_share=0.5)(batch, joint_objective)
    changes = [changed_words(*pair) for pair in zip(TEXTS, result.batch["text"], strict=True)]
    assert sum(map(len, changes)) >= 6
    for old, new in itertools.chain(*changes):
        assert new.lower() in dict(SYNONYMS.candidates(old))
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


def test_only_whole_visible_words_are_exchanged(tokenizer: PreTrainedTokenizerFast, make_batch: Any) -> None:
    everything = dict.fromkeys(["large", "auto", "street", "glad", "##hill", "grin", "beam", "[UNK]"], 1.0)
    toy = LinearWords(tokenizer, everything, torch.ones(64))
    attack = GeometryAttack(tokenizer, SYNONYMS, max_change_share=1.0, max_length=6)
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
    attack = GeometryAttack(tokenizer, longer, max_change_share=1.0, max_length=6)
    result = attack(make_batch(["a car on road"], max_length=6), toy.objective)
    assert result.batch["text"] == ["a auto on road"]
    longer = SynonymTable({"smile": [("grin", 0.9)]})
    attack = GeometryAttack(tokenizer, longer, max_change_share=1.0, max_length=5)
    result = attack(make_batch(["on a smilehill"], max_length=5), toy.objective)
    assert result.batch["text"] == ["on a smilehill"]  # what is seen of the word is "smile"


def test_thresholds_of_candidates(tokenizer: PreTrainedTokenizerFast, make_batch: Any) -> None:
    toy = LinearWords(tokenizer, {"huge": 2.0, "large": 1.0}, torch.ones(64))
    batch = make_batch(["big road"])
    for options, expected in [
        ({}, "huge road"),
        ({"max_candidates": 1}, "large road"),
        ({"min_cosine": 0.8}, "large road"),
        ({"min_cosine": 0.95}, "big road"),
    ]:
        assert GeometryAttack(tokenizer, SYNONYMS, **options)(batch, toy.objective).batch["text"] == [
            expected
        ]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_batch_order_padding_and_chunks_do_not_matter(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any, chunk: int
) -> None:
    attack = GeometryAttack(tokenizer, SYNONYMS, max_change_share=0.5, candidate_batch_size=chunk)
    batch = make_batch(TEXTS)
    together = attack(batch, joint_objective)
    again = attack(batch, joint_objective)
    assert together.batch["text"] == again.batch["text"]
    assert together.batch["text"] != TEXTS
    order = list(reversed(range(len(TEXTS))))
    turned_batch = {name: values[order] for name, values in batch.items() if name != "text"}
    turned = attack({**turned_batch, "text": TEXTS[::-1]}, joint_objective)
    assert turned.batch["text"][::-1] == together.batch["text"]
    work = [0, 0]
    for row, text in enumerate(TEXTS):
        single = {**make_batch([text]), "pixel_values": batch["pixel_values"][row : row + 1]}
        alone = attack(single, joint_objective)
        assert alone.batch["text"] == [together.batch["text"][row]]
        torch.testing.assert_close(alone.loss_after[0], together.loss_after[row])
        work = [work[0] + alone.forwards, work[1] + alone.backwards]
    assert work == [together.forwards, together.backwards]


def test_work_is_what_the_formula_says(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any, row_counter: Any
) -> None:
    for options in ({}, {"max_change_share": 0.5}, {"max_change_share": 1.0, "max_loops": 2}):
        counter = row_counter(joint_objective)
        result = GeometryAttack(tokenizer, SYNONYMS, **options)(make_batch(TEXTS), counter.objective)
        assert (result.forwards, result.backwards) == (counter.forwards, counter.backwards)

    # All substitutes raise the loss; "a big car on the road." has 2 + 2 + 1 of them, in whatever order.
    everything = dict.fromkeys(["large", "huge", "automobile", "auto", "street"], 1.0)
    toy = LinearWords(tokenizer, everything, torch.ones(64))
    for share, loops, candidates, accepted, gradients in [
        (1.0, 10, 5, 3, 3),  # no word is left after the third change: no fourth gradient
        (0.34, 10, 4, 2, 2),  # int(0.34 * 6) = 2 changes, then the budget is spent
        (1.0, 1, 2, 1, 1),
        (0.0, 10, 0, 0, 0),
    ]:
        counter = row_counter(toy.objective)
        attack = GeometryAttack(tokenizer, SYNONYMS, max_change_share=share, max_loops=loops)
        result = attack(make_batch([TEXTS[0]]), counter.objective)
        assert len(changed_words(TEXTS[0], result.batch["text"][0])) == accepted
        assert counter.forwards == max(gradients, 1) + candidates
        assert counter.backwards == gradients


def test_nothing_of_the_callers_changes(
    encoder: nn.Module, joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    encoder.train()
    encoder.norm.eval()
    encoder.mix.weight.grad = torch.ones(6, 6)
    batch = make_batch(TEXTS)
    kept = {
        name: value.clone() for name, value in {**batch, **encoder.state_dict()}.items() if name != "text"
    }
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)

    attack = GeometryAttack(tokenizer, SYNONYMS)
    attack(batch, joint_objective)  # dropout draws random numbers in here
    with frozen(encoder):
        attack(batch, joint_objective)

    assert torch.equal(torch.rand(3), expected_draw)
    assert batch["text"] is TEXTS
    for name, value in {**batch, **encoder.state_dict()}.items():
        assert name == "text" or torch.equal(value, kept[name]), name
    assert torch.equal(encoder.mix.weight.grad, torch.ones(6, 6))
    assert encoder.words.weight.grad is None
    assert encoder.training
    assert not encoder.norm.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_works_where_the_caller_disabled_gradients(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    with torch.no_grad():
        result = GeometryAttack(tokenizer, SYNONYMS)(make_batch(TEXTS), joint_objective)
    assert result.backwards > 0
    assert not result.loss_after.requires_grad


def test_independent_attack_combines_the_halves(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any, row_counter: Any
) -> None:
    batch = make_batch(TEXTS)
    image_attack, text_attack = PGD(0.1, 0.05, 3), GeometryAttack(tokenizer, SYNONYMS)
    image, text = image_attack(batch, joint_objective), text_attack(batch, joint_objective)
    counter = row_counter(joint_objective)
    attack = IndependentAttack(image_attack, text_attack)

    both = attack(batch, counter.objective)

    assert torch.equal(both.batch["pixel_values"], image.batch["pixel_values"])
    assert both.batch["text"] == text.batch["text"]
    assert torch.equal(both.batch["input_ids"], text.batch["input_ids"])
    torch.testing.assert_close(both.loss_before, joint_objective(batch))
    torch.testing.assert_close(both.loss_after, joint_objective(both.batch))
    assert (both.forwards, both.backwards) == (counter.forwards, counter.backwards)
    model = attack.threat_model
    assert (model.modality, model.epsilon, model.max_change_share) == ("both", 0.1, 0.2)
    assert model.synonyms == SYNONYMS.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loops": 0}, "max_loops is 0; expected at least 1"),
        ({"max_candidates": 0}, "max_candidates is 0"),
        ({"candidate_batch_size": 0}, "candidate_batch_size is 0"),
        ({"max_change_share": 20}, r"max_change_share is 20; expected a share of the words, in \[0, 1\]"),
        ({"min_cosine": 50}, "min_cosine is 50; expected a cosine"),
    ],
)
def test_bad_options_are_refused(
    tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GeometryAttack(tokenizer, SYNONYMS, **options)


def test_bad_input_is_refused(
    joint_objective: JointObjective, tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    attack = GeometryAttack(tokenizer, SYNONYMS)
    batch = make_batch(["a big road", "small car"])
    with pytest.raises(TypeError, match="needs a JointObjective, got function"):
        attack(batch, lambda batch: torch.zeros(2))  # type: ignore[arg-type]
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
