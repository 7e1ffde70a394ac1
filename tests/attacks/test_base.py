"""What attacks on one batch share: a pass over the clean pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import CleanPass, JointObjective, model_inputs
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.joint import AlternatingAttack, CoAttack, SetGuidedAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.word_swap import WordSwapAttack


def with_clean_pass(objective: JointObjective, batch: dict[str, Any]) -> JointObjective:
    return replace(objective, clean=CleanPass(batch))


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.batch["text"] == theirs.batch["text"]
    torch.testing.assert_close(ours.batch["pixel_values"], theirs.batch["pixel_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss_before, theirs.loss_before)
    torch.testing.assert_close(ours.loss_after, theirs.loss_after)


@pytest.mark.parametrize("word_attack", [GeometryAttack, WordSwapAttack])
def test_one_clean_pass_serves_all_attacks_and_the_first_counts_it(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    row_counter: Any,
    word_attack: Any,
) -> None:
    batch = make_batch(texts)
    attacks = [PGD(0.1, 0.05, 3), word_attack(tokenizer, synonyms), PGD(0.1, 0.05, 1)]
    alone = [attack(batch, joint_objective) for attack in attacks]
    counter = row_counter(joint_objective)
    objective = with_clean_pass(counter.objective, batch)

    shared = [attack(batch, objective) for attack in attacks]

    for ours, theirs in zip(shared, alone, strict=True):
        assert_same(ours, theirs)
    assert counter.forwards == sum(result.forwards for result in shared)
    assert counter.backwards == sum(result.backwards for result in shared)
    rows = len(texts)
    spared = [ours.forwards - theirs.forwards for ours, theirs in zip(alone, shared, strict=True)]
    assert spared == [0, rows, rows]
    assert shared[0].backwards == 3 * rows
    assert 0 < alone[1].backwards - shared[1].backwards <= rows
    assert word_attack is GeometryAttack or shared[1].backwards == 0
    assert shared[2].backwards == 0


def test_gradients_are_those_of_each_pairs_own_loss(
    joint_objective: JointObjective, make_batch: Any, texts: list[str]
) -> None:
    batch = make_batch(texts)
    gradients = joint_objective.differentiate(batch, pixels=True)
    torch.testing.assert_close(gradients.loss, joint_objective(batch))
    torch.testing.assert_close(gradients.embedding, joint_objective.embed(batch))
    for row in range(len(texts)):
        own = {name: values[row : row + 1] for name, values in batch.items()}
        pixels = own["pixel_values"].clone().requires_grad_()
        words = joint_objective.word_embeddings(own.pop("input_ids")).detach().requires_grad_()
        embedding = joint_objective.embed({**own, "pixel_values": pixels, "inputs_embeds": words})
        loss = joint_objective.loss(embedding, own).sum()
        expected = torch.autograd.grad(loss, (embedding, words, pixels))
        found = (gradients.of_embedding, gradients.of_words, gradients.of_pixels)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is not None
            torch.testing.assert_close(ours[row : row + 1], theirs, atol=1e-6, rtol=1e-4)
    assert joint_objective.differentiate(batch).of_pixels is None


@pytest.mark.parametrize("attack_class", [CoAttack, AlternatingAttack, SetGuidedAttack])
def test_attacks_beside_an_attacked_modality_do_not_take_the_clean_pass(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
    attack_class: Any,
) -> None:
    batch = make_batch(texts)
    attack = attack_class(PGD(0.1, 0.05, 3), GeometryAttack(tokenizer, synonyms))
    alone, shared = attack(batch, joint_objective), attack(batch, with_clean_pass(joint_objective, batch))
    assert_same(shared, alone)
    assert shared.forwards == alone.forwards - len(texts)  # the text attack on the clean pairs


def test_equal_tensors_are_not_the_clean_pairs(
    joint_objective: JointObjective, make_batch: Any, texts: list[str]
) -> None:
    batch = make_batch(texts)
    clean = CleanPass(batch)
    assert clean.covers({**batch, "labels": torch.zeros(len(texts))})
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert not clean.covers({**batch, name: batch[name].clone()})
        assert not clean.covers({key: values for key, values in batch.items() if key != name})
    other = {**batch, "pixel_values": -batch["pixel_values"]}
    objective = with_clean_pass(joint_objective, batch)
    PGD(0.1, 0.05, 1)(batch, objective)
    assert_same(PGD(0.1, 0.05, 1)(other, objective), PGD(0.1, 0.05, 1)(other, joint_objective))


def test_padding_on_the_left_does_not_move_the_words(
    tokenizer: PreTrainedTokenizerFast, synonyms: SynonymTable, make_batch: Any, linear_words: Any
) -> None:
    """The word with the largest gradient stands second to last, wherever the padding is."""
    texts = ["a big car", "a big car on the road in a small street"]
    toy = linear_words(dict.fromkeys(["huge", "auto"], 1.0), torch.ones(64))

    def embed(batch: dict[str, Any]) -> Tensor:
        words = batch["inputs_embeds"] if "inputs_embeds" in batch else toy.words(batch["input_ids"])
        words = words + 0 * batch["pixel_values"].sum()
        fromend = batch["attention_mask"].flip(1).cumsum(dim=1).flip(1)  # 1 at the last token
        weights = batch["attention_mask"] * (1.0 + 4 * (fromend == 2))
        return (words * weights.unsqueeze(-1)).sum(dim=1)

    batch = make_batch(texts)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        padding = int((batch["attention_mask"][0] == 0).sum())
        batch[name] = torch.stack([batch[name][0].roll(padding), batch[name][1]])
    objective = with_clean_pass(JointObjective(embed, toy.loss, toy.words), batch)
    PGD(0.1, 0.05, 1)(batch, objective)
    attack = GeometryAttack(tokenizer, synonyms, max_change_share=None, max_changed_words=1, max_loops=1)
    assert attack(batch, objective).batch["text"][0] == "a big auto"


def test_a_clean_pass_without_gradients_is_refused(joint_objective: JointObjective, make_batch: Any) -> None:
    batch = make_batch(["a big car"])
    detached = replace(joint_objective, embed=lambda batch: joint_objective.embed(batch).detach())
    with pytest.raises(
        ValueError, match="depend on inputs_embeds and pixel_values through gradients; remove torch"
    ):
        PGD(0.1, 0.05, 1)(batch, with_clean_pass(detached, batch))


def test_images_are_embedded_once_for_all_texts(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    texts: list[str],
    make_batch: Any,
) -> None:
    batch, calls = make_batch(texts), []

    def embed_images(batch: dict[str, Any]) -> dict[str, Tensor]:
        calls.append(len(batch["pixel_values"]))
        return {"image_embeds": batch["pixel_values"]}

    def embed(batch: dict[str, Any]) -> Tensor:
        assert "pixel_values" not in batch
        return joint_objective.embed({**batch, "pixel_values": batch["image_embeds"]})

    attack = GeometryAttack(tokenizer, synonyms, max_change_share=1.0, candidate_batch_size=2)
    result = attack(batch, replace(joint_objective, embed=embed, embed_images=embed_images))
    assert calls == [len(texts)]
    assert_same(result, attack(batch, joint_objective))
    assert result.batch["pixel_values"] is batch["pixel_values"]
    assert "image_embeds" not in result.batch


def test_texts_of_like_length_share_a_chunk(
    joint_objective: JointObjective,
    tokenizer: PreTrainedTokenizerFast,
    synonyms: SynonymTable,
    make_batch: Any,
) -> None:
    widths = []

    def embed(batch: dict[str, Any]) -> Tensor:
        if "input_ids" in batch:
            widths.extend(batch["attention_mask"].sum(dim=1).tolist())
        return joint_objective.embed(batch)

    attack = GeometryAttack(tokenizer, synonyms, max_loops=1, candidate_batch_size=2)
    texts = [
        "a big car on the road in a picture",
        "a big car",
        "the big picture on the road in a car",
        "a small car",
    ]
    attack(make_batch(texts), replace(joint_objective, embed=embed))
    assert widths == sorted(widths)
    assert len(set(widths)) == 2


def signs_after_a_step(objective: Any, batch: dict[str, Any]) -> Tensor:
    attacked = PGD(0.1, 0.1, 1, keep="last")(batch, objective).batch["pixel_values"]
    return (attacked - batch["pixel_values"]).sign()


@pytest.mark.parametrize(("dtype", "agreement"), [(torch.float16, 0.99), (torch.bfloat16, 0.97)])
def test_half_precision_does_not_weaken_the_attack_on_a_small_loss(
    tiny_config: Any, tiny_batch: dict[str, Any], dtype: torch.dtype, agreement: float
) -> None:
    from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

    model = RMCLViltForPreTraining(tiny_config).eval().requires_grad_(False)
    target = torch.randn(16)
    half = {"enabled": True}

    def embed(batch: dict[str, Any]) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=half["enabled"]):
            return model.joint_embedding(**model_inputs(batch)).float()

    def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return 1e-7 * (embedding - target).square().sum(dim=1)

    objective = JointObjective(embed, loss, model.get_input_embeddings())
    batch = {**tiny_batch, "pixel_values": 0.5 * tiny_batch["pixel_values"]}
    scaled, plain = (signs_after_a_step(some, batch) for some in (objective, objective.__call__))
    half["enabled"] = False
    exact = signs_after_a_step(objective, batch)
    assert (scaled == exact).float().mean() > agreement
    if dtype == torch.float16:  # bfloat16 has the range of single precision, not its digits
        assert (plain == exact).float().mean() < 0.5
    assert torch.equal(signs_after_a_step(objective.__call__, batch), exact)


def test_scaling_changes_no_bit_in_single_precision_and_sees_groups(
    joint_objective: JointObjective, make_batch: Any, texts: list[str]
) -> None:
    """With losses of very different sizes; and where several rows of the embedding make up one example."""
    batch, sizes = make_batch(texts), torch.logspace(-12, 3, len(texts))

    def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return sizes * joint_objective.loss(embedding, batch)

    def embed_twice(batch: dict[str, Any]) -> Tensor:
        embedding = joint_objective.embed(batch)
        return torch.stack([embedding, 1e-3 * embedding.sin()], dim=1).flatten(0, 1)  # (2 * batch, dim)

    def loss_of_two(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return sizes * embedding.unflatten(0, (-1, 2)).square().sum(dim=(1, 2))

    for some in (
        replace(joint_objective, loss=loss),
        replace(joint_objective, embed=embed_twice, loss=loss_of_two),
    ):
        pixels = batch["pixel_values"].clone().requires_grad_()
        (expected,) = torch.autograd.grad(some({**batch, "pixel_values": pixels}).sum(), pixels)
        found = some.differentiate(batch, words=False, pixels=True)
        assert found.of_words is None
        assert torch.equal(found.of_pixels, expected)  # type: ignore[arg-type]
