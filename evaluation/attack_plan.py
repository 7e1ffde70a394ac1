"""What an evaluation attacks, and with what: settled, and checked, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcl_hub.attacks.base import Attack
from rmcl_hub.attacks.threat_model import ThreatModel

from .attack_suite import EFFORTS, Effort, LossAttack, Suite, SuiteInputs, build_suite
from .tasks import Task
from .victims import Victim


@dataclass(frozen=True)
class AttackPlan:
    """Which attacks run on which examples.

    Attributes:
        victim: The model.
        task: How rows become labelled batches.
        examples: The rows that are attacked, map-style.
        sampling: How they were drawn, in words.
        threats: Name to threat model.
        suites: Threat model to its attacks.
        runs: Threat model to attack to the name of its run.
        effort: How long the attacks search.
        inputs: What the attacks know of the model.
        batch_size: Examples per batch.
    """

    victim: Victim
    task: Task
    examples: Any
    sampling: str
    threats: Mapping[str, ThreatModel]
    suites: Mapping[str, Suite]
    runs: Mapping[str, Mapping[str, str]]
    effort: Effort
    inputs: SuiteInputs
    batch_size: int


def plan_attacks(
    victim: Victim,
    task: Task,
    dataset: Any,
    threat_models: Sequence[str | Path] | Mapping[str, ThreatModel],
    *,
    effort: str,
    batch_size: int,
    max_examples: int | None,
    seed: int,
    adaptive: Mapping[str, Attack | LossAttack],
) -> AttackPlan:
    """Settle an evaluation; arguments as in `robustness.evaluate_robustness`.

    Raises:
        ValueError: If they do not fit the model or each other.
    """
    threats = _named_threats(threat_models)
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; expected one of {', '.join(EFFORTS)}.")
    _check_model(victim, threats)
    examples = _subset(dataset, max_examples, seed)
    inputs = SuiteInputs(task.tokenizer, task.max_text_length, victim.image_mean, victim.image_std, seed)
    suites = {name: build_suite(threat, EFFORTS[effort], inputs) for name, threat in threats.items()}
    _add_adaptive(suites, threats, adaptive)
    return AttackPlan(
        victim=victim,
        task=task,
        examples=examples,
        sampling=_sampling(dataset, examples, seed),
        threats=threats,
        suites=suites,
        runs=shared_runs(threats, suites),
        effort=EFFORTS[effort],
        inputs=inputs,
        batch_size=batch_size,
    )


def shared_runs(threats: Mapping[str, ThreatModel], suites: Mapping[str, Suite]) -> dict[str, dict[str, str]]:
    """Threat model to attack to the name of its run.

    An attack on one modality runs once for a threat model on that modality and for one on both.
    """
    evaluated = {threat.digest: name for name, threat in threats.items()}
    runs: dict[str, dict[str, str]] = {}
    for name, threat in threats.items():
        runs[name] = {}
        for attack, entry in suites[name].items():
            home = name
            modality = entry.attack.threat_model.modality
            if threat.modality == "both" and modality != "both":
                home = evaluated.get(threat.part(modality).digest, name)
            runs[name][attack] = f"{home}/{attack}"
    return runs


def _named_threats(given: Sequence[str | Path] | Mapping[str, ThreatModel]) -> dict[str, ThreatModel]:
    if not given:
        raise ValueError("no threat models given; pass at least one, for instance ['linf-4', 'words-20pct'].")
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Path):
        given = [given]
    is_file = {name: Path(name).suffix in (".yaml", ".yml") for name in given}
    return {Path(name).stem if is_file[name] else str(name): ThreatModel.load(name) for name in given}


def _check_model(victim: Victim, threats: Mapping[str, ThreatModel]) -> None:
    if victim.module.training:
        raise ValueError(
            "the model is in training mode, where dropout and batch statistics make every answer "
            "random; call model.eval() first."
        )
    for name, threat in threats.items():
        if threat.modality != "image" and not victim.reads_text:
            raise ValueError(
                f"threat model {name!r} is on {threat.modality}, but {type(victim.module).__name__} reads no "
                "text; choose one on pixels, such as linf-4."
            )


def _subset(dataset: Any, max_examples: int | None, seed: int) -> Any:
    """A seeded random subset: the first N rows of a file are no sample of it."""
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples is {max_examples}; expected at least 1, or None for all.")
    if len(dataset) == 0:
        raise ValueError("the data set is empty; robustness of no example is undefined. Check the filters.")
    if max_examples is None or max_examples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_examples))


def _sampling(dataset: Any, examples: Any, seed: int) -> str:
    if len(examples) == len(dataset):
        return f"all {len(dataset)} examples"
    return f"a random {len(examples)} of {len(dataset)} examples, seed {seed}"


def _add_adaptive(
    suites: Mapping[str, Suite],
    threats: Mapping[str, ThreatModel],
    adaptive: Mapping[str, Attack | LossAttack],
) -> None:
    for name, given in adaptive.items():
        attack = given if isinstance(given, LossAttack) else LossAttack(given)
        allowed = [key for key, threat in threats.items() if threat.allows(attack.attack.threat_model)]
        if not allowed:
            raise ValueError(
                f"adaptive attack {name!r} ({attack.attack.threat_model}) is within none of the threat "
                f"models {', '.join(threats)}; give it the same norm and budget as one of them."
            )
        for key in allowed:
            if name in suites[key]:
                raise ValueError(f"there is an attack {name!r} in the ensemble already; rename yours.")
            suites[key][name] = attack
