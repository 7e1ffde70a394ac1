import copy

import pytest
import torch
import torch.nn.functional as F

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.task_attack import attack_task, task_objective
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.victims import as_victim
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

WORDS = ["[PAD]", "red", "blue", "apple", "boat", "is", "it"]  # of the toy collator


class BatchAttack:
    """Applies a function to the batch; the threat model is declared apart, true or not."""

    def __init__(self, change, threat_model):
        self.change, self.threat_model = change, threat_model

    def __call__(self, batch, objective):
        zeros = torch.zeros(len(batch["text"]))
        return AttackResult({**batch, **self.change(batch)}, zeros, zeros, 0, 0)


def image_attack(change, epsilon=1.0):
    return BatchAttack(
        lambda batch: {"pixel_values": change(batch)},
        ThreatModel(modality="image", norm="linf", epsilon=epsilon),
    )


def attack_rows(model, rows, collate, attacks, **options):
    return attack_task(model, rows, Task("toy", collate, VQA_COLUMNS), attacks, **options)


def logits_of(model, batch):
    with torch.no_grad():
        joint = model.eval().joint_representation(
            pixel_values=batch["pixel_values"],
            pixel_mask=batch["pixel_mask"],
            attention_mask=batch["attention_mask"],
            input_ids=batch["input_ids"],
        )
        return model.logits_from_joint(joint)


