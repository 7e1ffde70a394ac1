"""`results.json` to one self-contained `report.html`: no network, no script, pictures inside."""

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from .charts import bar_chart, line_chart
from .compare import RETENTION, measure_names
from .outcomes import OVERALL, AttackNumbers
from .results import Comparison, Example, ModelEntry, Results, check_fields, write_atomically

REPORT_FILE = "report.html"
TEMPLATE_FILE = "report_template.html"
CONCLUSIONS = {
    "better": "more robust",
    "worse": "less robust",
    "none": "no clear difference",
    "unclear": "measures disagree",
}


def write_report(results: Results, folder: str | Path) -> Path:
    """Write `report.html` into a folder, whole or not at all.

    Args:
        results: As in `results.json`, see `results.Results`.
        folder: Created if need be.

    Returns:
        The path of the report.

    Raises:
        ValueError: If a field of the layout is missing.
        OSError: If the folder cannot be written.
    """
    check_fields(results)
    return write_atomically(Path(folder) / REPORT_FILE, render_report(results))


def render_report(results: Results) -> str:
    """The page as a string; every text of the results is escaped."""
    models = results["models"]
    return report_template(TEMPLATE_FILE).render(
        results=results,
        conclusions=CONCLUSIONS,
        tables=list(_tables(results)),
        bars=list(_bars(models)),
        retrieval=list(_retrieval_rows(models)),
        model_names=[model["name"] for model in models.values() if "retrieval" in model],
        curves=[{"title": curve["title"], "svg": line_chart(curve)} for curve in results["curves"]],
        examples=_grouped_examples(results),
        strata=list(_strata(models)),
        strengths=[
            {"label": f"{models[key]['name']}, {place}, {attack}", "numbers": numbers[OVERALL]}
            for key, place, attacks in _evaluations(models)
            for attack, numbers in attacks.items()
        ],
        flat_data={
            f"{part}: {name}": count
            for part, counts in results["data"].items()
            for name, count in counts.items()
        },
        seconds={stage: f"{seconds:.0f}" for stage, seconds in results["seconds"].items()},
        config=json.dumps(results["config"], indent=2),
    )


@cache
def report_template(name: str) -> Template:
    """A template of this folder; whatever it prints is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.globals.update(percent=percent, signed=signed, measure_names=measure_names)
    return environment.get_template(name)


def word_difference(clean: str, attacked: str) -> list[tuple[str, str]]:
    """Words of two sentences as runs of ("same" | "del" | "ins", words)."""
    before, after = clean.split(), attacked.split()
    runs: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            runs.append(("same", " ".join(before[a:b])))
            continue
        runs += [
            (name, " ".join(words)) for name, words in (("del", before[a:b]), ("ins", after[c:d])) if words
        ]
    return runs


def percent(share: float) -> str:
    """A share in per cent, with one decimal."""
    return f"{100 * share:.1f}"


def signed(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "n/a" if difference is None else f"{100 * difference:+.1f}".replace("-", "\u2212")


def _evaluations(
    models: Mapping[str, ModelEntry],
) -> Iterator[tuple[str, str, dict[str, dict[str, AttackNumbers]]]]:
    """(model key, "task, protocol", attack -> stratum -> numbers) of every evaluation."""
    for key, model in models.items():
        for task, protocols in model["tasks"].items():
            for protocol, attacks in protocols.items():
                yield key, f"{task}, {protocol}", attacks
        if "retention" in model:
            yield key, RETENTION, model["retention"]


def _tables(results: Results) -> Iterator[dict[str, Any]]:
    """One table per task, protocol and pair of models, from the comparisons."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for row in results["comparisons"]:
        groups.setdefault((row["task"], row["protocol"], row["control"], row["treated"]), []).append(row)
    for (task, protocol, control, treated), comparisons in groups.items():
        entries = [results["models"][control], results["models"][treated]]
        yield {
            "heading": ", ".join(filter(None, [task, protocol])),
            "control": entries[0]["name"],
            "treated": entries[1]["name"],
            "rows": _table_rows(comparisons, [_attacks(entry, task, protocol) for entry in entries]),
        }


