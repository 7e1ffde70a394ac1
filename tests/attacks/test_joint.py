from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import AttackResult, JointObjective, frozen
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.joint import AlternatingAttack, CoAttack, IndependentAttack, SetGuidedAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack

FOLLOWING: dict[str, Callable[..., Any]] = {
    "co": CoAttack,
    "alternating": AlternatingAttack,
    "set-guided": SetGuidedAttack,
}
following_attacks = pytest.mark.parametrize("attack_class", FOLLOWING.values(), ids=FOLLOWING)


class FixedAttack:
    """Changes every example in one way, whatever the objective says, and keeps what it was given."""

    def __init__(self, threat_model: ThreatModel, change: Callable[[Any], dict[str, Any]]) -> None:
        self.threat_model = threat_model
        self.change = change
        self.seen: list[Any] = []

    def __call__(self, batch: Any, objective: Any) -> AttackResult:
        self.seen.append(batch)
        attacked = {**batch, **self.change(batch)}
        return AttackResult(attacked, objective(batch), objective(attacked), forwards=7, backwards=3)


@pytest.fixture
def fixed_attacks(make_batch: Any) -> tuple[FixedAttack, FixedAttack]:
    """Images become a quarter brighter, texts become "a huge huge car"."""

    def swap(batch: Any) -> dict[str, Any]:
        changed = make_batch(["a huge huge car"] * len(batch["text"]))
        return {name: changed[name] for name in ("text", "input_ids", "attention_mask", "token_type_ids")}

    image = FixedAttack(
        ThreatModel("image", "linf", 0.25), lambda batch: {"pixel_values": batch["pixel_values"] + 0.25}
    )
    text = FixedAttack(ThreatModel("text", max_change_share=1.0, word_edits="synonyms"), swap)
    return image, text


def table_objective(clean: Any, worth: Tensor) -> Callable[[Any], Tensor]:
    """`worth[row, image attacked, text attacked]` of each example."""

    def objective(batch: Any) -> Tensor:
        image = (batch["pixel_values"] - clean["pixel_values"]).flatten(1).abs().amax(dim=1) > 0.1
        text = [new != old for new, old in zip(batch["text"], clean["text"], strict=True)]
        return worth[torch.arange(len(worth)), image.long(), torch.tensor(text).long()]

    return objective


