"""One call from a model to its robustness: every attack of every threat model, audited."""

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, frozen
from rmcl_hub.attacks.threat_model import ThreatModel

from .adversarial_examples import AdversarialWriter
from .attack_loop import RobustnessResult, batches
from .attack_suite import EFFORTS, LossAttack, Suite, SuiteInputs, build_suite
from .audit import judge
from .compare import compare_models
from .evidence import Evidence, ProbeData, Setting, probe_model, probe_threat, search_longer
from .outcomes import OVERALL, AttackCost, Outcome, load_outcomes, save_outcomes, summarise
from .provenance import batch_digest, code_revision, library_versions, model_digest
from .results import write_atomically
from .split_hygiene import image_overlap
from .task_attack import attack_task
from .tasks import Task, build_task
from .victims import Victim, as_victim

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
OUTCOMES_FILE = "outcomes.parquet"
FORMAT = "rmcl-hub-evaluation/1"
PROBE_EXAMPLES = 64
"""Examples behind the probes of the audit; the longer search looks at all."""


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
    control: str | Path | None = None,
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
        effort: `"full"` (AutoAttack's 100 steps and 5000 queries), `"standard"` (half and a fifth of it) or
            `"quick"` (a fifth and a twenty-fifth).
        max_examples: A seeded random subset of this size; None takes all.
        seed: Of the subset and of the random attacks.
        train_dataset: What the model was trained on, to show that no image is in both. Without it the audit
            refuses publication.
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

    Raises:
        ValueError: If the data are empty, the model is in training mode or random, a threat model is unknown
            or does not fit the model, or a label is outside the head. The message says what to do.
    """
    threats = _named_threats(threat_models)
    controlled = None if control is None else _control_outcomes(control, threats)
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; expected one of {', '.join(EFFORTS)}.")
    task = task if isinstance(task, Task) else build_task(task, model, processor)
    victim = as_victim(model, processor, task.name, defence)
    _check_model(victim, threats)
    tested = _subset(dataset, max_examples, seed)
    inputs = SuiteInputs(task.tokenizer, task.max_text_length, victim.image_mean, victim.image_std, seed)
    suites = {name: build_suite(threat, EFFORTS[effort], inputs) for name, threat in threats.items()}
    _add_adaptive(suites, threats, adaptive_attacks or {})
    runs = _runs(threats, suites)
    result = attack_task(
        victim,
        tested,
        task,
        {runs[threat][name]: attack for threat, suite in suites.items() for name, attack in suite.items()},
        batch_size=batch_size,
        unions={threat: list(runs[threat].values()) for threat in threats},
        num_pairs=num_pairs,
        keep=AdversarialWriter(output_dir) if output_dir else None,
    )
    data = _probe_data(victim, tested, task, batch_size)
    setting = Setting(
        task=task.name,
        num_classes=victim.predict(data.batches[0]).shape[-1],
        trained_with=list(trained_with),
        defence=victim.defence,
        adaptive=list(adaptive_attacks or {}),
        overlap=None if train_dataset is None else image_overlap(train_dataset, tested),
        stored=output_dir is not None,
        sampling=_sampling(dataset, tested, seed),
        control=None if control is None else str(control),
        float32=all(parameter.dtype == torch.float32 for parameter in victim.module.parameters()),
    )
    shared = probe_model(victim, task, data)
    evidence = {
        name: Evidence(threat, suites[name], *_of(result, name, runs[name]), setting)
        for name, threat in threats.items()
    }
    for name, threat in tqdm(threats.items(), desc="audit", unit="threat model"):
        survivors = [
            index for index, row in enumerate(evidence[name].outcomes["all"]) if row.adversarial_correct
        ]
        evidence[name].probes = {
            **shared,
            **probe_threat(victim, task, threat, EFFORTS[effort], data),
            "longer": search_longer(
                victim, task, threat, EFFORTS[effort], inputs, tested, survivors, batch_size
            ),
        }
    record = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "task": task.name,
        "answers": list(task.answers),
        "model": {"class": type(victim.module).__name__, "digest": model_digest(victim.module)},
        "data": {
            "num_examples": len(tested),
            "num_available": len(dataset),
            "sampling": setting.sampling,
            "digest": batch_digest(task.collate([row]) for row in tested),
            "overlap": setting.overlap,
        },
        "code": {"revision": code_revision(), "versions": library_versions()},
        "settings": {
            "effort": effort,
            **asdict(EFFORTS[effort]),
            "batch_size": batch_size,
            "seed": seed,
            "trained_with": setting.trained_with,
            "defence": setting.defence,
            "adaptive_attacks": setting.adaptive,
        },
        "threats": {name: _threat_record(name, found, result) for name, found in evidence.items()},
    }
    if controlled is not None:
        treated = [row for row in result.outcomes if row.attack in threats]
        record["comparisons"] = compare_models(
            {seed: controlled},
            {seed: treated},
            task=task.name,
            protocol="",
            labels=("the control", "this model"),
        )
    evaluation = Evaluation(record, result.outcomes)
    if output_dir:
        evaluation.save(output_dir)
    return evaluation


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


def _probe_data(victim: Victim, tested: Any, task: Task, batch_size: int) -> ProbeData:
    """The first batches; they are random, for the data are a random subset."""
    rows, prepared = [], []
    with frozen(victim.module):
        for chosen, batch in batches(victim, tested, task.collate, min(batch_size, PROBE_EXAMPLES)):
            rows.append(chosen)
            prepared.append(batch)
            if sum(map(len, rows)) >= PROBE_EXAMPLES:
                break
    return ProbeData(rows, prepared)


def _runs(threats: Mapping[str, ThreatModel], suites: Mapping[str, Suite]) -> dict[str, dict[str, str]]:
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


def _of(
    result: RobustnessResult, threat: str, runs: Mapping[str, str]
) -> tuple[dict[str, list[Outcome]], dict[str, AttackCost]]:
    """Outcomes and costs of one threat model by the names of its attacks, the ensemble under `"all"`."""
    named = {"all": threat, **runs}
    rows = {name: [row for row in result.outcomes if row.attack == run] for name, run in named.items()}
    return rows, {name: result.cost[run] for name, run in named.items()}


def _threat_record(name: str, evidence: Evidence, result: RobustnessResult) -> dict[str, Any]:
    summaries = {
        attack: summarise({0: [replace(row, attack=attack) for row in rows]})[attack]
        for attack, rows in evidence.outcomes.items()
    }
    return {
        "threat_model": evidence.threat.to_dict(),
        "digest": evidence.threat.digest,
        "sentence": str(evidence.threat),
        **judge(evidence).to_dict(),
        "numbers": summaries["all"],
        "cost": asdict(evidence.costs["all"]),
        "attacks": {
            attack: {
                "loss": evidence.suite[attack].loss,
                "threat_model": evidence.suite[attack].attack.threat_model.to_dict(),
                "numbers": summaries[attack][OVERALL],
                "cost": asdict(evidence.costs[attack]),
            }
            for attack in evidence.suite
        },
        "probes": evidence.probes,
        "pairs": [pair for pair in result.pairs if pair["attack"] == name],
    }


def _control_outcomes(folder: str | Path, threats: Mapping[str, ThreatModel]) -> list[Outcome]:
    record = read_record(folder)
    for name, threat in threats.items():
        theirs = record["threats"].get(name, {}).get("digest")
        if theirs != threat.digest:
            raise ValueError(
                f"the control in {folder} was not evaluated under {name!r} ({threat}); evaluate it under the "
                "same threat models first."
            )
    return [row for row in load_outcomes(Path(folder) / OUTCOMES_FILE) if row.attack in threats]


def _sampling(dataset: Any, tested: Any, seed: int) -> str:
    if len(tested) == len(dataset):
        return f"all {len(dataset)} examples"
    return f"a random {len(tested)} of {len(dataset)} examples, seed {seed}"


def _named_threats(given: Sequence[str | Path] | Mapping[str, ThreatModel]) -> dict[str, ThreatModel]:
    if not given:
        raise ValueError("no threat models given; pass at least one, for instance ['linf-4', 'words-20pct'].")
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Path):
        given = [given]
    is_file = {name: Path(name).suffix in (".yaml", ".yml") for name in given}
    return {Path(name).stem if is_file[name] else str(name): ThreatModel.load(name) for name in given}


def read_record(folder: str | Path) -> dict[str, Any]:
    """The `evaluation.json` of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another format.
    """
    path = Path(folder) / EVALUATION_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; run `rmcl-hub evaluate --output-dir {folder}` first."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} has format {record.get('format')!r}, expected {FORMAT!r}; evaluate again.")
    return record


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