class TestAttackTask:
    def test_outcomes_equal_a_forward_of_the_attacked_batch(self, model, rows, collate, shift_attack):
        """The reference: one batch, the shift applied by hand."""
        result = attack_rows(model, rows, collate, {"shift": shift_attack(shift=0.1)}, batch_size=5)
        batch = collate(rows)
        attacked = {**batch, "pixel_values": batch["pixel_values"] + 0.2 * batch["pixel_mask"][:, None]}
        before, after = logits_of(model, batch), logits_of(model, attacked)
        assert [row.clean_prediction for row in result.outcomes] == before.argmax(1).tolist()
        assert [row.adversarial_prediction for row in result.outcomes] == after.argmax(1).tolist()
        losses = F.cross_entropy(after, batch["labels"], reduction="none")
        assert [row.loss_after for row in result.outcomes] == pytest.approx(losses.tolist(), abs=1e-5)
        assert [row.clean_correct for row in result.outcomes] == (
            before.argmax(1) == batch["labels"]
        ).tolist()
        assert [row.delta_linf for row in result.outcomes] == pytest.approx([0.1] * 12, abs=1e-6)
        assert [row.id for row in result.outcomes] == [row["question_id"] for row in rows]
        assert {row.cluster for row in result.outcomes} == {f"concept{index}" for index in range(4)}

    def test_pgd_raises_every_loss_and_identity_none(self, model, rows, collate, shift_attack):
        attacks = {"pgd": PGD(0.05, 0.02, 5), "nothing": shift_attack(shift=0.0)}
        outcomes = attack_rows(model, rows, collate, attacks, batch_size=4).outcomes
        assert all(row.loss_after > row.loss_before + 1e-3 for row in outcomes if row.attack == "pgd")
        for row in outcomes:
            if row.attack == "nothing":
                assert row.loss_after == row.loss_before
                assert row.adversarial_prediction == row.clean_prediction
                assert row.delta_linf == 0.0

    def test_text_attack_is_recorded(self, model, rows, collate, shift_attack):
        result = attack_rows(model, rows, collate, {"word": shift_attack(word="blue")}, batch_size=12)
        assert all(row.adversarial_text == f"{row.text} blue" for row in result.outcomes)
        assert all(row.words_changed == 1 and row.delta_linf == 0.0 for row in result.outcomes)
        assert [row.num_words for row in result.outcomes[:4]] == [3, 3, 2, 4]
        rate = result.summary()["word"]["overall"]["word_change_rate"]
        assert rate == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)

    def test_batch_size_does_not_matter(self, model, rows, collate):
        of_size = [
            attack_rows(model, rows, collate, {"pgd": PGD(0.05, 0.02, 3)}, batch_size=size).outcomes
            for size in (12, 5)
        ]
        for one, other in zip(*of_size, strict=True):
            assert (one.id, one.adversarial_prediction) == (other.id, other.adversarial_prediction)
            assert one.loss_after == pytest.approx(other.loss_after, abs=1e-5)

    def test_union_is_the_worst_of_its_members_example_by_example(self, model, rows, collate, shift_attack):
        attacks = {"image": PGD(0.05, 0.02, 3), "text": shift_attack(word="blue")}
        unions = {"both": ["image", "text"]}
        result = attack_rows(model, rows, collate, attacks, batch_size=6, unions=unions)
        by_attack = {
            name: [row for row in result.outcomes if row.attack == name] for name in ("image", "text", "both")
        }
        assert len(by_attack["both"]) == len(rows)
        for image, text, both in zip(*by_attack.values(), strict=True):
            assert both.id == image.id == text.id
            assert both.adversarial_correct == (image.adversarial_correct and text.adversarial_correct)
        costs = [result.cost[name] for name in ("image", "text", "both")]
        assert costs[2].forwards == costs[0].forwards + costs[1].forwards
        assert costs[2].backwards == costs[0].backwards

    def test_cost_is_per_example(self, model, rows, collate):
        cost = attack_rows(model, rows, collate, {"pgd": PGD(0.05, 0.02, 3)}, batch_size=5).cost["pgd"]
        assert (cost.forwards, cost.backwards) == (4.0, 3.0)
        assert cost.seconds > 0

    def test_leaves_the_model_as_it_was(self, model, rows, collate):
        model.train()
        model.dropout.eval()
        model.words.weight.requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        attack_rows(model, rows, collate, {"pgd": PGD(0.05, 0.02, 2)}, batch_size=6)
        assert model.training
        assert not model.dropout.training
        assert not model.words.weight.requires_grad
        assert model.head.weight.requires_grad
        assert model.head.weight.grad is None
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_streams(self, model, rows, collate):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(rows)

        attacks = {"pgd": PGD(0.05, 0.02, 2)}
        assert (
            attack_rows(model, Stream(), collate, attacks, batch_size=5).outcomes
            == attack_rows(model, rows, collate, attacks, batch_size=5).outcomes
        )

    def test_keeps_the_first_right_pairs_not_the_fooled_ones(self, model, rows, collate, shift_attack):
        attacks = {"nothing": shift_attack(shift=0.0)}
        result = attack_rows(model, rows, collate, attacks, batch_size=2, num_pairs=2)
        right = [row.id for row in result.outcomes if row.clean_correct]
        assert len(right) > 2
        assert [pair["id"] for pair in result.pairs] == right[:2]
        assert result.pairs[0]["clean_picture"].startswith("data:image/png;base64,")

    def test_two_images_per_text(self, model, rows, collate):
        """NLVR2: pixels `(B, 2, 3, H, W)`; the second image has less padding than the first."""

        def collate_two(chosen):
            batch = collate(chosen)
            mask = torch.stack([batch["pixel_mask"], torch.ones_like(batch["pixel_mask"])], dim=1)
            pixels = torch.stack([batch["pixel_values"], batch["pixel_values"] / 2], dim=1)
            return {**batch, "pixel_values": pixels, "pixel_mask": mask}

        attacks = {"pgd": PGD(0.05, 0.02, 3)}
        result = attack_rows(model, rows, collate_two, attacks, batch_size=5, num_pairs=1)
        assert all(row.loss_after > row.loss_before for row in result.outcomes)
        assert [row.delta_linf for row in result.outcomes] == pytest.approx([0.05] * 12, abs=1e-6)
        assert len(result.pairs) == 1

    def test_soft_scores_are_those_of_the_predictions_and_a_union_has_the_lowest(
        self, model, rows, collate, shift_attack
    ):
        scores = torch.rand(12, 2, generator=torch.Generator().manual_seed(3))

        def collate_soft(chosen):
            return {**collate(chosen), "labels": scores[[int(row["question_id"][1:]) for row in chosen]]}

        attacks = {"up": shift_attack(shift=0.2), "down": shift_attack(shift=-0.2)}
        unions = {"both": ["up", "down"]}
        result = attack_rows(model, rows, collate_soft, attacks, batch_size=5, unions=unions)
        found = {name: [row for row in result.outcomes if row.attack == name] for name in (*attacks, *unions)}
        clean = logits_of(model, collate(rows)).argmax(1)
        for group in found.values():
            assert [row.clean_score for row in group] == pytest.approx(scores[range(12), clean].tolist())
        for row, score in zip(found["up"], scores, strict=True):
            assert row.adversarial_score == pytest.approx(score[row.adversarial_prediction].item())
        assert any(row.clean_score != row.adversarial_score for row in found["both"])
        for up, down, both in zip(found["up"], found["down"], found["both"], strict=True):
            assert both.adversarial_score == min(up.adversarial_score, down.adversarial_score)
        hard = attack_rows(model, rows, collate, attacks, batch_size=5, unions=unions)
        assert {(row.clean_score, row.adversarial_score) for row in hard.outcomes} == {(None, None)}

    def test_real_head_and_real_attacks(self, tiny_config, tiny_tokenizer, tiny_batch):
        tiny_config.num_labels = 3
        vqa = RMCLViltForQuestionAnswering(tiny_config)
        labels = F.one_hot(torch.arange(4) % 3, 3).float()
        rows = [
            {"question_id": index, "concept": "c", "question_type": "t", "row": index} for index in range(4)
        ]

        def collate_rows(chosen):
            index = [row["row"] for row in chosen]
            text = [tiny_batch["text"][i] for i in index]
            return {
                **tiny_tokenizer(text, padding=True, return_token_type_ids=True, return_tensors="pt"),
                **{name: tiny_batch[name][index] for name in ("pixel_values", "pixel_mask")},
                "labels": labels[index],
                "text": text,
            }

        synonyms = SynonymTable({"small": [("tiny", 0.9)], "happy": [("glad", 0.9)], "red": [("round", 0.9)]})
        attacks = {
            "pgd": PGD.preset("standard", 8 / 255),
            "words": GeometryAttack(tiny_tokenizer, synonyms, max_change_share=0.5),
        }
        result = attack_rows(vqa, rows, collate_rows, attacks, batch_size=3)
        of_pgd = [row for row in result.outcomes if row.attack == "pgd"]
        assert all(row.loss_after > row.loss_before for row in of_pgd)
        assert all(0 < row.delta_linf <= 8 / 255 + 1e-6 for row in of_pgd)
        of_words = [row for row in result.outcomes if row.attack == "words"]
        assert sum(row.words_changed for row in of_words) > 0
        assert all((row.loss_after > row.loss_before) == (row.words_changed > 0) for row in of_words)


