"""A Hugging Face model card written from `results.json` and nothing else."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from rmcl_hub.evaluation.compare import MEASURES, RETENTION, measure_names
from rmcl_hub.evaluation.outcomes import OVERALL, AttackNumbers, Rate
from rmcl_hub.evaluation.results import (
    Comparison,
    Difference,
    ModelEntry,
    Results,
    check_fields,
    write_atomically,
)

CARD_FILE = "README.md"  # the name under which the Hub shows it
TEMPLATE = "rmcl_vilt.md"
DATASET = "openpairs"


def write_card(
    results: Results, folder: str | Path, *, model: str = "rmcl", repo_id: str | None = None
) -> Path:
    """Write the model card of one of the compared models into its folder, whole or not at all.

    Args:
        results: As in `results.json`.
        folder: The model's folder.
        model: Key of the model in `results["models"]`.
        repo_id: What readers load: a Hub id; the folder's name without one.

    Raises:
        ValueError: If a number that the card needs is missing; the message names it.
        OSError: If the folder cannot be written.
    """
    card = render_card(results, model=model, repo_id=repo_id or Path(folder).name)
    return write_atomically(Path(folder) / CARD_FILE, str(card))


def render_card(results: Results, *, model: str, repo_id: str) -> ModelCard:
    """Fill the template; see `write_card`.

    Raises:
        ValueError: If a number that the card needs is missing; the message names it.
    """
    check_fields(results)
    if model not in results["models"]:
        raise ValueError(
            f"there is no model {model!r} in the results; they hold {', '.join(results['models'])}."
        )
    entry = results["models"][model]
    comparisons = [row for row in results["comparisons"] if row["treated"] == model]
    metadata = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["rmcl", "vilt", "adversarial-robustness", "contrastive-learning", "vision-and-language"],
        model_name=entry["name"],
        eval_results=list(_eval_results(entry)),
    )
    template = files("rmcl_hub.model_cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    # Markdown, not HTML: the texts are the project's own, and the Hub sanitises what it shows.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    body = environment.from_string(template).render(
        model_name=entry["name"],
        description=entry["description"],
        repo_id=repo_id,
        summary=results["summary"],
        models=results["models"].values(),
        seeds=results["seeds"],
        tables=list(_tables(results, comparisons)),
        verdicts=[row["verdict"] for row in comparisons],
        retrieval=list(_retrieval_rows(entry)),
        threat_models=results["threat_models"],
        data=[
            f"{part}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
            for part, counts in results["data"].items()
        ],
        notes=results["notes"],
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        revision={name: _require(results["revision"], name, f"revision.{name}") for name in ("git", "data")},
        config=json.dumps(results["config"], indent=2),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def _require(mapping: Any, key: str, path: str) -> Any:
    if mapping.get(key) is None:
        raise ValueError(
            f"the model card needs {path}, which the results lack; run that part of the evaluation first."
        )
    return mapping[key]


def _numbers(entry: ModelEntry, row: Comparison) -> AttackNumbers:
    attacks: Any = entry
    path = [RETENTION] if row["task"] == RETENTION else ["tasks", row["task"], row["protocol"]]
    for key in [*path, row["attack"], OVERALL]:
        attacks = _require(
            attacks, key, f"models.{entry['name']}.{'.'.join([*path, row['attack'], OVERALL])}"
        )
    return attacks


def _tables(results: Results, comparisons: list[Comparison]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for row in comparisons:
        groups.setdefault((row["task"], row["protocol"]), []).append(row)
    for place, rows in groups.items():
        control, treated = (
            _require(results["models"], rows[0][side], f"models.{rows[0][side]}")
            for side in ("control", "treated")
        )
        yield {
            "heading": ", ".join(filter(None, place)),
            "control": control["name"],
            "treated": treated["name"],
            "rows": [
                {
                    "attack": "none" if field == "clean_accuracy" else row["attack"],
                    "measure": measure,
                    "control": _rate(_require(_numbers(control, row), field, f"{row['attack']}.{field}")),
                    "treated": _rate(_require(_numbers(treated, row), field, f"{row['attack']}.{field}")),
                    "difference": _points(row["differences"][field]),
                }
                for row in rows
                for field, measure in measure_names(row["task"]).items()
                if field != "clean_accuracy" or row is rows[0]  # the same under every attack
            ],
        }


def _retrieval_rows(entry: ModelEntry) -> Iterator[dict[str, Any]]:
    for gallery, numbers in entry.get("retrieval", {}).items():
        for direction in ("text_to_image", "image_to_text"):
            for k, recall in numbers[direction]["recall"].items():
                yield {
                    "gallery": f"{gallery}, {direction.replace('_', ' ')}",
                    "size": numbers[direction]["gallery_size"],
                    "k": k,
                    "recall": _rate(recall),
                    "chance": f"{100 * recall['chance']:.1f}",
                }


def _eval_results(entry: ModelEntry) -> Iterator[EvalResult]:
    """What the Hub shows beside the card and leaderboards read: every overall figure that is defined."""
    for task, protocols in entry["tasks"].items():
        for protocol, attacks in protocols.items():
            for attack, strata in attacks.items():
                for field, measure in MEASURES.items():
                    rate = _require(strata[OVERALL], field, f"{task}.{protocol}.{attack}.{field}")
                    is_repeated = field == "clean_accuracy" and attack != next(iter(attacks))
                    if rate["value"] is None or is_repeated:
                        continue
                    yield EvalResult(
                        task_type="visual-question-answering",
                        dataset_type=DATASET,
                        dataset_name=f"{DATASET}, {task}, {protocol}",
                        dataset_split="test",
                        metric_type=field,
                        metric_name=measure if field == "clean_accuracy" else f"{measure} ({attack})",
                        metric_value=round(rate["value"], 4),
                    )


def _rate(rate: Rate) -> str:
    if rate["value"] is None:
        return "n/a"
    return f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return "n/a"
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
