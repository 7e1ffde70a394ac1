"""Layout of `evaluation.json`: what was measured, of what, with what, and how far it can be believed."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .attack_loop import RobustnessResult
from .attack_plan import AttackPlan
from .audit import judge
from .evaluation_schema import check_record
from .evidence import Evidence, Setting
from .metrics import nlvr2_consistency
from .outcomes import OVERALL, correctness, summarise
from .provenance import batch_digest, code_revision, library_versions, model_digest

EVALUATION_FILE = "evaluation.json"
FORMAT = "rmcl-hub-evaluation/2"


def build_record(
    plan: AttackPlan,
    num_available: int,
    setting: Setting,
    evidence: Mapping[str, Evidence],
    result: RobustnessResult,
) -> dict[str, Any]:
    """The record of an evaluation; its schema is `evaluation.schema.json`.

    Args:
        plan: What was attacked.
        num_available: Examples that the plan's were drawn from.
        setting: What the evaluation was told.
        evidence: Per threat model.
        result: For the pictures.
    """
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "task": plan.task.name,
        "protocol": {**setting.protocol},
        "answers": list(plan.task.answers),
        "model": {"class": type(plan.victim.module).__name__, "digest": model_digest(plan.victim.module)},
        "data": {
            "num_examples": len(plan.examples),
            "num_available": num_available,
            "sampling": plan.sampling,
            "digest": batch_digest(plan.task.collate([row]) for row in plan.examples),
            "overlap": setting.overlap,
        },
        "code": {"revision": code_revision(), "versions": library_versions()},
        "settings": {
            "effort": setting.effort,
            **asdict(plan.effort),
            "batch_size": plan.batch_size,
            "seed": plan.inputs.seed,
            "trained_with": list(setting.trained_with),
            "defence": setting.defence,
            "adaptive_attacks": list(setting.adaptive),
        },
        "threats": {
            name: _threat_record(name, found, plan.runs[name], result, len(plan.examples) == num_available)
            for name, found in evidence.items()
        },
    }


def _threat_record(
    name: str, evidence: Evidence, runs: Mapping[str, str], result: RobustnessResult, complete: bool
) -> dict[str, Any]:
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
        **_task_measures(evidence, complete),
        "cost": asdict(evidence.costs["all"]),
        "attacks": {
            attack: {
                "run": runs[attack],
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


def _task_measures(evidence: Evidence, complete: bool) -> dict[str, dict[str, float]]:
    """What papers on the task report beside accuracy, clean and under the worst attack of each example.

    An attacker who would help leaves the example alone, as in robust accuracy.
    """
    worst = evidence.outcomes["all"]
    measures: dict[str, dict[str, float]] = {}
    scores = [(row.clean_score, row.adversarial_score) for row in worst]
    if None not in scores[0]:
        pairs = np.array(scores, dtype=float)  # (examples, 2)
        clean, robust = pairs[:, 0].mean(), pairs.min(axis=1).mean()
        measures["vqa_accuracy"] = {"clean": float(clean), "robust": float(robust)}
    # Of a sample some pairs of a sentence are missing, which would look consistent.
    if evidence.setting.protocol["corpus"] == "nlvr2" and complete:
        right = correctness(worst)
        identifiers = [row.id for row in worst]
        measures["consistency"] = {
            "clean": nlvr2_consistency(right[:, 0], identifiers),
            "robust": nlvr2_consistency(right.all(axis=1), identifiers),
        }
    return measures


def read_record(folder: str | Path) -> dict[str, Any]:
    """The `evaluation.json` of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it does not fit the schema.
    """
    path = Path(folder) / EVALUATION_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; run `rmcl-hub evaluate --output-dir {folder}` first."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    check_record(record)
    return record
