"""The parts of a model card, as its template takes them: every number through `ResultsFile`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmcl_hub.evaluation.compare import RETENTION, measure_names
from rmcl_hub.evaluation.outcomes import OVERALL
from rmcl_hub.evaluation.protocol_data import check_same_protocol, describe_protocol, protocol_lines
from rmcl_hub.evaluation.results import Comparison
from rmcl_hub.evaluation.robustness_report import STATUSES, TASK_MEASURES

from .card_sources import CardSources, ResultsFile

DIRECTIONS = {"text_to_image": "text to picture", "image_to_text": "picture to text"}
RATES = ("clean_accuracy", "robust_accuracy", "attack_success_rate")


def audited_tables(sources: CardSources) -> Iterator[dict[str, Any]]:
    """One table per evaluation, so that no two protocols share one; the control's rows stand below ours.

    Raises:
        ValueError: If a number is missing, or the control fits no evaluation.
    """
    controls = {id(_evaluation_of(sources, control)): control for control in sources.of("control")}
    for file in sources.of("evaluation"):
        heading, *contamination = protocol_lines(file.get("task"), file.get("protocol"))
        control = controls.get(id(file))
        yield {
            "heading": heading,
            "contamination": contamination,
            "rows": [
                *_threat_rows(file, "this model"),
                *(_threat_rows(control, "control") if control else ()),
            ],
            "examples": file.get("data", "num_examples"),
            "sampling": file.get("data", "sampling"),
            "effort": _effort(file),
            "measures": list(_task_measures(file)),
            "threats": list(_threats(file)),
            "comparisons": [row["verdict"] for row in file.content.get("comparisons", ())],
            "file": file.name,
        }


def _evaluation_of(sources: CardSources, control: ResultsFile) -> ResultsFile:
    """The evaluation that a control's belongs to: same examples, protocol and threat models."""
    for file in sources.of("evaluation"):
        mine, other = file.content, control.content
        if mine["task"] == other["task"] and mine["data"]["digest"] == other["data"]["digest"]:
            check_same_protocol(mine["protocol"], other["protocol"])
            if mine["model"]["digest"] == other["model"]["digest"]:
                raise ValueError(f"{control.name} is about this model itself; give its control's evaluation.")
            return file
    raise ValueError(
        f"{control.name} is about other examples than every evaluation of this model; evaluate the control "
        "on the same task, data, subset and seed."
    )


def _threat_rows(file: ResultsFile, model: str) -> Iterator[dict[str, str]]:
    for name, threat in file.get("threats").items():
        numbers = {rate: file.rate("threats", name, "numbers", OVERALL, rate) for rate in RATES}
        refused = "" if threat["publishable"] else ", not to be published"
        yield {"model": model, "threat": name, "verdict": threat["verdict"] + refused, **numbers}


def _effort(file: ResultsFile) -> str:
    steps, queries, words = (
        file.get("settings", key) for key in ("apgd_steps", "square_queries", "word_candidates")
    )
    return (
        f"{file.get('settings', 'effort')}: {steps} steps of APGD, {queries} queries of Square, {words} "
        "substitutes per word"
    )


def _task_measures(file: ResultsFile) -> Iterator[dict[str, str]]:
    for name, threat in file.get("threats").items():
        for key, label in TASK_MEASURES.items():
            if key in threat:
                clean, robust = (
                    f"{100 * file.get('threats', name, key, when):.1f}" for when in ("clean", "robust")
                )
                yield {"threat": name, "measure": label, "clean": clean, "robust": robust}


def _threats(file: ResultsFile) -> Iterator[dict[str, Any]]:
    """Per threat model: what it allows, what the audit says, and what the attacks cost."""
    for name, threat in file.get("threats").items():
        statuses = Counter(check["status"] for check in threat["checks"])
        yield {
            "name": name,
            "sentence": threat["sentence"],
            "digest": threat["digest"],
            "verdict": threat["verdict"],
            "publishable": threat["publishable"],
            "reasons": threat["reasons"],
            "statuses": [statuses[status] for status in STATUSES],
            "attacks": ", ".join(threat["attacks"]),
            "cost": [file.get("threats", name, "cost", key) for key in ("forwards", "backwards", "seconds")],
        }


def experiment(sources: CardSources) -> dict[str, Any] | None:
    """What results.json says of this model and of the one it is compared with; None without the file.

    Raises:
        ValueError: If a number is missing, or there is no such model.
    """
    if not sources.of("results"):
        return None
    file = sources.of("results")[0]
    models, model = file.get("models"), sources.model
    if model not in models:
        raise ValueError(f"there is no model {model!r} in {file.name}, which holds {', '.join(models)}.")
    return {
        "name": models[model]["name"],
        "description": models[model]["description"],
        "models": list(models.values()),
        "tables": list(_comparison_tables(file, model)),
        "baselines": list(_baselines(file)),
        "retrieval": list(_retrieval_of_experiment(file, model)),
        "costs": list(_costs(file)),
        "seconds": {stage: file.get("seconds", stage) for stage in file.get("seconds")},
        "revision": {name: file.get("revision", name) for name in ("git", "data")},
        "versions": _versions(file.get("versions")),
        **{key: file.get(key) for key in ("summary", "seeds", "threat_models", "data", "notes", "config")},
    }


