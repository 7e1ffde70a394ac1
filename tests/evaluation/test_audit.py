"""Every rule of the audit: passes on sound evidence, and fails, alone, on the planted fault."""

import copy
from dataclasses import replace

import pytest

from rmcl_hub.attacks.noise import RandomNoise
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.square import SquareAttack
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.attack_suite import LossAttack
from rmcl_hub.evaluation.audit import RULES, judge
from rmcl_hub.evaluation.evidence import Evidence, Setting
from rmcl_hub.evaluation.outcomes import AttackCost, Outcome
from rmcl_hub.evaluation.protocol_data import UNNAMED

NUM_EXAMPLES = 200
EPSILON = 4 / 255


def rows_of(attack, broken, threat):
    """The first 100 examples are right; the attack breaks the first `broken` of them."""
    text = threat.modality != "image"
    return [
        Outcome(
            id=f"q{index}",
            cluster=f"c{index}",
            question_type="all",
            attack=attack,
            found_by=attack,
            label=1,
            clean_prediction=int(index < 100),
            adversarial_prediction=int(broken <= index < 100),
            clean_correct=index < 100,
            adversarial_correct=broken <= index < 100,
            loss_before=1.0,
            loss_after=2.0,
            correct_8bit=broken <= index < 100,
            delta_linf=EPSILON if threat.modality != "text" else 0.0,
            delta_l2=1.0 if threat.modality != "text" else 0.0,
            words_changed=int(text),
            num_words=5,
            text="is the big boat red",
            adversarial_text="is the large boat red" if text else "is the big boat red",
        )
        for index in range(NUM_EXAMPLES)
    ]


@pytest.fixture
def evidence():
    """A sound evaluation of a joint threat model."""
    threat = ThreatModel.load("joint-linf-4-words-1")
    attack = LossAttack(PGD(EPSILON, 0.01, 1))
    suite = {
        "noise": LossAttack(RandomNoise(EPSILON)),
        "fgsm": attack,
        "pgd": attack,
        "apgd-ce": attack,
        "apgd-margin": LossAttack(attack.attack, "margin"),
        "square": LossAttack(SquareAttack(EPSILON, 10), "margin"),
        "geometry": attack,
    }
    strength = {
        "noise": 0,
        "fgsm": 10,
        "pgd": 30,
        "apgd-ce": 40,
        "apgd-margin": 40,
        "square": 20,
        "geometry": 5,
    }
    return Evidence(
        threat=threat,
        suite=suite,
        outcomes={
            **{name: rows_of(name, broken, threat) for name, broken in strength.items()},
            "all": rows_of("all", 40, threat),
        },
        costs=dict.fromkeys(["all", *suite], AttackCost(10.0, 5.0, 0.1)),
        setting=Setting(
            task="vqa",
            effort="quick",
            trained_with=["pgd"],
            defence="none",
            adaptive=[],
            overlap={"num_train_images": 9, "num_test_images": 5, "same_pixels": 0, "same_ids": 0},
            stored=True,
            sampling="all 200 examples",
            control=None,
            float32=True,
        ),
        probes={
            "answer_spread": 0.0,
            "batch_dependence": 1e-6,
            "gradients": {"zero_share": 0.0, "probabilities": False, "num_examples": 50},
            "num_classes": 10,
            "changed_at_zero": 0,
            "surface": {"agree_share": 1.0},
            "curve": {"epsilons": [0.0, EPSILON], "attack_alone": [0.5, 0.3], "num_examples": 64},
            "at_one": {"attacked": 0.0, "other_images": 0.05},
            "seeds": [0.3, 0.31, 0.29],
            "words_oracle": {"greedy": 0.25, "exhaustive": 0.25, "num_examples": 16},
            "longer": {"newly_broken": 0, "num_examples": 60},
        },
    )


def change(evidence, attack, rows=1, **fields):
    """Rewrite fields of the first rows of an attack."""
    group = evidence.outcomes[attack]
    evidence.outcomes[attack] = [replace(row, **fields) for row in group[:rows]] + list(group[rows:])


def in_setting(evidence, **fields):
    evidence.setting = replace(evidence.setting, **fields)


def overlap(evidence, **counts):
    in_setting(evidence, overlap={**evidence.setting.overlap, **counts})


