import pytest
import torch.nn.functional as F

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.evaluation.attack_loop import CAPTION_COLUMNS
from rmcl_hub.evaluation.retention import embedding_retention


class TestEmbeddingRetention:
    def test_equals_a_search_by_hand(self, model, rows, collate, shift_attack):
        """Clean gallery and shifted queries in NumPy terms: nearest by cosine, own one strictly ahead."""
        outcomes = embedding_retention(
            model, rows, collate, {"shift": shift_attack(shift=0.2)}, batch_size=5
        ).outcomes
        batch = collate(rows)
        shifted = batch["pixel_values"] + 0.4 * batch["pixel_mask"][:, None]

        def embed(pixels):
            inputs = {name: batch[name] for name in ("pixel_mask", "attention_mask", "input_ids")}
            return F.normalize(model.eval().joint_representation(pixel_values=pixels, **inputs), dim=1)

        cosine = (embed(shifted) @ embed(batch["pixel_values"]).T).detach().numpy()
        for index, row in enumerate(outcomes):
            ranking = sorted(range(12), key=lambda item: -cosine[index, item])
            assert row.label == index
            assert row.clean_prediction == index
            assert row.adversarial_prediction == ranking[0]
            assert row.adversarial_correct == (ranking[0] == index)
        assert any(not row.adversarial_correct for row in outcomes)

    def test_attack_that_starts_at_the_clean_pair_still_moves_it(self, model, rows, collate):
        """The distance to the own embedding alone has gradient zero there."""
        outcomes = embedding_retention(
            model, rows, collate, {"pgd": PGD(0.02, 0.01, 4)}, batch_size=6
        ).outcomes
        assert all(row.loss_after > row.loss_before + 1e-4 for row in outcomes)

    def test_needs_no_labels_and_no_head(self, model, rows, collate):
        def unlabelled(chosen):
            return {name: value for name, value in collate(chosen).items() if name != "labels"}

        del model.head
        captions = [{**row, "image_id": row["question_id"]} for row in rows]
        result = embedding_retention(
            model, captions, unlabelled, {"pgd": PGD(0.3, 0.1, 5)}, batch_size=6, columns=CAPTION_COLUMNS
        )
        numbers = result.summary()["pgd"]
        assert set(numbers) == {"overall", "all"}
        assert numbers["overall"]["clean_accuracy"]["value"] == 1.0
        assert numbers["overall"]["robust_accuracy"]["value"] < 1.0

    def test_identical_pairs_do_not_find_themselves(self, model, rows, collate, shift_attack):
        twins = [*rows, {**rows[0], "question_id": "twin"}]
        outcomes = embedding_retention(
            model, twins, collate, {"none": shift_attack()}, batch_size=13
        ).outcomes
        assert [row.id for row in outcomes if not row.clean_correct] == ["q0", "twin"]

    def test_gallery_of_one(self, model, rows, collate, shift_attack):
        with pytest.raises(ValueError, match="gallery of at least 2 examples, got 1"):
            embedding_retention(model, rows[:1], collate, {"none": shift_attack()}, batch_size=1)
