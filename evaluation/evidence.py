"""What the audit of one threat model looks at, measured after the attacks have run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Batch, frozen
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import protected_words
from rmcl_hub.attacks.threat_model import Norm, ThreatModel
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap

from . import probes
from .attack_loop import RobustnessResult, Rows, batches
from .attack_plan import AttackPlan
from .attack_suite import SANITY, Effort, Suite, SuiteInputs, build_suite
from .epsilon_curve import curve_of_batches
from .outcomes import AttackCost, Outcome
from .protocol_data import UNNAMED, ProtocolEntry
from .split_hygiene import Overlap
from .task_attack import attack_task, task_objective
from .tasks import Task
from .victims import Victim

CURVE_SHARES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
ORACLE_EXAMPLES = 16
MAX_ENDPOINT_STEPS = 40
PROBE_EXAMPLES = 64
"""Examples behind the probes; the longer search looks at all."""


@dataclass(frozen=True)
class Setting:
    """What the evaluation was told and what it read.

    Attributes:
        task: Its name.
        effort: Its name.
        trained_with: Attacks that training or model selection used.
        defence: What the model does at test time, see `Victim`.
        adaptive: Names of the attacks on the defence.
        overlap: Pictures shared with the training data; None if those were not given.
        stored: Whether adversarial examples and outcomes are on disk.
        sampling: How the examples were drawn, in words.
        control: Which model was evaluated on the same examples to compare with, if there is one.
        float32: Whether all parameters are float32.
        protocol: Which data the numbers are about, and what is wrong with them.
    """

    task: str
    effort: str
    trained_with: Sequence[str]
    defence: str | None
    adaptive: Sequence[str]
    overlap: Overlap | None
    stored: bool
    sampling: str
    control: str | None
    float32: bool
    protocol: ProtocolEntry = field(default_factory=UNNAMED.copy)


@dataclass
class Evidence:
    """One threat model's measurements.

    Attributes:
        threat: The threat model.
        suite: The attacks that ran.
        outcomes: Attack name to its outcomes, in one order; under `"all"` the worst per example.
        costs: Attack name to its mean work.
        setting: Of the whole evaluation.
        probes: Numbers of `probes`, `epsilon_curve` and the longer search; what was not measured is absent.
    """

    threat: ThreatModel
    suite: Suite
    outcomes: Mapping[str, Sequence[Outcome]]
    costs: Mapping[str, AttackCost]
    setting: Setting
    probes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeData:
    """The examples that probes look at, rows and batches."""

    rows: Sequence[Rows]
    batches: Sequence[Batch]


def probe_model(victim: Victim, task: Task, data: ProbeData) -> dict[str, Any]:
    """Probes that do not depend on the threat model."""
    few = list(data.rows[0][:8])
    return {
        "answer_spread": probes.answer_spread(victim, data.batches[0]),
        "batch_dependence": probes.batch_dependence(victim, task.collate, few, data.batches[0]),
        "gradients": probes.gradient_health(victim, data.batches),
        "num_classes": victim.predict(data.batches[0]).shape[-1],
        "changed_at_zero": probes.changed_at_zero(victim, data.batches),
    }


def probe_threat(
    victim: Victim, task: Task, threat: ThreatModel, effort: Effort, data: ProbeData
) -> dict[str, Any]:
    """Probes of one threat model: of its pixels, of its words, or of both."""
    found: dict[str, Any] = {}
    if threat.modality != "text":
        found |= _probe_pixels(victim, threat, effort, data)
    if threat.modality != "image" and threat.word_edits is not None:
        found["words_oracle"] = _words_oracle(victim, task, threat, effort, data.batches)
    return found


def _probe_pixels(victim: Victim, threat: ThreatModel, effort: Effort, data: ProbeData) -> dict[str, Any]:
    epsilon, norm = threat.epsilon, threat.norm
    assert epsilon is not None
    assert norm is not None
    pixels: dict[str, Any] = {"image_mean": victim.image_mean, "image_std": victim.image_std}
    steps = min(effort.apgd_steps, MAX_ENDPOINT_STEPS)
    # Radius one: any picture at all. Steps of a quarter cross the range of a pixel several times.
    anything = PGD(1.0, 0.25, steps, random_start=True, **pixels)
    return {
        "surface": probes.loss_surface(victim, data.batches, epsilon, norm),
        "curve": curve_of_batches(victim, data.batches, _radii(epsilon, norm), norm, min(steps, 20)),
        "at_one": {
            "attacked": probes.robust_share(victim, data.batches, anything, task_objective(victim, "margin")),
            "other_images": probes.other_images(victim, data.batches),
        },
        "seeds": probes.restart_spread(victim, data.batches, epsilon, norm),
    }


def _radii(epsilon: float, norm: Norm) -> list[float]:
    """Radii of the curve around the threat model's; an linf radius ends at one."""
    largest = 1.0 if norm == "linf" else float("inf")
    return sorted({min(share * epsilon, largest) for share in CURVE_SHARES})


