"""Measured numbers in the forms that the Hub reads: `model-index`, `.eval_results/*.yaml` and `eval.yaml`.

Only numbers whose audit lets them be published go in; the others stay in the card, beside their verdict. What
the Hub shows of `.eval_results` is up to the Hub: it draws a leaderboard on the page of a benchmark dataset
only for datasets that it has put on a list of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult

from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.compare import MEASURES
from rmcl_hub.evaluation.outcomes import OVERALL
from rmcl_hub.evaluation.protocol_data import EMBEDDED, ProtocolEntry, describe_protocol

from .card_sources import CardSources, ResultsFile

EVAL_RESULTS_FILE = f".eval_results/{EMBEDDED}.yaml"
BENCHMARK_TASKS = ("vqa", "nlvr2")
BENCHMARK_SPLIT = "test"
BENCHMARK_THREATS = ("linf-4", "words-20pct", "typos-1", "joint-linf-4-words-20pct")
HUB_TASKS = {"vqa": "visual-question-answering"}  # others have no name there


@dataclass(frozen=True)
class Published:
    """One number that may be published.

    Attributes:
        file: Where it was measured.
        task: Name of the task.
        protocol: On what.
        measure: `clean_accuracy`, `robust_accuracy` or `attack_success_rate`.
        threat: Name of the threat model; None for clean accuracy.
        digest: Of the threat model, or empty.
        value: In per cent, with two decimals.
        notes: Examples, effort, interval and verdict.
        num_examples: Behind it.
        date: Of the measurement, ISO 8601.
    """

    file: str
    task: str
    protocol: ProtocolEntry
    measure: str
    threat: str | None
    digest: str
    value: float
    notes: str
    num_examples: int
    date: str

    @property
    def name(self) -> str:
        """For readers."""
        return MEASURES[self.measure] + (f" ({self.threat})" if self.threat else "")


def published_numbers(sources: CardSources) -> list[Published]:
    """Every number that passed its gates; of two that mean the same, the one over more examples.

    Raises:
        ValueError: If a number is missing.
    """
    found: dict[tuple[str, ...], Published] = {}
    for file in sources.of("evaluation"):
        for number in _published_of(file):
            key = (number.task, describe_protocol(number.protocol), number.measure, number.digest)
            if key not in found or number.num_examples > found[key].num_examples:
                found[key] = number
    return list(found.values())


def _published_of(file: ResultsFile) -> Iterator[Published]:
    """Clean accuracy is the same under every threat model; it stands with the first that passes."""
    clean = True
    for name, threat in file.get("threats").items():
        if not threat["publishable"]:
            continue
        for measure in MEASURES:
            is_clean = measure == "clean_accuracy"
            if is_clean and not clean:
                continue
            rate = file.get("threats", name, "numbers", OVERALL, measure)
            if rate["value"] is None:
                continue
            yield Published(
                file=file.name,
                task=file.get("task"),
                protocol=file.get("protocol"),
                measure=measure,
                threat=None if is_clean else name,
                digest="" if is_clean else threat["digest"],
                value=round(100 * file.get("threats", name, "numbers", OVERALL, measure, "value"), 2),
                notes=f"95 % interval [{100 * rate['low']:.2f}, {100 * rate['high']:.2f}]; "
                f"{file.get('data', 'sampling')}; effort {file.get('settings', 'effort')}; "
                f"verdict {threat['verdict']}",
                num_examples=file.get("data", "num_examples"),
                date=file.get("date"),
            )
        clean = False


def model_index(sources: CardSources) -> list[EvalResult]:
    """For the metadata of the card."""
    namespace = _namespace(sources.repo_id)
    return [
        EvalResult(
            task_type=HUB_TASKS.get(number.task, number.task),
            task_name=number.task,
            dataset_type=_dataset_id(number.protocol, namespace),
            dataset_name=describe_protocol(number.protocol) or "rows of the evaluator",
            dataset_split=" + ".join(number.protocol["splits"]) or None,
            metric_type=number.measure,
            metric_name=number.name,
            metric_value=number.value,
            metric_args={"notes": number.notes, **({"threat_model": number.digest} if number.threat else {})},
        )
        for number in published_numbers(sources)
    ]


def eval_results_yaml(sources: CardSources) -> str | None:
    """`.eval_results/openpairs.yaml`: one entry per task of the benchmark that `benchmark_yaml` declares.

    Returns:
        None if there is none: no number may be published or belongs to the benchmark, or nobody has said in
        whose namespace the benchmark lies.
    """
    namespace = _namespace(sources.repo_id)
    entries = [
        {
            "dataset": {"id": f"{namespace}/{EMBEDDED}", "task_id": task},
            "value": number.value,
            "date": number.date,
            "notes": number.notes,
        }
        for number in published_numbers(sources)
        if (task := _benchmark_task(number)) is not None
    ]
    return _dump(entries) if namespace and entries else None


def benchmark_yaml() -> str:
    """`eval.yaml` for the repository of openpairs: what models may report, task by task.

    Attack success is left out, because it follows from the other two and is better when lower.
    """
    return _dump(
        {
            "name": "openpairs: robustness of vision-and-language models",
            "description": "Accuracy before and under attack on drawings of concepts that are not trained "
            "on, in per cent: the worst outcome of every example over an ensemble of attacks.",
            "evaluation_framework": "rmcl-hub",
            "tasks": [
                {"id": _task_id(task, measure, threat), "config": task, "split": BENCHMARK_SPLIT}
                for task in BENCHMARK_TASKS
                for measure, threat in _benchmark_measures()
            ],
        }
    )


def _benchmark_measures() -> list[tuple[str, str | None]]:
    return [("clean_accuracy", None), *(("robust_accuracy", threat) for threat in BENCHMARK_THREATS)]


def _benchmark_task(number: Published) -> str | None:
    """The task id of a number of the benchmark; a threat model that only has the name of one is none."""
    protocol = number.protocol
    if number.task not in BENCHMARK_TASKS or (number.measure, number.threat) not in _benchmark_measures():
        return None
    if protocol["name"] != EMBEDDED or protocol["splits"] != [BENCHMARK_SPLIT]:
        return None
    if number.threat is not None and ThreatModel.load(number.threat).digest != number.digest:
        return None
    return _task_id(number.task, number.measure, number.threat)


def _task_id(task: str, measure: str, threat: str | None) -> str:
    return "_".join(filter(None, (task, threat, measure)))


def _namespace(repo_id: str) -> str | None:
    return repo_id.split("/")[0] if "/" in repo_id else None


def _dataset_id(protocol: ProtocolEntry, namespace: str | None) -> str:
    """A Hub id where there is one, else the name of the corpus."""
    on_hub = re.match(r"hf://datasets/([^/]+/[^/@]+)", protocol["location"] or "")
    if on_hub:
        return on_hub[1]
    return f"{namespace}/{EMBEDDED}" if namespace and protocol["name"] == EMBEDDED else protocol["corpus"]


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
