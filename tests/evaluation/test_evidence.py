"""What the audit measures: on which examples, and against what."""

import numpy as np
import pytest
import torch

from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation import evidence
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_plan import plan_attacks
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.task_attack import attack_task
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.victims import as_victim


@pytest.fixture
def plan(model, rows, collate, monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=4, square_queries=5, word_candidates=2))
    return plan_attacks(
        as_victim(model.eval()),
        Task("toy", collate, VQA_COLUMNS),
        rows,
        ["linf-1"],
        effort="quick",
        batch_size=3,
        max_examples=None,
        seed=5,
        adaptive={},
    )


def test_probes_look_at_a_random_subset_in_batches(plan, monkeypatch):
    monkeypatch.setattr(evidence, "PROBE_EXAMPLES", 7)
    data = evidence.probe_data(plan)
    order = np.random.default_rng(5).permutation(12)[:7]
    assert [row["question_id"] for rows in data.rows for row in rows] == [f"q{index}" for index in order]
    assert [len(batch["text"]) for batch in data.batches] == [3, 3, 1]


def test_the_longer_search_is_on_the_survivors_alone(plan, monkeypatch):
    threat = ThreatModel.load("linf-1")
    attacks = {"all": plan.suites["linf-1"]["fgsm"]}
    worst = attack_task(plan.victim, plan.examples, plan.task, attacks, batch_size=3).outcomes
    survivors = [row.id for row in worst if row.clean_correct and row.adversarial_correct]
    seen = []

    def record(victim, examples, task, suite, **options):
        seen.append(([row["question_id"] for row in examples], suite))
        return attack_task(victim, examples, task, suite, **options)

    monkeypatch.setattr(evidence, "attack_task", record)
    found = evidence.search_longer(plan, threat, worst)
    ((ids, suite),) = seen
    assert ids == survivors
    assert 0 < len(ids) < 12
    assert found["num_examples"] == len(ids)
    assert suite["apgd-margin"].attack.num_steps == 8
    assert suite["square"].attack.max_queries == 10
    assert not {"noise", "fgsm"} & set(suite)
    generators = [plan_suite["pgd"].attack.generator for plan_suite in (suite, plan.suites["linf-1"])]
    assert generators[0].initial_seed() != generators[1].initial_seed()


def test_nothing_left_to_search(plan):
    with torch.no_grad():
        plan.victim.module.head.weight.zero_()
        plan.victim.module.head.bias.copy_(torch.tensor([1.0, 0.0]))
    attacks = {"all": plan.suites["linf-1"]["fgsm"]}
    worst = attack_task(plan.victim, plan.examples, plan.task, attacks, batch_size=3).outcomes
    wrong = [row for row in worst if not row.clean_correct]
    assert evidence.search_longer(plan, ThreatModel.load("linf-1"), wrong) == {
        "newly_broken": 0,
        "num_examples": 0,
    }


def test_a_text_that_lost_a_number_is_counted(random_outcomes_of):
    from dataclasses import replace

    rows = random_outcomes_of(0, 1.0, {"words": 0.0}, num_examples=3)
    texts = [
        ("two red dogs", "two red hounds"),  # nothing protected changes
        ("two red dogs", "three red dogs"),
        ("the dog is red .", "the dog is blue ."),
    ]
    changed = [
        replace(row, text=before, adversarial_text=after)
        for row, (before, after) in zip(rows, texts, strict=True)
    ]
    assert evidence.changed_protected_words(changed) == 2
