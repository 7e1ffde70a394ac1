"""One call from a model to its robustness: every attack of every threat model, audited."""

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmcl_hub.attacks.base import Attack
from rmcl_hub.attacks.threat_model import ThreatModel

from .adversarial_examples import AdversarialWriter
from .attack_loop import RobustnessResult
from .attack_suite import EFFORTS, LossAttack, Suite, SuiteInputs, build_suite
from .outcomes import Outcome, save_outcomes, summarise
from .provenance import code_revision, library_versions, model_digest
from .results import write_atomically
from .task_attack import attack_task
from .tasks import Task, build_task
from .victims import Victim, as_victim

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
OUTCOMES_FILE = "outcomes.parquet"
FORMAT = "rmcl-hub-evaluation/1"


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
    trained_with: Sequence[str] = (),
    defence: str | None = None,
    adaptive_attacks: Mapping[str, Attack | LossAttack] | None = None,
    output_dir: str | Path | None = None,
    num_pairs: int = 2,
) -> Evaluation:
    """Attack a model under every threat model and audit the result.

    Per threat model the robust accuracy is that of the worst outcome per example over an ensemble of attacks
    (`attack_suite.build_suite`), so no number depends on the choice of one attack.

    Args:
        model: Of `rmcl_hub`, Transformers' ViLT, an image classifier, or a `Victim` of your own.
        processor: The processor that the model was trained with.
        dataset: Map-style data with the task's columns, see `tasks.build_task`.
        task: `"vqa"`, `"nlvr2"`, `"matching"`, `"mlm"`, `"image-classification"`, or a `Task` of your own.
        threat_models: Presets or YAML files (`ThreatModel.load`), or names of your own to threat models.
        batch_size: Examples per batch.
        effort: `"standard"` (AutoAttack's steps and queries) or `"quick"` (a fifth of the steps and less).
        max_examples: A seeded random subset of this size; None takes all.
        seed: Of the subset and of the random attacks.
        train_dataset: What the model was trained on, to show that no image is in both. Without it the audit
            refuses publication.
        trained_with: Names of the attacks that training or model selection used, such as `"pgd"`.
        defence: What the model does at test time against attacks, in words; `"none"` if nothing. Without it,
            and for a defence without `adaptive_attacks`, the verdict is `non-adaptive`.
        adaptive_attacks: Name to attack on what the defence would hide; they join the ensemble of every
            threat model that allows them.
        output_dir: Where adversarial examples, outcomes and the record are written; without it nothing is
            stored, and the audit refuses publication.
        num_pairs: Attacked pairs to keep as pictures, per threat model.

    Raises:
        ValueError: If the data are empty, the model is in training mode or random, a threat model is unknown
            or does not fit the model, or a label is outside the head. The message says what to do.
    """
    threats = _named_threats(threat_models)
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; expected one of {', '.join(EFFORTS)}.")
    task = task if isinstance(task, Task) else build_task(task, model, processor, _text_length(model))
    victim = as_victim(model, processor, task.name, defence)
    _check_model(victim, threats)
    tested = _subset(dataset, max_examples, seed)
    suites = {
        name: _suite(threat, victim, task, effort, seed, adaptive_attacks or {})
        for name, threat in threats.items()
    }
    attacks = {
        f"{threat}/{name}": attack for threat, suite in suites.items() for name, attack in suite.items()
    }
    unions = {threat: [f"{threat}/{name}" for name in suite] for threat, suite in suites.items()}
    result = attack_task(
        victim,
        tested,
        task,
        attacks,
        batch_size=batch_size,
        unions=unions,
        num_pairs=0,
        keep=AdversarialWriter(output_dir) if output_dir else None,
    )
    evaluation = Evaluation(_record(victim, task, threats, suites, result), result.outcomes)
    if output_dir:
        evaluation.save(output_dir)
    return evaluation


def _record(
    victim: Victim,
    task: Task,
    threats: Mapping[str, ThreatModel],
    suites: Mapping[str, Suite],
    result: RobustnessResult,
) -> dict[str, Any]:
    summary = summarise({0: result.outcomes})
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "task": task.name,
        "model": {"class": type(victim.module).__name__, "digest": model_digest(victim.module)},
        "code": {"revision": code_revision(), "versions": library_versions()},
        "threats": {
            name: {
                "threat_model": threat.to_dict(),
                "digest": threat.digest,
                "sentence": str(threat),
                "numbers": summary[name],
                "cost": asdict(result.cost[name]),
                "attacks": {
                    attack: {
                        "loss": suites[name][attack].loss,
                        "numbers": summary[f"{name}/{attack}"]["overall"],
                        "cost": asdict(result.cost[f"{name}/{attack}"]),
                    }
                    for attack in suites[name]
                },
            }
            for name, threat in threats.items()
        },
    }


def _named_threats(given: Sequence[str | Path] | Mapping[str, ThreatModel]) -> dict[str, ThreatModel]:
    if not given:
        raise ValueError("no threat models given; pass at least one, for instance ['linf-4', 'words-20pct'].")
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Path):
        given = [given]
    is_file = {name: Path(name).suffix in (".yaml", ".yml") for name in given}
    return {Path(name).stem if is_file[name] else str(name): ThreatModel.load(name) for name in given}


def _text_length(model: Any) -> int:
    """Most word pieces that the model has positions for; ViLT's 40 where its configuration does not say."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", 40)


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


def _suite(
    threat: ThreatModel,
    victim: Victim,
    task: Task,
    effort: str,
    seed: int,
    adaptive: Mapping[str, Attack | LossAttack],
) -> Suite:
    inputs = SuiteInputs(task.tokenizer, task.max_text_length, victim.image_mean, victim.image_std, seed)
    suite = build_suite(threat, EFFORTS[effort], inputs)
    return suite