def _words_oracle(
    victim: Victim, task: Task, threat: ThreatModel, effort: Effort, batches: Sequence[Batch]
) -> dict[str, Any]:
    """Greedy searches against all combinations of at most two words, on a few examples."""
    text = threat.part("text") if threat.modality == "both" else threat
    inputs = SuiteInputs(task.tokenizer, task.max_text_length)
    suite = build_suite(text, effort, inputs)
    greedy: Any = suite["words-gradient"].attack
    oracle = ExhaustiveWordSwap(
        task.tokenizer,
        greedy.substitutes,
        max_changed_words=min(text.max_changed_words or 2, 2),
        max_change_share=text.max_change_share,
        max_candidates=greedy.max_candidates,
        min_cosine=greedy.min_cosine,
        max_length=task.max_text_length,
    )
    few = [probes.first_rows(batches[0], ORACLE_EXAMPLES)]
    margin = task_objective(victim, "margin")
    shares = {
        name: probes.robust_share(victim, few, attack.attack, task_objective(victim, attack.loss))
        for name, attack in suite.items()
    }
    return {
        "greedy": min(shares.values()),
        "exhaustive": probes.robust_share(victim, few, oracle, margin),
        "num_examples": len(few[0]["text"]),
    }


def search_longer(plan: AttackPlan, threat: ThreatModel, worst: Sequence[Outcome]) -> dict[str, Any]:
    """Twice the steps and queries and other random starts, on the examples that nothing has broken yet.

    Args:
        plan: Of the first search.
        threat: One of its threat models.
        worst: The worst outcome of each of the plan's examples, in their order.
    """
    survivors = [
        plan.examples[index]
        for index, row in enumerate(worst)
        if row.clean_correct and row.adversarial_correct
    ]
    if not survivors:
        return {"newly_broken": 0, "num_examples": 0}
    again = replace(plan.inputs, seed=plan.inputs.seed + 1)
    suite = build_suite(threat, plan.effort.doubled(), again)
    suite = {name: attack for name, attack in suite.items() if name not in SANITY}
    result = attack_task(
        plan.victim, survivors, plan.task, suite, batch_size=plan.batch_size, unions={"all": list(suite)}
    )
    broken = sum(row.attack == "all" and not row.adversarial_correct for row in result.outcomes)
    return {"newly_broken": broken, "num_examples": len(survivors)}


def changed_protected_words(outcomes: Sequence[Outcome]) -> int:
    """Examples whose attack removed a number, a negation, or another word that changes what a text claims."""
    protected = protected_words()

    def kept(text: str) -> list[str]:
        return [word for word in text.lower().split() if word.strip(".,!?'\"") in protected]

    return sum(kept(row.text) != kept(row.adversarial_text) for row in outcomes)


def gather_evidence(plan: AttackPlan, result: RobustnessResult, setting: Setting) -> dict[str, Evidence]:
    """Evidence of every threat model of a plan whose attacks have run."""
    data = probe_data(plan)
    shared = probe_model(plan.victim, plan.task, data)
    evidence = {}
    for name, threat in tqdm(plan.threats.items(), desc="audit", unit="threat model"):
        rows, costs = _of(result, name, plan.runs[name])
        evidence[name] = Evidence(threat, plan.suites[name], rows, costs, setting)
        evidence[name].probes = {
            **shared,
            **probe_threat(plan.victim, plan.task, threat, plan.effort, data),
            "longer": search_longer(plan, threat, rows["all"]),
        }
    return evidence


def probe_data(plan: AttackPlan) -> ProbeData:
    """Batches of a random subset: the first rows of a file are no sample of it."""
    order = np.random.default_rng(plan.inputs.seed).permutation(len(plan.examples))
    chosen = [plan.examples[int(index)] for index in order[:PROBE_EXAMPLES]]
    with frozen(plan.victim.module):
        pairs = list(batches(plan.victim, chosen, plan.task.collate, min(plan.batch_size, PROBE_EXAMPLES)))
    return ProbeData([rows for rows, _ in pairs], [batch for _, batch in pairs])


def _of(
    result: RobustnessResult, threat: str, runs: Mapping[str, str]
) -> tuple[dict[str, list[Outcome]], dict[str, AttackCost]]:
    """Outcomes and costs of one threat model by the names of its attacks, the ensemble under `"all"`."""
    named = {"all": threat, **runs}
    rows = {name: [row for row in result.outcomes if row.attack == run] for name, run in named.items()}
    return rows, {name: result.cost[run] for name, run in named.items()}