def test_eight_bits_are_those_of_a_stored_picture(model, rows, collate):
    """An answer that hangs on a tenth of a grey level is back when the picture is stored."""
    batch = collate(rows)
    level = (((batch["pixel_values"] / 2 + 0.5) * 255).round() / 255 - 0.5) * 2

    def on_levels(chosen):
        made = collate(chosen)
        index = [int(row["question_id"][1:]) for row in chosen]
        made["pixel_values"] = torch.where(
            made["pixel_mask"][:, None] == 1, level[index], made["pixel_values"]
        )
        return made

    tenth = image_attack(lambda batch: batch["pixel_values"] + 0.2 / 255 * batch["pixel_mask"][:, None])
    model.eval()
    logits = logits_of(model, on_levels(rows))
    with torch.no_grad():  # the boundary lies between the clean picture and the attacked one
        moved = logits_of(model, {**on_levels(rows), **tenth.change(on_levels(rows))})
        model.head.bias[1] += -((logits + moved) / 2)[0].diff().item()
    outcome = attack_rows(model, rows[:1], on_levels, {"tenth": tenth}, batch_size=1).outcomes[0]
    assert outcome.clean_prediction != outcome.adversarial_prediction
    assert outcome.correct_8bit == outcome.clean_correct != outcome.adversarial_correct
    assert outcome.delta_linf == pytest.approx(0.1 / 255, rel=1e-3)
    assert outcome.delta_l2 == pytest.approx(0.1 / 255 * 48**0.5, rel=1e-3)  # 3 channels of 4 x 4 real pixels