def _comparison_tables(file: ResultsFile, model: str) -> Iterator[dict[str, Any]]:
    """One per task and protocol of training, with both models and their difference."""
    groups: dict[tuple[str, str, str, str], list[tuple[int, Comparison]]] = {}
    for index, row in enumerate(file.get("comparisons")):
        if model in (row["control"], row["treated"]):
            place = (row["task"], row["protocol"], row["control"], row["treated"])
            groups.setdefault(place, []).append((index, row))
    for (task, protocol, control, treated), rows in groups.items():
        yield {
            "heading": ", ".join(filter(None, (task, protocol))),
            "models": [file.get("models", key, "name") for key in (control, treated)],
            "rows": [
                {
                    "attack": "none" if rate == "clean_accuracy" else row["attack"],
                    "measure": measure,
                    "rates": [file.rate(*_place(row, side), rate) for side in (control, treated)],
                    "difference": file.points("comparisons", index, "differences", rate),
                }
                for index, row in rows
                for rate, measure in measure_names(task).items()
                if rate != "clean_accuracy" or row is rows[0][1]  # the same under every attack
            ],
            "verdicts": [row["verdict"] for _, row in rows],
        }


def _place(row: Comparison, model: str) -> tuple[str, ...]:
    """Where the numbers of one side of a comparison stand."""
    part = (RETENTION,) if row["task"] == RETENTION else ("tasks", row["task"], row["protocol"])
    return ("models", model, *part, row["attack"], OVERALL)


def _baselines(file: ResultsFile) -> Iterator[str]:
    for task, baselines in file.get("baselines").items():
        for name in baselines:
            yield f"{task}, {name}: {100 * file.get('baselines', task, name):.1f} %"


def _costs(file: ResultsFile) -> Iterator[dict[str, Any]]:
    for attack in file.get("cost"):
        work = [file.get("cost", attack, key) for key in ("forwards", "backwards", "seconds")]
        yield {"attack": attack, "work": work}


def _retrieval_of_experiment(file: ResultsFile, model: str) -> Iterator[dict[str, Any]]:
    for gallery in file.get("models", model).get("retrieval", {}):
        for direction in DIRECTIONS:
            path = ("models", model, "retrieval", gallery, direction)
            yield from _recalls(file, path, gallery, direction, "none")


def retrieval_tables(sources: CardSources) -> Iterator[dict[str, Any]]:
    """One per record of `rmcl-hub retrieve`, whole and attacked galleries; a gallery's size in every row.

    Raises:
        ValueError: If a number is missing.
    """
    for file in sources.of("retrieval"):
        heading, *contamination = protocol_lines("retrieval", file.get("protocol"))
        attacked = file.content.get("attacked")
        yield {
            "heading": heading,
            "contamination": contamination,
            "rows": list(_gallery_rows(file)),
            "scorer": file.get("numbers", "scorer"),
            "forwards": file.get("numbers", "forwards"),
            "seconds": file.get("seconds"),
            "attacked": list(_attacked_rows(file)) if attacked else [],
            "side": attacked["side"] if attacked else "",
            "file": file.name,
        }


def _gallery_rows(file: ResultsFile) -> Iterator[dict[str, Any]]:
    for index, gallery in enumerate(file.get("numbers", "galleries")):
        name = f"{gallery['count']} x {gallery['size']:,} pictures"
        for direction in DIRECTIONS:
            yield from _recalls(file, ("numbers", "galleries", index, direction), name, direction, "none")


def _attacked_rows(file: ResultsFile) -> Iterator[dict[str, Any]]:
    for direction, numbers in file.get("attacked", "directions").items():
        path = ("attacked", "directions", direction)
        yield from _recalls(file, path, "", direction, "none")
        for threat in numbers["attacks"]:
            yield from _recalls(file, (*path, "attacks", threat), "", direction, threat, path)


def _recalls(
    file: ResultsFile,
    path: Sequence[str | int],
    gallery: str,
    direction: str,
    threat: str,
    sizes: Sequence[str | int] | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per cut-off; the sizes stand beside the clean numbers."""
    for k in file.get(*path, "recall"):
        yield {
            "recall": file.rate(*path, "recall", k),
            "gallery": gallery,
            "direction": DIRECTIONS[direction],
            "threat": threat,
            "size": file.get(*(sizes or path), "gallery_size"),
            "queries": file.get(*(sizes or path), "num_queries"),
            "k": k,
            "chance": f"{100 * file.get(*path, 'recall', k, 'chance'):.1f}",
        }


def data_lines(sources: CardSources) -> Iterator[str]:
    """What the evaluations tested on, and how far it is apart from the training data."""
    for file in sources.of("evaluation"):
        where = describe_protocol(file.get("protocol")) or "rows that a caller passed"
        overlap = file.content["data"]["overlap"]
        if overlap is None:
            yield f"{file.name}: {where}; the training data were not given, so nobody compared them."
            continue
        pixels, ids, test, train = (
            file.get("data", "overlap", key)
            for key in ("same_pixels", "same_ids", "num_test_images", "num_train_images")
        )
        yield (
            f"{file.name}: {where}, digest {file.get('data', 'digest')}; of {test:,} test pictures "
            f"{pixels:,} have the pixels and {ids:,} the id of one of the {train:,} training pictures."
        )


def makers(sources: CardSources) -> Iterator[dict[str, str]]:
    """With what each audited or ranked file was measured."""
    for file in sources.of("evaluation", "control", "retrieval"):
        yield {
            "file": file.name,
            "date": file.get("date"),
            "revision": file.get("code", "revision"),
            "versions": _versions(file.get("code", "versions")),
        }


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def training_attacks(sources: CardSources) -> list[str]:
    """Attacks that training used, as the evaluations were told."""
    named = (name for file in sources.of("evaluation") for name in file.content["settings"]["trained_with"])
    return list(dict.fromkeys(named))


def markdown(text: Any) -> str:
    """Text that is shown as it is, also in a cell of a table."""
    return " ".join(re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", str(text)).split())