@following_attacks
def test_every_example_gets_its_best_state(
    fixed_attacks: Any, tokenizer: PreTrainedTokenizerFast, make_batch: Any, attack_class: Any
) -> None:
    nan = float("nan")
    # Rows: [[clean, text attacked], [image attacked, both attacked]]; the best is named in the comment.
    worth = torch.tensor(
        [
            [[1.0, 0.0], [0.0, 0.0]],  # clean
            [[0.0, 5.0], [1.0, 2.0]],  # text
            [[0.0, 1.0], [5.0, 2.0]],  # image
            [[0.0, 1.0], [2.0, 5.0]],  # both
            [[0.0, 1.0], [2.0, nan]],  # image: what is not a number is never better
            [[3.0, 3.0], [3.0, 3.0]],  # clean: nothing is changed for nothing
        ]
    )
    texts = ["a big car on the road", "a big car", "a car on the road, a car", "a big car", "road", "a car"]
    batch = make_batch(texts)
    batch["pixel_values"] = batch["pixel_values"] * 0.5
    before = {name: value.clone() for name, value in batch.items() if name != "text"}
    attack = attack_class(*fixed_attacks)
    result = attack(batch, table_objective(batch, worth))

    huge = "a huge huge car"
    assert result.batch["text"] == [texts[0], huge, texts[2], huge, texts[4], texts[5]]
    moved = (result.batch["pixel_values"] - batch["pixel_values"]).flatten(1).amax(dim=1)
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, 0.25, 0.25, 0.25, 0.0]))
    assert result.loss_before.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 3.0]
    assert result.loss_after.tolist() == [1.0, 5.0, 5.0, 5.0, 2.0, 3.0]
    expected = tokenizer(result.batch["text"], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(result.batch[name], expected[name])
        assert torch.equal(batch[name], before[name])
    assert torch.equal(batch["pixel_values"], before["pixel_values"])
    assert set(result.batch) == set(batch)


@pytest.mark.parametrize("longer", ["a car", "a big car on the road"])
@pytest.mark.parametrize("pad", [0, 3])
def test_texts_of_different_lengths_are_padded_as_the_tokenizer_pads(
    fixed_attacks: Any, make_batch: Any, longer: str, pad: int
) -> None:
    batch = make_batch(["car", longer])
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)
    worth = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])  # image, text
    batch["pixel_values"] *= 0.5
    result = CoAttack(*fixed_attacks)(batch, table_objective(batch, worth))
    assert result.batch["text"] == ["car", "a huge huge car"]
    # Six tokens: more than "a car" has, and fewer than the other one, which is gone.
    assert result.batch["input_ids"].shape == (2, 6)
    assert result.batch["input_ids"][0].tolist() == [*batch["input_ids"][0, :3].tolist(), pad, pad, pad]
    assert result.batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("make_attack", "image_calls", "text_calls"),
    [
        (CoAttack, 2, 1),
        (AlternatingAttack, 3, 3),
        (lambda *parts: AlternatingAttack(*parts, rounds=4), 5, 5),
        (SetGuidedAttack, 1 + 2 * 5, 2),
        (lambda *parts: SetGuidedAttack(*parts, scales=(2.0,)), 1 + 2 * 2, 2),
    ],
    ids=["co", "alternating", "four rounds", "set-guided", "one scale"],
)
def test_work_is_what_the_formula_says(
    fixed_attacks: Any,
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
    row_counter: Any,
    make_attack: Any,
    image_calls: int,
    text_calls: int,
) -> None:
    batch = make_batch(["a big car on the road", "a happy person"])
    result = make_attack(*fixed_attacks)(batch, joint_objective)
    assert result.forwards == 7 * (image_calls + text_calls)
    assert result.backwards == 3 * (image_calls + text_calls)
    counter = row_counter(joint_objective)
    result = make_attack(PGD(0.1, 0.05, 2), GeometryAttack(tokenizer, synonyms))(batch, counter.objective)
    assert (result.forwards, result.backwards) == (counter.forwards, counter.backwards)
    assert result.backwards > image_calls * 2 * 2