def test_kept_are_the_pixels_and_the_text_of_the_worst_attack(model, rows, collate, shift_attack):
    attacks = {
        "up": shift_attack(shift=0.2),
        "down": shift_attack(shift=-0.2),
        "word": shift_attack(word="blue"),
    }
    kept = []

    def keep(name, outcomes, attacked):
        kept.extend(zip(outcomes, attacked["pixel_values"], attacked["text"], strict=True))

    attack_rows(model, rows, collate, attacks, batch_size=6, unions={"all": list(attacks)}, keep=keep)
    clean = collate(rows)["pixel_values"]
    shifts = {"up": 0.4, "down": -0.4, "word": 0.0}
    for (outcome, pixels, text), before in zip(kept, clean, strict=True):
        moved = (pixels - before)[:, :, :-1]  # the last column is padding
        assert torch.allclose(moved, torch.full_like(moved, shifts[outcome.found_by]), atol=1e-6)
        assert text == outcome.adversarial_text
    assert len({outcome.found_by for outcome, _, _ in kept[:6]}) > 1


def test_leaves_the_global_random_state(model, rows, collate):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    attack_rows(model, rows, collate, {"pgd": PGD.preset("standard")}, batch_size=5)
    assert torch.rand(1) == expected


class TestTaskObjective:
    @pytest.fixture
    def attacked(self, model, rows, collate):
        victim = as_victim(model.eval())
        batch = collate(rows)
        with torch.no_grad():
            batch["clean_embedding"] = victim.embed(batch) + 0.5
        return victim, batch

    def test_losses_are_those_of_their_formulas(self, attacked, model):
        victim, batch = attacked
        logits = logits_of(model, batch)
        difference = logits[:, 1] - logits[:, 0]
        sign = 1 - 2 * batch["labels"]
        expected = {
            "cross-entropy": F.softplus(sign * difference),
            "margin": sign * difference,
            "distance": 1 - F.cosine_similarity(batch["clean_embedding"] - 0.5, batch["clean_embedding"]),
        }
        for loss, values in expected.items():
            assert task_objective(victim, loss)(batch).tolist() == pytest.approx(values.tolist(), abs=1e-5)