def _attacks(model: ModelEntry, task: str, protocol: str) -> dict[str, dict[str, AttackNumbers]]:
    if task != RETENTION:
        return model["tasks"][task][protocol]
    if "retention" not in model:
        raise ValueError(
            f"{model['name']} is compared by retention, but its entry has no 'retention' numbers."
        )
    return model["retention"]


def _table_rows(
    comparisons: list[Comparison], sides: list[dict[str, dict[str, AttackNumbers]]]
) -> list[dict[str, Any]]:
    names = measure_names(comparisons[0]["task"])

    def row(comparison: Comparison, field: str) -> dict[str, Any]:
        control, treated = (side[comparison["attack"]][OVERALL][field] for side in sides)
        return {
            "attack": None,
            "measure": names[field],
            "control": control,
            "treated": treated,
            "difference": comparison["differences"][field],
        }

    rows = [row(comparisons[0], "clean_accuracy")]  # the same under every attack
    for comparison in comparisons:
        rows.append({"attack": comparison["attack"]})
        rows += [row(comparison, field) for field in ("robust_accuracy", "attack_success_rate")]
    return rows


def _bars(models: Mapping[str, ModelEntry]) -> Iterator[dict[str, Any]]:
    """Robust accuracy of all models, one diagram per evaluation; the first group is clean accuracy."""
    by_place: dict[str, dict[str, dict[str, dict[str, AttackNumbers]]]] = {}
    for key, place, attacks in _evaluations(models):
        by_place.setdefault(place, {})[key] = attacks
    for place, of_models in by_place.items():
        names = [models[key]["name"] for key in of_models]
        attacks = list(next(iter(of_models.values())))
        groups = {
            "clean": [_interval(numbers[attacks[0]], "clean_accuracy") for numbers in of_models.values()]
        }
        for attack in attacks:
            groups[attack] = [_interval(numbers[attack], "robust_accuracy") for numbers in of_models.values()]
        yield {
            "caption": place,
            "svg": bar_chart(groups, names, RETENTION if place == RETENTION else "accuracy"),
        }


def _interval(numbers: dict[str, AttackNumbers], field: str) -> tuple[float, float, float]:
    rate = numbers[OVERALL][field]
    return rate["value"], rate["low"], rate["high"]


def _retrieval_rows(models: Mapping[str, ModelEntry]) -> Iterator[dict[str, Any]]:
    entries = [model["retrieval"] for model in models.values() if "retrieval" in model]
    for gallery, first in entries[0].items() if entries else ():
        for direction in ("text_to_image", "image_to_text"):
            for k, rate in first[direction]["recall"].items():
                yield {
                    "label": f"{gallery}, {direction.replace('_', ' ')}",
                    "size": first[direction]["gallery_size"],
                    "k": k,
                    "rates": [entry[gallery][direction]["recall"][k] for entry in entries],
                    "chance": rate["chance"],
                }


def _strata(models: Mapping[str, ModelEntry]) -> Iterator[dict[str, Any]]:
    for key, place, attacks in _evaluations(models):
        rows = [
            {"stratum": stratum, "attack": attack, "numbers": numbers}
            for attack, strata in attacks.items()
            for stratum, numbers in strata.items()
            if stratum != OVERALL
        ]
        yield {
            "heading": f"{models[key]['name']}: {place}",
            "rows": sorted(rows, key=lambda row: row["stratum"]),
        }


def _grouped_examples(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Examples of each model, task and protocol, in the order of the file."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in results["examples"]:
        model = results["models"][example["model"]]["name"]
        heading = ", ".join(filter(None, [model, example["task"], example["protocol"]]))
        groups.setdefault(heading, []).append(_example(example))
    return groups


def _example(example: Example) -> dict[str, Any]:
    answers = example["answers"]
    return {
        **example,
        "words": word_difference(example["text"], example["adversarial_text"]),
        "fooled": example["adversarial_prediction"] != example["label"],
        "right": answers[example["label"]],
        "clean_answer": answers[example["clean_prediction"]],
        "adversarial_answer": answers[example["adversarial_prediction"]],
        "caption": f"{example['attack']}; largest pixel change {255 * example['delta_linf']:.2f}/255",
    }