@following_attacks
def test_never_weaker_than_the_parts_and_within_both_threat_models(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    batch = make_batch(texts)

    def parts() -> tuple[Any, Any]:  # fresh generators
        image = PGD(0.1, 0.05, 3, random_start=True)
        return image, GeometryAttack(tokenizer, synonyms, max_change_share=0.3)

    image_attack, text_attack = parts()
    image, text = image_attack(batch, joint_objective), text_attack(batch, joint_objective)
    attack = attack_class(*parts())
    result = attack(batch, joint_objective)

    assert (result.loss_after >= image.loss_after).all()
    assert (result.loss_after >= text.loss_after).all()
    assert (result.loss_after > torch.maximum(image.loss_after, text.loss_after)).sum() >= 3
    torch.testing.assert_close(result.loss_before, joint_objective(batch))
    torch.testing.assert_close(result.loss_after, joint_objective(result.batch).detach())
    change = (result.batch["pixel_values"].double() - batch["pixel_values"].double()).abs() * 0.5
    assert 0 < change.max() <= 0.1
    assert attack.threat_model == image_attack.threat_model.combined_with(text_attack.threat_model)
    for old, new in zip(texts, result.batch["text"], strict=True):
        pairs = list(zip(old.split(), new.split(), strict=True))
        assert sum(a != b for a, b in pairs) <= attack.threat_model.word_budget(old)
    expected = tokenizer(result.batch["text"], padding=True, return_tensors="pt")
    assert torch.equal(result.batch["input_ids"], expected["input_ids"])
    again = attack_class(*parts())(batch, joint_objective)
    assert again.batch["text"] == result.batch["text"]
    assert torch.equal(again.batch["pixel_values"], result.batch["pixel_values"])


@following_attacks
def test_examples_do_not_depend_on_their_neighbours(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    batch = make_batch(texts)
    attack = attack_class(PGD(0.1, 0.05, 3), WordSwapAttack(tokenizer, synonyms, max_change_share=0.5))
    together = attack(batch, joint_objective)
    work = [0, 0]
    for row, text in enumerate(texts):
        single = {**make_batch([text]), "pixel_values": batch["pixel_values"][row : row + 1]}
        alone = attack(single, joint_objective)
        assert alone.batch["text"] == [together.batch["text"][row]]
        torch.testing.assert_close(alone.loss_after[0], together.loss_after[row])
        torch.testing.assert_close(alone.batch["pixel_values"][0], together.batch["pixel_values"][row])
        work = [work[0] + alone.forwards, work[1] + alone.backwards]
    assert work == [together.forwards, together.backwards]


@following_attacks
def test_nothing_of_the_callers_changes(
    encoder: nn.Module,
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    encoder.mix.weight.grad = torch.ones(6, 6)
    batch = make_batch(texts)
    kept = {
        name: value.clone() for name, value in {**batch, **encoder.state_dict()}.items() if name != "text"
    }
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    attack = attack_class(PGD(0.1, 0.05, 2, random_start=True), GeometryAttack(tokenizer, synonyms))
    with frozen(encoder), torch.no_grad():
        result = attack(batch, joint_objective)
    assert torch.equal(torch.rand(3), expected_draw)
    assert batch["text"] is texts
    for name, value in {**batch, **encoder.state_dict()}.items():
        assert name == "text" or torch.equal(value, kept[name]), name
    assert torch.equal(encoder.mix.weight.grad, torch.ones(6, 6))
    assert not result.loss_after.requires_grad
    assert not result.batch["pixel_values"].requires_grad


def test_independent_attack_combines_the_halves(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    row_counter: Any,
) -> None:
    batch = make_batch(texts)
    image_attack, text_attack = PGD(0.1, 0.05, 3), GeometryAttack(tokenizer, synonyms)
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
    assert model.synonyms == synonyms.digest


@following_attacks
def test_following_the_pair_beats_combining_the_halves(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any, attack_class: Any
) -> None:
    """Loss `w u` of a sign w that the text sets and the images' mean u: closed form."""
    signs = {"car": 1.0, "auto": -1.0}
    table = SynonymTable({"car": [("auto", 0.9)]})

    def objective(batch: Any) -> Tensor:
        sign = torch.tensor([signs[text.split()[1]] for text in batch["text"]])
        return sign * batch["pixel_values"].flatten(1).mean(dim=1)

    batch = make_batch(["a car", "a car", "a auto"])
    batch["pixel_values"] = torch.tensor([-0.5, 0.5, 0.5]).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    parts = PGD(0.1, 0.05, 8), ExhaustiveWordSwap(tokenizer, table)
    move = 2 * 0.1  # epsilon in normalised pixels, whose standard deviation is 1/2
    independent = IndependentAttack(*parts)(batch, objective)
    # Row 0: the image alone moves up, which the changed sign then punishes.
    torch.testing.assert_close(independent.loss_after, torch.tensor([0.5 - move, 0.5 + move, -0.5 + move]))
    result = attack_class(*parts)(batch, objective)
    torch.testing.assert_close(result.loss_before, torch.tensor([-0.5, 0.5, -0.5]))
    guided = attack_class is SetGuidedAttack
    # Of the two texts of row 0 the mean over the set is zero, and so is its gradient: the guided image stays.
    best = [0.5 if guided else 0.5 + move, 0.5 + move, -0.5 + move]
    torch.testing.assert_close(result.loss_after, torch.tensor(best))
    assert result.batch["text"] == ["a auto", "a car", "a auto"]


def test_turns_climb_to_where_a_single_pass_does_not(
    tokenizer: PreTrainedTokenizerFast, make_batch: Any
) -> None:
    # payoff[text][image]; from the clean pair (0, 0) best answers climb 1, 2, 3, ... by turns.
    payoff = torch.tensor([[0.0, 0.5, 0.0], [1.0, 2.0, 0.0], [0.0, 3.0, 4.0], [0.0, 0.0, 5.0]])
    words = ["car", "auto", "road", "street"]
    table = SynonymTable({"car": [(word, 0.9) for word in words[1:]]})
    levels = torch.tensor([0.0, 0.2, 0.4])

    def objective(batch: Any) -> Tensor:
        image = (batch["pixel_values"][:, 0, 0, 0, None] - levels).abs().argmin(dim=1)
        return payoff[torch.tensor([words.index(text.split()[1]) for text in batch["text"]]), image]

    def answer(batch: Any, objective: Any) -> AttackResult:
        """The best of the three images, tried one by one."""
        assert (batch["pixel_values"] == 0).all()  # every turn starts from the clean image
        tried = [{**batch, "pixel_values": batch["pixel_values"] + level} for level in levels]
        losses = [objective(other) for other in tried]
        best = int(torch.stack(losses).squeeze(1).argmax())
        return AttackResult(tried[best], losses[0], losses[best], forwards=3, backwards=0)

    answer.threat_model = ThreatModel("image", "linf", 0.2)  # type: ignore[attr-defined]
    batch = {**make_batch(["a car"]), "pixel_values": torch.zeros(1, 3, 4, 4)}
    parts: Any = (answer, ExhaustiveWordSwap(tokenizer, table))
    assert CoAttack(*parts)(batch, objective).loss_after.item() == 2.0
    for rounds, expected in [(1, 3.0), (2, 5.0), (3, 5.0)]:
        result = AlternatingAttack(*parts, rounds=rounds)(batch, objective)
        assert result.loss_after.item() == expected
    assert result.batch["text"] == ["a street"]
    torch.testing.assert_close(result.batch["pixel_values"], torch.full((1, 3, 4, 4), 0.4))
    assert IndependentAttack(*parts)(batch, objective).loss_after.item() == 2.0


def test_alternating_is_never_weaker_than_co_attack_nor_than_fewer_rounds(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
) -> None:
    parts = PGD(0.1, 0.05, 3), GeometryAttack(tokenizer, synonyms, max_change_share=0.5)
    batch = make_batch(texts)
    losses = [CoAttack(*parts)(batch, joint_objective).loss_after]
    losses += [AlternatingAttack(*parts, rounds)(batch, joint_objective).loss_after for rounds in (1, 2)]
    assert (losses[0] <= losses[1]).all()
    assert (losses[1] <= losses[2]).all()


def guided_objective(fixed_attacks: Any, batch: Any, objective: Any, scales: Any) -> tuple[Any, Any, Any]:
    """What the set-guided attack gives its image attack at the second call: batch and objective; and the
    batches that its text attack was given."""
    image, text = fixed_attacks
    given = []

    def spy(batch: Any, objective: Any) -> AttackResult:
        given.append((batch, objective))
        return image(batch, objective)

    spy.threat_model = image.threat_model  # type: ignore[attr-defined]
    SetGuidedAttack(spy, text, scales)(batch, objective)
    assert len(given) == 2
    return *given[1], text.seen


def test_the_guided_image_faces_both_texts_and_every_scale(fixed_attacks: Any, make_batch: Any) -> None:
    # A checkerboard of single pixels is flat at half the size; from 1 x 1 every image comes back as its mean.
    board = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).float() * 2 - 1

    def objective(batch: Any) -> Tensor:
        lengths = torch.tensor([float(len(text)) for text in batch["text"]])
        pixels = batch["pixel_values"]
        return lengths * (pixels * board).mean(dim=(1, 2, 3)) + pixels.mean(dim=(1, 2, 3))

    batch = {**make_batch(["a car", "car"]), "pixel_values": 0.5 * board.expand(2, 3, 4, 4).clone() + 0.1}
    given, mean, _ = guided_objective(fixed_attacks, batch, objective, (0.5, 0.25))
    assert torch.equal(given["pixel_values"], batch["pixel_values"])  # around the clean image
    attacked = len("a huge huge car")
    contrast = torch.tensor([5.0 + attacked, 3.0 + attacked]) * 0.5
    # Full size sees the board, the two smaller sizes only the mean of 0.1; two texts and three sizes.
    torch.testing.assert_close(mean(given), contrast / 6 + 0.1)
    # Some rows only, as an attack that drops finished examples asks.
    some = {name: values[1:] for name, values in given.items()}
    torch.testing.assert_close(mean(some), contrast[1:] / 6 + 0.1)
    # The objective is linear in the pixels, so its gradient tells its changes exactly.
    pixels = given["pixel_values"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean({**given, "pixel_values": pixels}).sum(), pixels)
    move = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    moved = mean({**given, "pixel_values": given["pixel_values"] + move})
    torch.testing.assert_close((gradient * move).sum(dim=(1, 2, 3)), moved - mean(given))
    assert (gradient != 0).all()


def test_resizing_agrees_with_averaging_blocks(fixed_attacks: Any, make_batch: Any) -> None:
    seen: list[Tensor] = []

    def objective(batch: Any) -> Tensor:
        seen.append(batch["pixel_values"])
        return batch["pixel_values"].flatten(1).sum(dim=1)

    batch = make_batch(["a car", "car"])
    batch["pixel_values"] = torch.rand(2, 2, 3, 4, 4)  # two images per example
    batch["pixel_mask"] = torch.ones(2, 2, 4, 4, dtype=torch.long)
    batch["pixel_mask"][1, 0, :, 2:] = 0
    given, mean, _ = guided_objective(fixed_attacks, batch, objective, (0.25,))
    seen.clear()
    mean(given)
    assert len(seen) == 4
    assert torch.equal(seen[0], batch["pixel_values"])
    # A quarter of four pixels is one: bilinear interpolation at its centre, the mean of the inner four.
    middle = batch["pixel_values"][..., 1:3, 1:3].mean(dim=(-2, -1), keepdim=True)
    expected = middle.expand(2, 2, 3, 4, 4).clone()
    expected[1, 0, :, :, 2:] = batch["pixel_values"][1, 0, :, :, 2:]  # padding stays
    torch.testing.assert_close(seen[2], expected)
    assert seen[2].shape == seen[3].shape == batch["pixel_values"].shape


def test_the_second_text_attack_faces_the_attacked_image_and_starts_from_the_clean_text(
    fixed_attacks: Any, make_batch: Any
) -> None:
    batch = make_batch(["a car", "car"])
    objective = table_objective(batch, torch.zeros(2, 2, 2))
    _, _, seen = guided_objective(fixed_attacks, batch, objective, (0.5,))
    assert len(seen) == 2
    torch.testing.assert_close(seen[1]["pixel_values"], batch["pixel_values"] + 0.25)
    assert seen[1]["text"] == batch["text"]
    assert set(seen[1]) == set(batch)


def test_bad_options_are_refused(fixed_attacks: Any) -> None:
    image, text = fixed_attacks
    with pytest.raises(
        ValueError, match="image_attack is a FixedAttack on text; expected an attack on image"
    ):
        CoAttack(text, image)
    with pytest.raises(ValueError, match="text_attack is a FixedAttack on image; expected an attack on text"):
        IndependentAttack(image, image)
    for compared in (CoAttack, AlternatingAttack, SetGuidedAttack):
        with pytest.raises(
            ValueError, match=f"{compared.__name__} keeps the pair of largest objective.*'last'"
        ):
            compared(PGD(0.1, 0.1, 1, keep="last"), text)
    with pytest.raises(ValueError, match="rounds is 0; expected at least 1"):
        AlternatingAttack(image, text, rounds=0)
    for scales in ((0.5, 0.0), (-1.0,), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match=r"scales are \(.*\); expected positive factors on height and"):
            SetGuidedAttack(image, text, scales)
