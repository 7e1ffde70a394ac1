"""One call from a model to its robustness: every attack of every threat model, audited."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmcl_hub.attacks.base import Attack
from rmcl_hub.attacks.threat_model import ThreatModel

from .adversarial_examples import AdversarialWriter
from .attack_loop import RobustnessResult
from .attack_plan import AttackPlan, plan_attacks
from .attack_suite import LossAttack
from .compare import compare_models
from .evidence import Setting, gather_evidence
from .file_overlap import PreparedSplits, file_overlap
from .outcomes import Outcome, load_outcomes, save_outcomes
from .protocol_data import UNNAMED, ProtocolEntry, check_same_protocol, describe_protocol
from .results import Comparison, write_atomically
from .robustness_record import EVALUATION_FILE, build_record, read_record
from .split_hygiene import Overlap, image_overlap
from .task_attack import attack_task
from .tasks import Task, build_task
from .victims import as_victim

OUTCOMES_FILE = "outcomes.parquet"


@dataclass
class Evaluation:
    """What `evaluate_robustness` measured.

    Attributes:
        record: JSON-ready numbers, checks and verdicts; its schema is `evaluation.schema.json`.
        outcomes: Every example under every attack.
    """

    record: dict[str, Any]
    outcomes: list[Outcome]

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json` and `outcomes.parquet`; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_outcomes(self.outcomes, folder / OUTCOMES_FILE)
        write_atomically(folder / EVALUATION_FILE, json.dumps(self.record, indent=1, allow_nan=False))
        return folder


def evaluate_robustness(
    model: Any,
    processor: Any,
    dataset: Any,
    task: str | Task,
    threat_models: Sequence[str | Path] | Mapping[str, ThreatModel],
    *,
    batch_size: int = 32,
    effort: str = "standard",
    max_examples: int | None = None,
    seed: int = 0,
    train_dataset: Any = None,
    protocol: ProtocolEntry | None = None,
    trained_with: Sequence[str] = (),
    defence: str | None = None,
    adaptive_attacks: Mapping[str, Attack | LossAttack] | None = None,
    control: str | Path | None = None,
    output_dir: str | Path | None = None,
    num_pairs: int = 2,
    name: str | None = None,
) -> Evaluation:
    """Attack a model under every threat model and audit the result.

    Per threat model the robust accuracy is that of the worst outcome per example over an ensemble of attacks
    (`attack_suite.build_suite`), so no number depends on the choice of one attack.

    Args:
        model: Of `rmcl_hub`, Transformers' ViLT, an image classifier, or a `Victim` of your own.
        processor: The processor that the model was trained with.
        dataset: Map-style data with the task's columns, see `tasks.build_task`.
        task: `"vqa"`, `"nlvr2"`, `"snli_ve"`, `"matching"`, `"mlm"`, `"image-classification"`, or a `Task` of
            your own.
        threat_models: Presets or YAML files (`ThreatModel.load`), or names of your own to threat models.
        batch_size: Examples per batch.
        effort: `"full"` (AutoAttack's 100 steps and 5000 queries), `"standard"` (half and a fifth of it) or
            `"quick"` (a fifth and a twenty-fifth).
        max_examples: A seeded random subset of this size; None takes all.
        seed: Of the subset and of the random attacks.
        train_dataset: What the model was trained on, rows or the `PreparedSplits` of the same corpus, to show
            that no image is in both. Without it the audit refuses publication.
        protocol: What the data are, as `load_protocol_data` says; None: rows of your own.
        trained_with: Names of the attacks that training or model selection used, such as `"pgd"`.
        defence: What the model does at test time against attacks, in words; `"none"` if nothing. Without it,
            and for a defence without `adaptive_attacks`, the verdict is `non-adaptive`.
        adaptive_attacks: Name to attack on what the defence would hide; they join the ensemble of every
            threat model that allows them.
        control: Folder of the evaluation of a control on the same examples, to compare with: paired bootstrap
            intervals and McNemar's test per threat model.
        output_dir: Where adversarial examples, outcomes and the record are written; without it nothing is
            stored, and the audit refuses publication.
        num_pairs: Attacked pairs to keep as pictures, per threat model.
        name: Of the model, for the report.

    Raises:
        ValueError: If the data are empty, the model is in training mode or random, a threat model is unknown
            or does not fit the model, a label is outside the head, or the control's protocol is another one.
            The message says what to do.
    """
    controlled = None if control is None else read_evaluation(control)
    task = task if isinstance(task, Task) else build_task(task, model, processor)
    plan = plan_attacks(
        as_victim(model, processor, task.name, defence),
        task,
        dataset,
        threat_models,
        effort=effort,
        batch_size=batch_size,
        max_examples=max_examples,
        seed=seed,
        adaptive=adaptive_attacks or {},
    )
    if controlled is not None:
        check_same_protocol(controlled.record["protocol"], protocol or UNNAMED)
        _check_control(controlled.record, plan)
    setting = Setting(
        task=task.name,
        effort=effort,
        trained_with=list(trained_with),
        defence=plan.victim.defence,
        adaptive=list(adaptive_attacks or {}),
        overlap=None if train_dataset is None else _overlap(train_dataset, plan.examples),
        stored=output_dir is not None,
        sampling=plan.sampling,
        control=None if controlled is None else _model_name(controlled.record),
        float32=all(parameter.dtype == torch.float32 for parameter in plan.victim.module.parameters()),
        protocol=protocol or UNNAMED,
    )
    result = _attack(plan, num_pairs, output_dir)
    evidence = gather_evidence(plan, result, setting)
    record = build_record(plan, len(dataset), setting, evidence, result)
    if name is not None:
        record["name"] = name
    evaluation = Evaluation(record, result.outcomes)
    if controlled is not None:
        record["comparisons"] = _compare(controlled, evaluation, seed)
    if output_dir:
        evaluation.save(output_dir)
    return evaluation


def _overlap(train: Any, examples: Any) -> Overlap:
    if isinstance(train, PreparedSplits):
        return file_overlap(train, examples)
    return image_overlap(train, examples)


def _attack(plan: AttackPlan, num_pairs: int, output_dir: str | Path | None) -> RobustnessResult:
    attacks = {
        plan.runs[threat][name]: attack
        for threat, suite in plan.suites.items()
        for name, attack in suite.items()
    }
    return attack_task(
        plan.victim,
        plan.examples,
        plan.task,
        attacks,
        batch_size=plan.batch_size,
        unions={threat: list(runs.values()) for threat, runs in plan.runs.items()},
        num_pairs=num_pairs,
        keep=AdversarialWriter(output_dir) if output_dir else None,
    )


def read_evaluation(folder: str | Path) -> Evaluation:
    """What `Evaluation.save` wrote.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is of another format.
    """
    return Evaluation(read_record(folder), load_outcomes(Path(folder) / OUTCOMES_FILE))


def _check_control(record: dict[str, Any], plan: AttackPlan) -> None:
    for name, threat in plan.threats.items():
        if record["threats"].get(name, {}).get("digest") != threat.digest:
            raise ValueError(
                f"the control was not evaluated under {name!r} ({threat}); evaluate it under the same threat "
                "models first."
            )


def _model_name(record: dict[str, Any]) -> str:
    model = record["model"]
    return f"{record.get('name', model['class'])}, parameters {model['digest']}"


def _compare(control: Evaluation, treated: Evaluation, seed: int) -> list[Comparison]:
    """Paired comparisons under every threat model of the second."""
    names = treated.record["threats"]
    sides = [[row for row in side.outcomes if row.attack in names] for side in (control, treated)]
    return compare_models(
        {seed: sides[0]},
        {seed: sides[1]},
        task=treated.record["task"],
        protocol=describe_protocol(treated.record["protocol"]),
        labels=("the control", "this model"),
    )
