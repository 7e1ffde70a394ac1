"""Robust retrieval on a bilinear model, whose attacks have a closed form, and on a tiny ViLT."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.retrieval import distinct_captions
from rmcl_hub.evaluation.robust_retrieval import evaluate_robust_retrieval
from rmcl_hub.evaluation.shortlist import Shortlist
from rmcl_hub.modeling_rmcl import RMCLViltForImageAndTextRetrieval

NUM_IMAGES = 12
EPSILON = 24 / 255
NOUNS = "dog cat puppy bird fish tree flower house car ball cup apple".split()


class BilinearModel(nn.Module):
    """score(text, image) = (sum of word vectors) . (mean pixel of every channel)."""

    def __init__(self, tokenizer):
        super().__init__()
        self.words = nn.Embedding(len(tokenizer), 3)
        self.dropout = nn.Dropout(0.5)
        self.rows_scored = 0
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            self.words.weight.copy_(0.2 * torch.randn(len(tokenizer), 3, generator=generator))
            self.words.weight[:5] = 0  # [PAD], [CLS], [SEP]

    def get_input_embeddings(self):
        return self.words

    def joint_representation(
        self, pixel_values, pixel_mask, attention_mask, input_ids=None, inputs_embeds=None
    ):
        self.rows_scored += len(pixel_values)
        vectors = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        text = (vectors * attention_mask[..., None]).sum(dim=1)
        return self.dropout(text * pixel_values.mean(dim=(2, 3)))

    def logits_from_joint(self, joint):
        return joint.sum(dim=1, keepdim=True)


class Planted:
    """Turns every text it knows into another one; leaves the rest alone. Keeps the batches that it saw."""

    def __init__(self, replacements, max_changed_words=9):
        self.replacements = replacements
        self.threat_model = ThreatModel(
            modality="text", word_edits="typos", max_changed_words=max_changed_words
        )
        self.seen = []

    def __call__(self, batch, objective):
        with torch.no_grad():
            loss = objective(batch)
        self.seen.append((batch, loss))
        texts = [self.replacements.get(text, text) for text in batch["text"]]
        return AttackResult({**batch, "text": texts}, loss, loss, len(loss), 0)


class Shift:
    """Adds a constant to all normalised pixels."""

    def __init__(self, shift, epsilon):
        self.shift = shift
        self.threat_model = ThreatModel(modality="image", norm="linf", epsilon=epsilon)

    def __call__(self, batch, objective):
        loss = torch.zeros(len(batch["pixel_values"]))
        return AttackResult({**batch, "pixel_values": batch["pixel_values"] + self.shift}, loss, loss, 0, 0)


def one_step(epsilon=EPSILON):
    """On a linear model one sign step of full length is the exact maximum."""
    return PGD(epsilon, step_size=epsilon or 1.0, num_steps=1)


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


@pytest.fixture
def rows():
    """Twelve pictures of one colour, away from black and white; pictures 0 and 1 share a caption."""
    colours = np.random.default_rng(0).integers(60, 196, size=(NUM_IMAGES, 3)).tolist()
    captions = [[f"a {noun}", f"the big {noun}"][: 1 + index % 2] for index, noun in enumerate(NOUNS)]
    captions[0].append("two red birds")
    captions[1].append("Two red  birds")
    return [
        {
            "image": Image.new("RGB", (32, 32), tuple(colour)),
            "captions": texts,
            "image_id": f"picture {index}",
        }
        for index, (colour, texts) in enumerate(zip(colours, captions, strict=True))
    ]


@pytest.fixture
def model(tiny_tokenizer, rows):
    """The noun of a picture's captions points to its colour, more or less; that of the last one away from
    it.
    """
    model = BilinearModel(tiny_tokenizer)
    with torch.no_grad():
        for noun, row in zip(NOUNS, rows, strict=True):
            colour = torch.tensor(row["image"].getpixel((0, 0))) / 255 * 2 - 1
            sign = -2 if row is rows[-1] else 1
            model.words.weight[tiny_tokenizer.convert_tokens_to_ids(noun)] += sign * colour
    return model.train()


@pytest.fixture
def evaluate(model, rows, processor):
    def evaluate(attacks, side, **options):
        options = {"batch_size": 7, "num_hard_negatives": 3, **options}
        return evaluate_robust_retrieval(model, rows, processor, attacks, side=side, **options)

    return evaluate


class Reference:
    """The same numbers by loops over NumPy arrays."""

    def __init__(self, model, rows, tokenizer):
        self.texts, self.relevant = distinct_captions([row["captions"] for row in rows])
        self.weight = model.words.weight.detach().double().numpy()
        self.tokenizer = tokenizer
        self.pixels = np.array([np.asarray(row["image"])[0, 0] for row in rows]) / 255 * 2 - 1  # (images, 3)
        self.vectors = np.array([self.vector(text) for text in self.texts])  # (texts, 3)
        self.scores = self.vectors @ self.pixels.T  # (texts, images)

    def vector(self, text):
        return self.weight[self.tokenizer(text)["input_ids"]].sum(axis=0)


@pytest.fixture
def reference(model, rows, tiny_tokenizer):
    return Reference(model, rows, tiny_tokenizer)


def rank_of(scores, right):
    """Worst order of ties, one query at a time."""
    best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
    return 1 + sum(score >= best for score, is_right in zip(scores, right, strict=True) if not is_right)


def ranks_in(direction, attack, key="rank"):
    return [outcome[key] for outcome in direction["attacks"][attack]["outcomes"]]


def recall(ranks, k):
    return float(np.mean(np.array(ranks) <= k))


class TestClosedForms:
    def test_attacked_picture_of_the_gallery(self, evaluate, reference):
        """score - 2 epsilon |text|_1 for the right pictures, the rest as they were; in normalised pixels."""
        result = evaluate({"pgd": one_step()}, "gallery")["directions"]["text_to_image"]
        clean = [rank_of(*pair) for pair in zip(reference.scores, reference.relevant, strict=True)]
        drop = 2 * EPSILON * np.abs(reference.vectors).sum(axis=1, keepdims=True)  # (texts, 1)
        attacked = reference.scores - drop * reference.relevant
        expected = [rank_of(*pair) for pair in zip(attacked, reference.relevant, strict=True)]
        expected = [rank if before <= 10 else before for rank, before in zip(expected, clean, strict=True)]
        assert ranks_in(result, "pgd", "clean_rank") == clean
        assert ranks_in(result, "pgd") == expected
        assert expected != clean
        for k in (1, 5, 10):
            assert result["recall"][str(k)]["value"] == pytest.approx(recall(clean, k))
            assert result["attacks"]["pgd"]["recall"][str(k)]["value"] == pytest.approx(recall(expected, k))

    def test_attacked_picture_as_query(self, evaluate, reference):
        """With one hard negative: pixels + epsilon sign(negative - right), ranked against all texts."""
        result = evaluate({"pgd": one_step()}, "query", num_hard_negatives=1)["directions"]["image_to_text"]
        scores, relevant = reference.scores.T, reference.relevant.T  # (images, texts)
        expected = []
        for picture, (row, right) in enumerate(zip(scores, relevant, strict=True)):
            negative = np.where(right, -np.inf, row).argmax()
            positive = np.where(right, row, -np.inf).argmax()
            direction = np.sign(reference.vectors[negative] - reference.vectors[positive])
            attacked = reference.vectors @ (reference.pixels[picture] + 2 * EPSILON * direction)
            before, after = rank_of(row, right), rank_of(attacked, right)
            expected.append(max(before, after) if before <= 10 else before)
        assert ranks_in(result, "pgd") == expected
        assert expected != ranks_in(result, "pgd", "clean_rank")

    def test_attack_success_is_over_the_queries_hit_before(self, evaluate):
        result = evaluate({"pgd": one_step()}, "gallery")["directions"]["text_to_image"]
        for k in (1, 5):
            pairs = zip(ranks_in(result, "pgd", "clean_rank"), ranks_in(result, "pgd"), strict=True)
            hit = [after > k for before, after in pairs if before <= k]
            rate = result["attacks"]["pgd"]["attack_success_rate"][str(k)]
            assert rate["n"] == len(hit)
            assert rate["value"] == pytest.approx(np.mean(hit))
            assert rate["low"] < rate["value"] + 1e-9 < rate["high"] + 1e-9
            assert 0 < rate["value"] < 1


class TestPlantedAttacks:
    def test_a_query_text_moves_its_picture_to_the_rank_of_the_new_text(self, evaluate, reference):
        query = next(
            index
            for index, (row, right) in enumerate(zip(reference.scores, reference.relevant, strict=True))
            if rank_of(row, right) <= 2
        )
        new = "three happy fish in a green car"
        rank = rank_of(reference.pixels @ reference.vector(new), reference.relevant[query])
        assert rank > 2
        result = evaluate({"planted": Planted({reference.texts[query]: new})}, "query")
        outcomes = result["directions"]["text_to_image"]["attacks"]["planted"]["outcomes"]
        assert outcomes[query]["attacked_rank"] == outcomes[query]["rank"] == rank
        assert outcomes[query]["texts"] == [new]
        del outcomes[query]
        assert all(outcome["rank"] == outcome["clean_rank"] for outcome in outcomes)

    def test_every_right_caption_of_a_picture_is_attacked(self, evaluate, reference):
        """Attacking only the best would leave the second best, and the rank, where it is."""
        scores, relevant = reference.scores.T, reference.relevant.T
        picture = next(
            index
            for index, right in enumerate(relevant)
            if right.sum() == 2 and rank_of(scores[index], right) <= 3
        )
        worst = "dog " * 6 if reference.vector("dog") @ reference.pixels[picture] < 0 else "cat " * 6
        new = worst.strip()
        low = reference.vector(new) @ reference.pixels[picture]
        assert low < scores[picture][relevant[picture]].min()
        both = {reference.texts[text]: new for text in np.flatnonzero(relevant[picture])}
        expected = rank_of(np.where(relevant[picture], low, scores[picture]), relevant[picture])
        result = evaluate({"planted": Planted(both)}, "gallery")["directions"]["image_to_text"]
        assert result["attacks"]["planted"]["outcomes"][picture]["rank"] == expected
        assert result["attacks"]["planted"]["outcomes"][picture]["num_right"] == 2
        best = max(both, key=lambda text: reference.vector(text) @ reference.pixels[picture])
        result = evaluate({"planted": Planted({best: new})}, "gallery")["directions"]["image_to_text"]
        assert result["attacks"]["planted"]["outcomes"][picture]["rank"] < expected

    @pytest.mark.parametrize("side", ["query", "gallery"])
    def test_an_attack_that_helps_is_not_made(self, evaluate, reference, side):
        """Words that raise every score of the right picture, or texts that raise their own."""
        helpful = {}
        for text, right in zip(reference.texts, reference.relevant, strict=True):
            picture = reference.pixels[np.flatnonzero(right)[0]]
            best = max(NOUNS, key=lambda noun: reference.vector(noun) @ picture)
            helpful[text] = f"{best} {best} {best} {best}"
        result = evaluate({"planted": Planted(helpful)}, side)
        direction = result["directions"]["text_to_image" if side == "query" else "image_to_text"]
        clean = ranks_in(direction, "planted", "clean_rank")
        assert all(
            after >= before for after, before in zip(ranks_in(direction, "planted"), clean, strict=True)
        )
        if side == "gallery":
            attacked = ranks_in(direction, "planted", "attacked_rank")
            assert all(
                after is None or after >= before for after, before in zip(attacked, clean, strict=True)
            )

    def test_the_attack_sees_right_answers_first_then_the_hardest_negatives(self, evaluate, reference):
        attack = Planted({})
        evaluate({"planted": attack}, "query", num_hard_negatives=4, batch_size=14)
        seen = 0
        for batch, loss in attack.seen:
            for text, candidates, value in zip(batch["text"], batch["candidates"], loss, strict=True):
                query = reference.texts.index(text)
                right = np.flatnonzero(reference.relevant[query])
                order = [item for item in np.argsort(-reference.scores[query]) if item not in right]
                assert candidates.tolist() == [*right, *order[:4]]
                expected = reference.scores[query][order[0]] - reference.scores[query][right].max()
                assert value.item() == pytest.approx(expected, abs=1e-5)
                seen += 1
        assert seen > 8
        assert {len(batch["text"]) for batch, _ in attack.seen} - {1, 2} == set()  # 14 // 5 at a time

    def test_queries_that_are_lost_already_are_not_attacked(self, evaluate, reference):
        attack = Planted({})
        result = evaluate({"planted": attack}, "query")["directions"]["text_to_image"]
        clean = [rank_of(*pair) for pair in zip(reference.scores, reference.relevant, strict=True)]
        lost = {reference.texts[query] for query, rank in enumerate(clean) if rank > 10}
        seen = [text for batch, _ in attack.seen for text in batch["text"]]
        assert lost
        assert sorted([*seen, *lost]) == sorted(reference.texts)
        assert result["attacks"]["planted"]["num_attacked"] == len(seen)
        attacked = ranks_in(result, "planted", "attacked_rank")
        assert [rank is None for rank in attacked] == [rank > 10 for rank in clean]


class TestNoAttack:
    @pytest.mark.parametrize("side", ["query", "gallery"])
    def test_gives_exactly_the_clean_numbers_without_scoring_again(self, evaluate, model, side):
        result = evaluate({"words": Planted({}), "pixels": one_step(epsilon=0.0)}, side)
        assert set(result["directions"]) == {"text_to_image", "image_to_text"}
        for direction in result["directions"].values():
            ((_, numbers),) = direction["attacks"].items()
            assert numbers["recall"] == direction["recall"]
            assert {rate["value"] for rate in numbers["attack_success_rate"].values()} <= {0.0, None}
            assert all(outcome["rank"] == outcome["clean_rank"] for outcome in numbers["outcomes"])
            assert all(outcome["distance"] == 0 for outcome in numbers["outcomes"])

    def test_ties_count_against_the_model(self, evaluate, model):
        with torch.no_grad():
            model.words.weight.zero_()
        direction = evaluate({"words": Planted({})}, "query")["directions"]["text_to_image"]
        assert {rate["value"] for rate in direction["recall"].values()} == {0.0}

    def test_the_model_comes_back_as_it_was(self, evaluate, model):
        evaluate({"pgd": one_step()}, "query")
        assert model.training
        assert model.dropout.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class TestCost:
    def test_query_side(self, evaluate, model, reference):
        result = evaluate({"pgd": PGD(EPSILON, step_size=EPSILON / 2, num_steps=2)}, "query")
        direction = result["directions"]["image_to_text"]
        numbers = direction["attacks"]["pgd"]
        texts = len(reference.texts)
        right = [row["num_right"] for row in numbers["outcomes"] if row["attacked_rank"] is not None]
        pairs = sum(count + 3 for count in right)
        changed = sum(row["distance"] > 0 for row in numbers["outcomes"])
        assert direction["forwards"] == NUM_IMAGES * texts
        assert numbers["forwards"] == 3 * pairs + changed * texts
        assert numbers["backwards"] == 2 * pairs
        assert model.rows_scored == direction["forwards"] + numbers["forwards"]

    def test_gallery_side(self, evaluate, model, reference):
        result = evaluate({"pgd": PGD(EPSILON, step_size=EPSILON / 2, num_steps=2)}, "gallery")
        direction = result["directions"]["text_to_image"]
        numbers = direction["attacks"]["pgd"]
        pairs = sum(row["num_right"] for row in numbers["outcomes"] if row["attacked_rank"] is not None)
        assert direction["forwards"] == NUM_IMAGES * len(reference.texts)
        assert numbers["forwards"] == 3 * pairs + pairs  # every picture changed
        assert numbers["backwards"] == 2 * pairs
        assert model.rows_scored == direction["forwards"] + numbers["forwards"]

    def test_few_negatives_in_a_small_gallery(self, evaluate, model):
        result = evaluate({"words": Planted({})}, "query", gallery_size=4, num_hard_negatives=50)
        direction = result["directions"]["text_to_image"]
        attacked = [row["attacked_rank"] is not None for row in direction["attacks"]["words"]["outcomes"]]
        assert direction["attacks"]["words"]["forwards"] == 4 * sum(attacked)  # all four pictures


class TestShortlist:
    def test_as_long_as_the_gallery_is_exact(self, evaluate):
        attacks = {"pgd": one_step(), "planted": Planted({"a dog": "two red cars", "the big cat": "a"})}
        for side in ("query", "gallery"):
            exact = evaluate(attacks, side)
            listed = evaluate(attacks, side, shortlist=Shortlist(99, random_scores, num_checked=5))
            assert listed["shortlist_size"] == 99
            for name, direction in listed["directions"].items():
                same = exact["directions"][name]
                assert direction["recall"] == same["recall"]
                assert direction["forwards_saved"] == 0
                attacked = direction["attacks"][attack_of(direction)]
                for errors in (direction["shortlist_error"], attacked["shortlist_error"]):
                    assert {error["difference"] for error in errors.values()} == {0.0}
                    assert {error["n"] for error in errors.values()} == {5}
                    assert all(error["low"] < 0 < error["high"] for error in errors.values())
                assert ranks_in(direction, attack_of(direction)) == ranks_in(same, attack_of(direction))

    def test_what_is_off_the_list_follows_in_the_cheap_order(self, evaluate, reference):
        shortlist = Shortlist(4, random_scores, num_checked=1)
        result = evaluate({"words": Planted({})}, "query", shortlist=shortlist)["directions"]["text_to_image"]
        cheap = random_scores(NUM_IMAGES * [None], reference.texts)
        expected = []
        for query, right in enumerate(reference.relevant):
            order = sorted(range(NUM_IMAGES), key=lambda image: -cheap[query][image])
            order[:4] = sorted(order[:4], key=lambda image: -reference.scores[query][image])
            first = min(order.index(image) for image in np.flatnonzero(right))
            expected.append(1 + sum(not right[image] for image in order[:first]))
        assert ranks_in(result, "words", "clean_rank") == expected

    def test_forwards(self, evaluate, model, reference):
        texts = len(reference.texts)
        shortlist = Shortlist(4, random_scores, num_checked=3)
        result = evaluate({"planted": Planted({"a dog": "two red cars"})}, "query", shortlist=shortlist)
        direction = result["directions"]["text_to_image"]
        assert direction["forwards"] == 4 * texts + 3 * (NUM_IMAGES - 4)
        assert model.rows_scored == direction["forwards"] + direction["attacks"]["planted"]["forwards"]
        changed = [bool(row["texts"]) for row in direction["attacks"]["planted"]["outcomes"]]
        scored_again = sum(changed) * NUM_IMAGES - direction["forwards_saved"]
        scored_again += texts * NUM_IMAGES - direction["forwards"]
        attack_rows = direction["attacks"]["planted"]["forwards"] - scored_again
        right = reference.relevant.sum(axis=1)
        attacked = [rank is not None for rank in ranks_in(direction, "planted", "attacked_rank")]
        assert (right + 3)[attacked].sum() <= attack_rows <= (right + 3).sum()  # and lost ones to check

    @pytest.mark.parametrize("side", ["query", "gallery"])
    def test_the_measured_error_is_the_difference_to_the_exact_run(self, evaluate, side):
        """With all queries checked; a small shift on every picture, the same in both runs."""
        attacks = {"shift": Shift(2 * EPSILON, EPSILON)}
        exact, listed = (
            evaluate(attacks, side, shortlist=shortlist)["directions"]
            for shortlist in (None, Shortlist(5, random_scores, num_checked=99))
        )
        differences = set()
        for name, direction in listed.items():
            for of, same in (
                (direction, exact[name]),
                (direction["attacks"]["shift"], exact[name]["attacks"]["shift"]),
            ):
                for k, error in of["shortlist_error"].items():
                    assert error["difference"] == pytest.approx(
                        of["recall"][k]["value"] - same["recall"][k]["value"]
                    )
                    assert error["low"] < error["difference"] < error["high"]
                    differences.add(error["difference"])
        assert len(differences) > 1

    def test_the_dual_encoder_of_the_model_is_the_default(self, tiny_config, processor, rows):
        from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

        tiny_config.itc_weight = 1.0
        model = RMCLViltForPreTraining(tiny_config)
        result = evaluate_robust_retrieval(
            model,
            rows,
            processor,
            {"words": Planted({})},
            side="query",
            batch_size=64,
            shortlist=Shortlist(3),
        )
        direction = result["directions"]["text_to_image"]
        assert direction["forwards"] == direction["num_queries"] * NUM_IMAGES  # all checked, being under 50
        assert direction["shortlist_error"]["1"]["n"] == direction["num_queries"]


def random_scores(images, texts):
    return np.random.default_rng(5).random((len(texts), len(images)))


def attack_of(direction):
    (name,) = direction["attacks"]
    return name


class TestViLT:
    """A model that shares the patches of an image, pictures of several sizes, and gradient attacks."""

    @pytest.fixture
    def model(self, tiny_config):
        tiny_config.initializer_range = 0.5  # else all pairs have nearly the same score
        return RMCLViltForImageAndTextRetrieval(tiny_config)

    @pytest.fixture
    def rows(self):
        generator = np.random.default_rng(0)
        sizes = [(32, 32), (48, 32), (32, 64)]
        return [
            {
                "image": Image.fromarray(generator.integers(256, size=(*size, 3), dtype=np.uint8)),
                "captions": [f"a happy {noun}", f"the big {noun} near a small auto"][: 1 + index % 2],
            }
            for index, (noun, size) in enumerate(zip(NOUNS, 2 * sizes, strict=False))
        ]

    @pytest.fixture
    def attacks(self, tiny_tokenizer):
        table = SynonymTable({"happy": [("glad", 0.9)], "big": [("large", 0.9)], "small": [("tiny", 0.9)]})
        return {
            "pgd": PGD(0.2, step_size=0.1, num_steps=2),
            "words": GeometryAttack(tiny_tokenizer, table, max_change_share=0.4),
        }

    @pytest.mark.parametrize("side", ["query", "gallery"])
    def test_the_result_does_not_depend_on_the_batches(self, model, rows, processor, attacks, side):
        small, large = (
            evaluate_robust_retrieval(
                model, rows, processor, attacks, side=side, batch_size=size, num_hard_negatives=4
            )["directions"]
            for size in (3, 64)
        )
        for name, direction in small.items():
            attack = attack_of(direction)
            assert ranks_in(direction, attack) == ranks_in(large[name], attack)
            assert direction["attacks"][attack]["forwards"] == large[name]["attacks"][attack]["forwards"]
            distances = [row["distance"] for row in direction["attacks"][attack]["outcomes"]]
            assert 0 < max(distances) <= (0.2 if attack == "pgd" else 3)
        attacked = small["image_to_text" if side == "query" else "text_to_image"]
        assert ranks_in(attacked, "pgd") != ranks_in(attacked, "pgd", "clean_rank")

    def test_ready_for_json(self, model, rows, processor, attacks):
        result = evaluate_robust_retrieval(
            model, rows, processor, attacks, side="query", batch_size=16, num_queries=3, shortlist=None
        )
        again = json.loads(json.dumps(result, allow_nan=False))
        assert again == result
        numbers = again["directions"]["image_to_text"]["attacks"]["pgd"]
        assert numbers["threat_model_hash"] == attacks["pgd"].threat_model.digest
        assert ThreatModel.from_dict(numbers["threat_model"]) == attacks["pgd"].threat_model


class TestDraws:
    def test_the_gallery_is_declared_and_drawn_at_random(self, evaluate, rows):
        result = evaluate({"pgd": one_step()}, "query", gallery_size=6)
        assert result["gallery"]["num_images"] == 6
        assert result["gallery"]["drawn"] == "6 of 12 at random, seed 0"
        names = [row["query"] for row in result["directions"]["image_to_text"]["attacks"]["pgd"]["outcomes"]]
        other = evaluate({"pgd": one_step()}, "query", gallery_size=6, seed=1)
        others = [row["query"] for row in other["directions"]["image_to_text"]["attacks"]["pgd"]["outcomes"]]
        assert len(set(names)) == 6
        assert names != others
        assert names != [row["image_id"] for row in rows[:6]]
        texts = {text for name in names for text in rows[int(name.split()[1])]["captions"]}
        assert result["gallery"]["num_texts"] == len({" ".join(text.lower().split()) for text in texts})

    def test_fewer_queries_meet_the_same_gallery(self, evaluate):
        attack = {"pgd": one_step()}
        every, few = (evaluate(attack, "query", num_queries=size) for size in (None, 5))
        every, few = (result["directions"]["image_to_text"] for result in (every, few))
        by_name = {row["query"]: row["rank"] for row in every["attacks"]["pgd"]["outcomes"]}
        chosen = {row["query"]: row["rank"] for row in few["attacks"]["pgd"]["outcomes"]}
        assert few["num_queries"] == len(chosen) == 5
        assert few["gallery_size"] == every["gallery_size"]
        assert chosen == {name: by_name[name] for name in chosen}

    @pytest.mark.parametrize(
        ("side", "attack", "direction"),
        [
            ("query", Planted({}), "text_to_image"),
            ("gallery", Planted({}), "image_to_text"),
            ("query", one_step(), "image_to_text"),
            ("gallery", one_step(), "text_to_image"),
        ],
    )
    def test_an_attack_runs_where_its_modality_is_attacked(self, evaluate, side, attack, direction):
        assert list(evaluate({"attack": attack}, side)["directions"]) == [direction]


class TestErrors:
    def test_arguments(self, evaluate):
        with pytest.raises(ValueError, match="side is 'both'; expected one of query, gallery"):
            evaluate({"pgd": one_step()}, "both")
        with pytest.raises(ValueError, match="no attacks given"):
            evaluate({}, "query")
        with pytest.raises(ValueError, match="num_hard_negatives is 0"):
            evaluate({"pgd": one_step()}, "query", num_hard_negatives=0)
        with pytest.raises(ValueError, match=r"gallery_size is 13; expected a number in \[1, 12\]"):
            evaluate({"pgd": one_step()}, "query", gallery_size=13)
        with pytest.raises(ValueError, match="num_queries is 0"):
            evaluate({"pgd": one_step()}, "query", num_queries=0)

    def test_an_attack_on_both_modalities(self, evaluate):
        attack = Shift(0.0, 0.1)
        attack.threat_model = attack.threat_model.combined_with(Planted({}).threat_model)
        with pytest.raises(ValueError, match="attack 'joint' is on both modalities, but one side of a pair"):
            evaluate({"joint": attack}, "query")

    def test_a_query_without_a_wrong_answer(self, evaluate):
        with pytest.raises(
            ValueError, match="text_to_image: for query 0 the gallery of 1 holds right answers only"
        ):
            evaluate({"words": Planted({})}, "query", gallery_size=1)

    def test_an_attack_outside_its_threat_model(self, evaluate):
        with pytest.raises(ValueError, match=r"'shift' changed a picture by 0.035\d* \(linf\), its"):
            evaluate({"shift": Shift(0.07, epsilon=0.03)}, "query")
        with pytest.raises(
            ValueError, match=r"'words' changed 2 words of 'a dog' \(to 'two red'\), its threat"
        ):
            evaluate({"words": Planted({"a dog": "two red"}, max_changed_words=1)}, "gallery")
        with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
            evaluate({"shift": Shift(2.0, epsilon=1.0)}, "query")

    def test_cheap_scores_of_the_wrong_shape(self, evaluate):
        shortlist = Shortlist(3, lambda images, texts: np.zeros((len(images), len(texts))))
        with pytest.raises(ValueError, match=r"expected finite scores of shape .* texts by images"):
            evaluate({"words": Planted({})}, "query", shortlist=shortlist)