def break_more(evidence, attack, broken):
    evidence.outcomes[attack] = rows_of(attack, broken, evidence.threat)


# rule, verdict, publishable, what is planted
FAULTS = [
    (2, "unreliable", False, lambda e: change(e, "pgd", delta_linf=8 / 255)),
    (2, "unreliable", False, lambda e: change(e, "geometry", words_changed=2)),
    (2, "unreliable", False, lambda e: change(e, "pgd", loss_after=float("nan"))),
    (3, "unreliable", True, lambda e: change(e, "all", rows=40, correct_8bit=True)),
    (5, "unreliable", False, lambda e: e.probes.update(answer_spread=1e-3)),
    (6, "unreliable", False, lambda e: e.probes.update(batch_dependence=0.1)),
    (6, "unreliable", False, lambda e: in_setting(e, float32=False)),
    (7, "unreliable", True, lambda e: e.probes["gradients"].update(zero_share=0.02)),
    (7, "unreliable", True, lambda e: e.probes["gradients"].update(probabilities=True)),
    (8, "unreliable", True, lambda e: change(e, "pgd", rows=11, loss_after=1.0)),
    (9, "unreliable", False, lambda e: e.probes["curve"].update(attack_alone=[0.3, 0.5])),
    (10, "unreliable", False, lambda e: e.probes.update(changed_at_zero=1)),
    (10, "unreliable", False, lambda e: e.probes.update(at_one={"attacked": 0.2, "other_images": 0.05})),
    (10, "unreliable", False, lambda e: e.probes.update(at_one={"attacked": 0.5, "other_images": 0.5})),
    (13, "not converged", True, lambda e: e.probes["longer"].update(newly_broken=1)),
    (
        14,
        "unreliable",
        False,
        lambda e: e.suite.update({n: replace(a, loss="margin") for n, a in e.suite.items()}),
    ),
    (15, "not converged", True, lambda e: e.probes["words_oracle"].update(exhaustive=0.2)),
    (16, "non-adaptive", True, lambda e: in_setting(e, defence=None)),
    (16, "non-adaptive", True, lambda e: in_setting(e, defence="JPEG")),
    (17, "unreliable", False, lambda e: in_setting(e, trained_with=list(e.suite))),
    (18, "unreliable", False, lambda e: overlap(e, same_pixels=1)),
    (18, "unreliable", False, lambda e: overlap(e, same_ids=1)),
    (18, "unreliable", False, lambda e: in_setting(e, overlap=None)),
    (18, "unreliable", False, lambda e: in_setting(e, protocol={**UNNAMED, "contamination": "seen before"})),
    (19, "unreliable", False, lambda e: change(e, "all", rows=40, clean_prediction=0)),
    (20, "unreliable", False, lambda e: e.probes.update(seeds=[0.3])),
    (22, "unreliable", True, lambda e: e.probes["surface"].update(agree_share=0.9)),
    (23, "unreliable", False, lambda e: e.costs.update(pgd=AttackCost(0.0, 0.0, 0.1))),
    (24, "unreliable", True, lambda e: change(e, "all", adversarial_text="is the big boat blue")),
    (28, "unreliable", False, lambda e: in_setting(e, stored=False)),
]


def test_sound_evidence_is_trusted(evidence):
    judgement = judge(evidence)
    assert judgement.reasons == []
    assert (judgement.verdict, judgement.publishable) == ("trusted", True)
    assert [check.rule for check in judgement.checks] == list(range(1, 29))
    assert len(RULES) == 28


@pytest.mark.parametrize(("rule", "verdict", "publishable", "plant"), FAULTS)
def test_a_planted_fault_fails_its_rule_and_no_other(evidence, rule, verdict, publishable, plant):
    evidence = copy.deepcopy(evidence)
    plant(evidence)
    judgement = judge(evidence)
    failed = {check.rule for check in judgement.checks if check.status in ("fail", "not measured")}
    assert failed == {rule}
    assert (judgement.verdict, judgement.publishable) == (verdict, publishable)
    assert judgement.reasons[0].startswith(f"rule {rule}, ")


