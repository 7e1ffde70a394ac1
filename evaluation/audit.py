"""The audit of a robustness figure: 28 rules, each checked, and one verdict.

The rules are those that the literature asks of an evaluation (AutoAttack's flags, arXiv:2003.01690; Carlini
et al., arXiv:1902.06705; Athalye et al., arXiv:1802.00420; Tramer et al., arXiv:2002.08347; Pintor et al.,
arXiv:2106.09947) and what vision and language add. A failed *gate* refuses publication; a failed *flag* marks
the number.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from . import audit_rules as rules
from .audit_rules import Found, Status, by_tests
from .evidence import Evidence

Level: TypeAlias = Literal["gate", "flag", "tests"]
Verdict: TypeAlias = Literal["trusted", "not converged", "non-adaptive", "unreliable"]


@dataclass(frozen=True)
class Check:
    """One rule applied to one threat model.

    Attributes:
        rule: Its number, 1 to 28.
        name: What it asks.
        level: `"gate"`, `"flag"`, or `"tests"` where the project's own test suite answers for it.
        status: `"not measured"` counts as failed for a gate.
        detail: The figures.
    """

    rule: int
    name: str
    level: Level
    status: Status
    detail: str


@dataclass(frozen=True)
class Judgement:
    """What the checks say of a number.

    Attributes:
        verdict: `"trusted"`; `"not converged"`: a longer search still finds more; `"non-adaptive"`: nobody
            has attacked the defence itself, or said that there is none; `"unreliable"`: a gate or another
            flag failed. The worst one that applies.
        reasons: The failed checks, in words.
        publishable: Whether every gate passed.
        checks: All 28.
    """

    verdict: Verdict
    reasons: list[str]
    publishable: bool
    checks: list[Check]

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, ready for JSON."""
        return asdict(self)


def judge(evidence: Evidence) -> Judgement:
    """Apply all rules to what was measured under one threat model."""
    checks = [
        Check(number, name, level, *rule(evidence))
        for number, (name, level, rule) in enumerate(RULES, start=1)
    ]
    failed = [check for check in checks if check.status == "fail" or _missing_gate(check)]
    kinds = {_consequence(check) for check in failed}
    order: tuple[Verdict, ...] = ("unreliable", "non-adaptive", "not converged", "trusted")
    return Judgement(
        verdict=next(verdict for verdict in order if verdict in (*kinds, "trusted")),
        reasons=[f"rule {check.rule}, {check.name}: {check.detail}" for check in failed],
        publishable=not any(check.level == "gate" for check in failed),
        checks=checks,
    )


def _missing_gate(check: Check) -> bool:
    return check.level == "gate" and check.status == "not measured"


def _consequence(check: Check) -> Verdict:
    if check.rule in (13, 15):
        return "not converged"
    return "non-adaptive" if check.rule == 16 else "unreliable"


RULES: tuple[tuple[str, Level, Callable[[Evidence], Found]], ...] = (
    ("threat model declared", "gate", rules.declared),
    ("perturbations valid", "gate", rules.valid),
    ("survives 8 bits", "flag", rules.survives_8_bits),
    ("text end to end", "gate", rules.end_to_end_text),
    ("deterministic", "gate", rules.deterministic),
    ("independent of the batch", "gate", rules.batch_invariant),
    ("gradients are there", "flag", rules.gradients_are_there),
    ("losses rise", "flag", rules.losses_rise),
    ("a stronger attack is stronger", "gate", rules.stronger_is_stronger),
    ("ends of the scale", "gate", rules.ends_of_the_scale),
    ("white box is strongest", "flag", rules.white_box_is_strongest),
    ("iterations help", "gate", rules.iterations_help),
    ("converged", "flag", rules.converged),
    ("losses differ", "gate", rules.losses_differ),
    ("word search is strong", "flag", rules.search_is_strong),
    ("the defence was attacked", "flag", rules.defence_was_attacked),
    ("attacks not seen in training", "gate", rules.attacks_are_new),
    ("splits are apart", "gate", rules.splits_are_apart),
    ("metrics add up", "gate", rules.metrics_add_up),
    ("intervals and seeds", "gate", rules.statistics_are_stated),
    ("control run", "flag", rules.control_ran),
    ("loss surface is smooth", "flag", rules.surface_is_smooth),
    ("work is counted", "gate", rules.work_is_counted),
    ("meaning is kept", "flag", rules.meaning_is_kept),
    ("attacks pass their self-tests", "tests", by_tests("tests/attacks, tests/mutate_attacks.py")),
    (
        "no regression",
        "tests",
        by_tests("tests/evaluation/test_regression.py, and tests/attacks against torchattacks"),
    ),
    (
        "equal on two processes",
        "tests",
        by_tests("tests/trainers/test_two_processes.py, tests/evaluation/test_metric_modules.py"),
    ),
    ("artefacts are stored", "gate", rules.artefacts_are_stored),
)