class TestRefusals:
    def run(self, model, rows, collate, attack, **options):
        return attack_rows(model, rows, collate, {"bad": attack}, batch_size=6, **options)

    def test_random_model(self, model, rows, collate, shift_attack):
        model.joint_representation = lambda **inputs: torch.randn(len(inputs["pixel_values"]), 7)
        with pytest.raises(ValueError, match=r"differs by .* between two forwards in eval mode"):
            self.run(model, rows, collate, shift_attack())

    def test_epsilon_applied_to_normalised_pixels(self, model, rows, collate, shift_attack):
        with pytest.raises(
            ValueError,
            match=r"changed a picture by 0\.20000 \(linf\), its threat model allows 0\.10000.* 2 times",
        ):
            self.run(model, rows, collate, shift_attack(shift=0.2, epsilon=0.1))

    def test_pixels_that_no_picture_has(self, model, rows, collate):
        attack = image_attack(lambda batch: batch["pixel_values"] - batch["pixel_mask"][:, None])
        with pytest.raises(
            ValueError, match=r"returned pixels in \[-0\.\d+, .*a picture has pixels in \[0, 1\]"
        ):
            self.run(model, rows, collate, attack)

    def test_nan_pixels(self, model, rows, collate):
        attack = image_attack(lambda batch: batch["pixel_values"] * torch.nan)
        with pytest.raises(ValueError, match="returned NaN or infinite pixels"):
            self.run(model, rows, collate, attack)

    def test_padding(self, model, rows, collate):
        attack = image_attack(lambda batch: batch["pixel_values"] + 0.01)
        with pytest.raises(ValueError, match="changed padding pixels"):
            self.run(model, rows, collate, attack)

    def test_pixels_under_a_text_threat_model(self, model, rows, collate):
        threat = ThreatModel(modality="text", word_edits="synonyms", max_change_share=0.2)
        attack = BatchAttack(lambda batch: {"pixel_values": batch["pixel_values"] * 0.9}, threat)
        with pytest.raises(ValueError, match=r"its threat model allows 0\.00000"):
            self.run(model, rows, collate, attack)

    def test_more_words_than_the_budget(self, model, rows, collate):
        threat = ThreatModel(modality="text", word_edits="synonyms", max_changed_words=1)
        attack = BatchAttack(lambda batch: {"text": ["apple is blue"] * len(batch["text"])}, threat)
        with pytest.raises(ValueError, match=r"changed 2 words of 'it is red' .*its threat model allows 1"):
            self.run(model, rows, collate, attack)

    def test_an_l2_norm_that_no_pixel_shows(self, model, rows, collate):
        """Every pixel moves by 0.1, less than epsilon; the norm of all 48 is 0.69."""
        attack = BatchAttack(
            lambda batch: {"pixel_values": batch["pixel_values"] + 0.2 * batch["pixel_mask"][:, None]},
            ThreatModel(modality="image", norm="l2", epsilon=0.5),
        )
        with pytest.raises(ValueError, match=r"changed a picture by 0\.69282 \(l2\), .*allows 0\.5"):
            self.run(model, rows, collate, attack)

    def test_ids_that_are_not_those_of_the_text(self, model, rows, collate):
        class Tokenizer:
            def __call__(self, texts, **options):
                ids = [[WORDS.index(word) for word in text.split()] for text in texts]
                return {"input_ids": ids}

        task = Task("toy", collate, VQA_COLUMNS, tokenizer=Tokenizer())
        threat = ThreatModel(modality="text", word_edits="synonyms", max_changed_words=3)
        attack_task(model, rows, task, {"fine": BatchAttack(lambda batch: {}, threat)}, batch_size=6)
        attack = BatchAttack(lambda batch: {"input_ids": batch["input_ids"].clamp(max=4)}, threat)
        with pytest.raises(ValueError, match="returned input_ids that are not the encoding of its text 'it"):
            attack_task(model, rows, task, {"bad": attack}, batch_size=6)

    def test_text_under_an_image_threat_model(self, model, rows, collate):
        attack = BatchAttack(
            lambda batch: {"text": ["red"] * len(batch["text"])},
            ThreatModel(modality="image", norm="linf", epsilon=0.1),
        )
        with pytest.raises(ValueError, match="changed the text, but its threat model is on the image only"):
            self.run(model, rows, collate, attack)

    def test_labels(self, model, rows, collate):
        threat = ThreatModel(modality="image", norm="linf", epsilon=0.1)
        attack = BatchAttack(lambda batch: {"labels": 1 - batch["labels"]}, threat)
        with pytest.raises(ValueError, match="changed the labels"):
            self.run(model, rows, collate, attack)

    def test_empty_data(self, model, collate, shift_attack):
        with pytest.raises(ValueError, match="the data set is empty"):
            self.run(model, [], collate, shift_attack())

    def test_no_attack(self, model, rows, collate):
        with pytest.raises(ValueError, match="no attacks given"):
            attack_rows(model, rows, collate, {}, batch_size=6)

    def test_union_of_unknown_attacks(self, model, rows, collate, shift_attack):
        with pytest.raises(ValueError, match=r"union 'both' of \['bad', 'worse'\] must .*known: \['bad'\]"):
            self.run(model, rows, collate, shift_attack(), unions={"both": ["bad", "worse"]})

    def test_repeated_ids(self, model, rows, collate, shift_attack):
        with pytest.raises(ValueError, match="example id 'q0' occurs more than once"):
            self.run(model, [*rows, rows[0]], collate, shift_attack())

    def test_collator_that_drops_rows(self, model, rows, collate, shift_attack):
        with pytest.raises(ValueError, match="collate made 5 examples of 6 rows"):
            self.run(model, rows, lambda rows: collate(rows[1:]), shift_attack())
