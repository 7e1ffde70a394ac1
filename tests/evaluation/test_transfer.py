import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.word_swap import WordSwapAttack
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_suite import LossAttack
from rmcl_hub.evaluation.intervals import wilson_interval
from rmcl_hub.evaluation.outcomes import OVERALL
from rmcl_hub.evaluation.task_attack import attack_task, task_objective
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.transfer import TransferAttack, transfer_matrix
from rmcl_hub.evaluation.victims import Victim, as_victim
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

EPSILON = 0.05


def fgsm():
    return PGD(EPSILON, step_size=EPSILON, num_steps=1)


def random_pgd():
    return PGD(EPSILON, 0.02, 4, random_start=True, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def task(collate):
    return Task("toy", collate, VQA_COLUMNS)


@pytest.fixture
def toys(model):
    """Three toy models; each remembers how many rows it embedded."""

    def variant(seed):
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return other.eval()

    return {"one": model.eval(), "two": variant(2), "three": variant(3)}


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


class Plane(nn.Module):
    """Two classes, right and left of a plane in pixel space."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def victim(self):
        def logits(embedding, batch):
            return torch.stack([-embedding.sum(dim=1), embedding.sum(dim=1)], dim=1)

        return Victim(self, lambda batch: batch["pixel_values"].flatten(1) * self.weight, logits)


class TestTransferMatrix:
    def test_linear_models_follow_the_closed_form(self, rows, task):
        """FGSM on a plane moves every real pixel by epsilon along the sign of its weight."""
        generator = torch.Generator().manual_seed(5)
        weights = {name: torch.randn(60, generator=generator) for name in "abc"}
        weights["-a"] = -weights["a"]
        victims = {name: Plane(weight).victim() for name, weight in weights.items()}
        matrix = transfer_matrix(victims, None, rows, task, {"fgsm": fgsm()}, batch_size=5)
        batch = task.collate(rows)
        side = 2.0 * batch["labels"] - 1
        real = batch["pixel_mask"][:, None].expand_as(batch["pixel_values"]).flatten(1)
        for source in weights:
            step = 2 * EPSILON * side[:, None] * weights[source].sign() * real
            attacked = batch["pixel_values"].flatten(1) - step
            for target in weights:
                right = side * (batch["pixel_values"].flatten(1) @ weights[target]) > 0
                kept = right & (side * (attacked @ weights[target]) > 0)
                numbers = matrix["attacks"]["fgsm"]["matrix"][source][target]
                assert numbers["robust_accuracy"]["value"] == pytest.approx(kept.float().mean().item())
                success = 1 - (kept.sum() / right.sum()).item()
                assert numbers["attack_success_rate"]["value"] == pytest.approx(success)
                assert numbers["attack_success_rate"]["n"] == right.sum()
        cells = matrix["attacks"]["fgsm"]["matrix"]
        assert cells["a"]["a"]["attack_success_rate"]["value"] == 1.0
        assert cells["-a"]["a"]["attack_success_rate"]["value"] == 0.0  # it pushes the other way

    def test_diagonal_is_the_white_box_attack(self, toys, rows, task):
        attacks = {"pgd": random_pgd(), "margin": LossAttack(random_pgd(), "margin")}
        matrix = transfer_matrix(toys, None, rows, task, attacks, batch_size=5)
        for name, model in toys.items():
            alone = attack_task(
                model,
                rows,
                task,
                {"pgd": random_pgd(), "margin": LossAttack(random_pgd(), "margin")},
                batch_size=5,
            )
            for attack in attacks:
                found = matrix["attacks"][attack]["matrix"][name][name]
                assert found == alone.summary()[attack][OVERALL]
                cost = matrix["attacks"][attack]["cost"][name]
                expected = asdict(alone.cost[attack])
                assert (cost["forwards"], cost["backwards"]) == (expected["forwards"], expected["backwards"])
            assert matrix["clean_accuracy"][name] == alone.summary()["pgd"][OVERALL]["clean_accuracy"]

    def test_other_cells_are_the_transfer_attack(self, toys, rows, task):
        """Another road to the same numbers: the target attacked through the source."""
        for loss in ("cross-entropy", "distance"):
            matrix = transfer_matrix(
                toys, None, rows, task, {"pgd": LossAttack(random_pgd(), loss)}, batch_size=5
            )
            for source in toys:
                for target in toys.keys() - {source}:
                    attack = TransferAttack(LossAttack(random_pgd(), loss), as_victim(toys[source]))
                    alone = attack_task(toys[target], rows, task, {"pgd": attack}, batch_size=5).summary()
                    assert matrix["attacks"]["pgd"]["matrix"][source][target] == alone["pgd"][OVERALL]

    def test_attack_that_does_nothing_never_succeeds(self, toys, rows, task, shift_attack):
        matrix = transfer_matrix(toys, None, rows, task, {"nothing": shift_attack()}, batch_size=12)
        for row in matrix["attacks"]["nothing"]["matrix"].values():
            for target, numbers in row.items():
                assert numbers["attack_success_rate"]["value"] == 0.0
                assert numbers["robust_accuracy"]["value"] == matrix["clean_accuracy"][target]["value"]

    def test_twins_have_equal_rows_and_columns(self, toys, rows, task):
        models = {"one": toys["one"], "twin": copy.deepcopy(toys["one"]), "two": toys["two"]}
        cells = transfer_matrix(models, None, rows, task, {"pgd": random_pgd()}, batch_size=5)
        cells = cells["attacks"]["pgd"]["matrix"]
        assert cells["one"] == cells["twin"]
        for row in cells.values():
            assert row["one"] == row["twin"]

    def test_every_rate_has_its_wilson_interval(self, toys, rows, task):
        matrix = transfer_matrix(toys, None, rows, task, {"pgd": fgsm()}, batch_size=12)
        for row in matrix["attacks"]["pgd"]["matrix"].values():
            for numbers in row.values():
                rate = numbers["robust_accuracy"]
                assert rate["n"] == matrix["num_examples"] == 12
                low, high = wilson_interval(round(rate["value"] * 12), 12)
                assert (rate["low"], rate["high"]) == (low, high)
        assert json.loads(json.dumps(matrix)) == matrix

    def test_the_source_pays_once_however_many_targets(self, toys, rows, task):
        pgd = PGD(EPSILON, 0.02, 4)
        for number in (1, 3):
            models = dict(list(toys.items())[:number])
            matrix = transfer_matrix(models, None, rows, task, {"pgd": pgd}, batch_size=5)
            for cost in matrix["attacks"]["pgd"]["cost"].values():
                assert (cost["forwards"], cost["backwards"]) == (5, 4)

    def test_targets_are_asked_in_eval_mode_and_put_back(self, toys, rows, task):
        expected = transfer_matrix(toys, None, rows, task, {"pgd": fgsm()}, batch_size=5)
        for model in toys.values():
            model.train()
        again = transfer_matrix(toys, None, rows, task, {"pgd": fgsm()}, batch_size=5)
        assert again["attacks"]["pgd"]["matrix"] == expected["attacks"]["pgd"]["matrix"]
        assert all(model.training for model in toys.values())

    def test_no_models(self, rows, task):
        with pytest.raises(ValueError, match="no models given; pass at least one"):
            transfer_matrix({}, None, rows, task, {"pgd": fgsm()}, batch_size=5)

    def test_heads_with_other_answers(self, tiny_config, processor, rows):
        heads = {}
        for name, answers in (("one", ("red", "blue")), ("two", ("blue", "red"))):
            config = copy.deepcopy(tiny_config)
            config.id2label = dict(enumerate(answers))
            heads[name] = RMCLViltForQuestionAnswering(config)
        with pytest.raises(ValueError, match="the answers of 'two' are not those of 'one'"):
            transfer_matrix(heads, processor, rows, "vqa", {"pgd": fgsm()}, batch_size=5)


class TestTransferAttack:
    def test_it_searches_on_the_source_and_never_asks_the_target(self, toys, rows, task):
        batch = task.collate(rows)
        objective = task_objective(as_victim(toys["one"]), "margin")

        def target(batch):
            raise AssertionError("the target was asked")

        for source in (objective, as_victim(toys["one"])):
            attack = TransferAttack(LossAttack(random_pgd(), "margin"), source)
            found, expected = attack(batch, target), random_pgd()(batch, objective)
            assert torch.equal(found.batch["pixel_values"], expected.batch["pixel_values"])
            assert torch.equal(found.loss_before, expected.loss_before)
            assert torch.equal(found.loss_after, expected.loss_after)
            assert (found.forwards, found.backwards) == (expected.forwards, expected.backwards)

    def test_distance_is_from_the_sources_own_clean_embedding(self, toys, rows, task):
        batch = task.collate(rows)
        source = as_victim(toys["two"])
        with torch.no_grad():
            theirs, own = as_victim(toys["one"]).embed(batch), source.embed(batch)
        found = TransferAttack(LossAttack(random_pgd(), "distance"), source)(
            {**batch, "clean_embedding": theirs}, None
        )
        expected = random_pgd()({**batch, "clean_embedding": own}, task_objective(source, "distance"))
        assert torch.equal(found.batch["pixel_values"], expected.batch["pixel_values"])
        assert torch.equal(found.batch["clean_embedding"], theirs)
        assert found.forwards == expected.forwards + len(own)

    def test_threat_model_says_transfer(self, toys):
        attack = TransferAttack(fgsm(), as_victim(toys["one"]))
        assert attack.threat_model.access == "transfer"
        assert attack.threat_model.epsilon == EPSILON
        assert attack.threat_model.digest != fgsm().threat_model.digest

    def test_source_is_put_back(self, toys, rows, task):
        model = toys["one"].train()
        state = torch.get_rng_state()
        TransferAttack(random_pgd(), as_victim(model))(task.collate(rows), None)
        assert model.training
        assert model.dropout.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)

    def test_words_are_handed_over_with_their_encoding(self, tiny_config, tiny_tokenizer, tiny_batch):
        tiny_config.num_labels = 2
        model = RMCLViltForQuestionAnswering(tiny_config).eval()
        synonyms = SynonymTable({"small": [("tiny", 0.9)], "dog": [("puppy", 0.9)], "happy": [("glad", 0.9)]})
        batch = {**tiny_batch, "labels": torch.tensor([0, 1, 0, 1])}
        swap = WordSwapAttack(tiny_tokenizer, synonyms, max_change_share=1.0)
        found = TransferAttack(swap, as_victim(model))(batch, None)
        expected = swap(batch, task_objective(as_victim(model), "cross-entropy"))
        assert found.batch["text"] == expected.batch["text"] != batch["text"]
        assert torch.equal(found.batch["input_ids"], expected.batch["input_ids"])
        assert (found.loss_after > found.loss_before).any()