def test_a_defence_that_nobody_named_is_told_from_one_that_nobody_attacked(evidence):
    in_setting(evidence, defence=None)
    assert "nobody has said what the model does" in judge(evidence).reasons[0]
    in_setting(evidence, defence="JPEG")
    assert "defence: JPEG; adaptive attacks: none" in judge(evidence).reasons[0]


def test_black_box_that_beats_white_box(evidence):
    """Square breaks 45, of which all others but the ensemble know 40."""
    break_more(evidence, "square", 45)
    break_more(evidence, "all", 45)
    judgement = judge(evidence)
    assert [check.rule for check in judgement.checks if check.status == "fail"] == [11]
    assert "break 2.5 % that" in judgement.reasons[0]


@pytest.mark.parametrize(("extra", "status"), [(1, "pass"), (2, "fail")])
def test_one_example_is_no_evidence_against_the_white_box(evidence, extra, status):
    break_more(evidence, "square", 40 + extra)
    break_more(evidence, "all", 40 + extra)
    assert judge(evidence).checks[10].status == status


def test_iterations_that_do_worse_than_one_step(evidence):
    break_more(evidence, "fgsm", 40)
    judgement = judge(evidence)
    assert [check.rule for check in judgement.checks if check.status == "fail"] == [12]
    assert "pgd breaks 30, fgsm 40" in judgement.reasons[0]


def test_an_ensemble_that_misses_what_a_part_found(evidence):
    break_more(evidence, "all", 39)
    judgement = judge(evidence)
    assert [check.rule for check in judgement.checks if check.status == "fail"] == [12]
    assert "the ensemble misses examples of apgd-ce, apgd-margin" in judgement.reasons[0]


def test_the_worst_verdict_counts_and_all_reasons_are_given(evidence):
    in_setting(evidence, defence=None)
    evidence.probes["longer"]["newly_broken"] = 9
    assert judge(evidence).verdict == "non-adaptive"
    assert len(judge(evidence).reasons) == 2
    evidence.probes["answer_spread"] = 1.0
    assert judge(evidence).verdict == "unreliable"


def test_pixels_and_words_are_judged_where_they_change(evidence):
    def skipped(threat):
        few = copy.deepcopy(evidence)
        few.threat = threat
        few.outcomes = {name: rows_of(name, 30, threat) for name in few.outcomes}
        return {check.rule for check in judge(few).checks if check.status == "not applicable"}

    assert skipped(evidence.threat.part("image")) == {4, 15, 21, 24}
    assert skipped(evidence.threat.part("text")) == {3, 9, 21, 22}


def test_an_attack_on_words_that_moves_nothing_is_none(evidence):
    evidence.threat = evidence.threat.part("text")
    evidence.outcomes = {name: rows_of(name, 30, evidence.threat) for name in evidence.outcomes}
    assert judge(evidence).checks[7].status == "pass"
    change(evidence, "all", rows=NUM_EXAMPLES, words_changed=0)
    assert [check.rule for check in judge(evidence).checks if check.status == "fail"] == [8]


def test_convergence_is_counted_over_all_examples(evidence):
    """Half a point of 200 examples is one of them; of 401 examples, one is less."""
    evidence.probes["longer"]["newly_broken"] = 1
    assert judge(evidence).verdict == "not converged"
    evidence.outcomes["all"] = [
        replace(row, id=f"{row.id}-{part}") for part in range(3) for row in evidence.outcomes["all"]
    ]
    assert judge(evidence).checks[12].status == "pass"


@pytest.mark.parametrize("overlap_is_known", [True, False])
def test_a_contaminated_protocol_is_named_in_the_reasons(evidence, overlap_is_known):
    in_setting(evidence, protocol={**UNNAMED, "contamination": "all test pictures are trained on"})
    if not overlap_is_known:
        in_setting(evidence, overlap=None)
    judgement = judge(evidence)
    assert not judgement.publishable
    (reason,) = judgement.reasons
    assert reason.startswith(
        "rule 18, splits are apart: contaminated protocol: all test pictures are trained on;"
    )


def test_how_training_pictures_were_compared_is_told(evidence):
    overlap(evidence, how="file by file with 5 of 9 training rows, by id with all")
    detail = judge(evidence).checks[17].detail
    assert (
        "ids are in the training data too (file by file with 5 of 9 training rows, by id with all);" in detail
    )
