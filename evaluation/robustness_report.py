"""`evaluation.json` to one self-contained `evaluation.html`: no network, no script, pictures inside."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .audit_rules import broken
from .charts import bar_chart, line_chart
from .evaluation_schema import check_record
from .outcomes import OVERALL, Outcome
from .protocol_data import ProtocolEntry, describe_protocol
from .report import CONCLUSIONS, report_template, word_difference
from .results import write_atomically
from .rule_explanations import EXPLANATIONS

ROBUSTNESS_REPORT_FILE = "evaluation.html"
TEMPLATE_FILE = "robustness_report_template.html"
MAX_TEXTS = 8
# Shape and word say it; the colour only helps.
VERDICTS = {
    "trusted": ("\u2714", "better"),
    "not converged": ("\u25d0", "unclear"),
    "non-adaptive": ("\u25b2", "unclear"),
    "unreliable": ("\u2716", "worse"),
}
TASK_MEASURES = {"vqa_accuracy": "VQA accuracy (mean soft score)", "consistency": "NLVR2 consistency"}
STATUSES = {
    "fail": ("\u2716", "worse"),
    "not measured": ("?", "unclear"),
    "pass": ("\u2714", "better"),
    "not applicable": ("\u2013", "none"),
    "by the test suite": ("\u2699", "none"),
}
"""Status of a check to its sign and colour, the worst first."""


def write_robustness_report(record: dict[str, Any], outcomes: Sequence[Outcome], folder: str | Path) -> Path:
    """Write `evaluation.html` into a folder, whole or not at all.

    Args:
        record: As in `evaluation.json`.
        outcomes: Every example under every attack, for the texts and for what each attack found; with none,
            the report leaves those out.
        folder: Created if need be.

    Returns:
        The path of the report.

    Raises:
        ValueError: If the record does not fit its schema; the message has the path of each wrong field.
        OSError: If the folder cannot be written.
    """
    check_record(record)
    return write_atomically(Path(folder) / ROBUSTNESS_REPORT_FILE, render_robustness_report(record, outcomes))


def render_robustness_report(record: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page as a string; every text of the record and of the outcomes is escaped."""
    by_attack: dict[str, list[Outcome]] = {}
    for row in outcomes:
        by_attack.setdefault(row.attack, []).append(row)
    threats = record["threats"]
    return report_template(TEMPLATE_FILE).render(
        record=record,
        name=record.get("name", record["model"]["class"]),
        protocol=describe_protocol(record["protocol"]),
        task_measures=task_measures(record),
        comparisons=record.get("comparisons", []),
        conclusions=CONCLUSIONS,
        verdicts=VERDICTS,
        verdict_counts=Counter(threat["verdict"] for threat in threats.values()),
        num_publishable=sum(threat["publishable"] for threat in threats.values()),
        num_clusters=len({row.cluster for row in outcomes}),
        words_change=any(threat["threat_model"]["modality"] != "image" for threat in threats.values()),
        measured=_measured(record),
        threats=[_threat(name, threat, by_attack, record["answers"]) for name, threat in threats.items()],
    )


def task_measures(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measures of the task beside accuracy: name for readers to threat model to `clean` and `robust`."""
    threats = record["threats"]
    found = {
        label: {name: threat[key] for name, threat in threats.items() if key in threat}
        for key, label in TASK_MEASURES.items()
    }
    return {label: measured for label, measured in found.items() if measured}


def _measured(record: dict[str, Any]) -> dict[str, str]:
    """What the numbers are about, line by line."""
    model, data, settings = record["model"], record["data"], record["settings"]
    return {
        "model": f"{model['class']}, parameters {model['digest']}",
        "task": record["task"],
        **_protocol(record["protocol"]),
        "data": f"{data['sampling']}, digest {data['digest']}",
        "training data": _overlap(data["overlap"]),
        "effort": f"{settings['effort']}: {settings['apgd_steps']} steps of APGD, "
        f"{settings['square_queries']} queries of Square, {settings['word_candidates']} substitutes per word",
        "seed": str(settings["seed"]),
        "batch size": str(settings["batch_size"]),
        "attacks used in training": ", ".join(settings["trained_with"]) or "none named",
        "defence at test time": settings["defence"] or "nobody has said",
        "attacks made for the defence": ", ".join(settings["adaptive_attacks"]) or "none",
        "code": record["code"]["revision"],
        "versions": ", ".join(f"{name} {version}" for name, version in record["code"]["versions"].items()),
        "date": record["date"],
    }


def _overlap(overlap: dict[str, Any] | None) -> str:
    if overlap is None:
        return "not given, so not compared"
    how = f", {overlap['how']}" if "how" in overlap else ""
    return (
        f"{overlap['same_pixels']} of {overlap['num_test_images']} test pictures and {overlap['same_ids']} "
        f"ids are among its {overlap['num_train_images']} pictures too{how}"
    )


def _protocol(protocol: ProtocolEntry) -> dict[str, str]:
    facts = {
        "protocol": describe_protocol(protocol) or "rows that a caller passed",
        "what is wrong with it": protocol["contamination"],
        "read from": protocol["location"],
    }
    return {fact: value for fact, value in facts.items() if value}


def _threat(
    name: str, threat: dict[str, Any], by_attack: Mapping[str, Sequence[Outcome]], answers: Sequence[str]
) -> dict[str, Any]:
    """One threat model, ready for the template."""
    checks = [{**check, "explanation": EXPLANATIONS[check["rule"]]} for check in threat["checks"]]
    names = {entry["run"]: attack for attack, entry in threat["attacks"].items()}
    found = {attack: broken(by_attack.get(run, ())) for run, attack in names.items()}
    worst = by_attack.get(name, ())
    sign, colour = VERDICTS[threat["verdict"]]
    return {
        **threat,
        "name": name,
        "sign": sign,
        "colour": colour,
        "overall": threat["numbers"][OVERALL],
        "strata": {key: value for key, value in threat["numbers"].items() if key != OVERALL},
        "refusals": [check for check in checks if check["level"] == "gate" and _failed(check)],
        "checks": {
            status: (*look, [check for check in checks if check["status"] == status])
            for status, look in STATUSES.items()
        },
        "found": _discoveries(found) if name in by_attack else None,
        "bars": _bars(threat),
        **_diagrams(threat["probes"]),
        "pairs": [_pair(pair, worst, names, answers) for pair in threat["pairs"]],
        **_texts(worst, names, answers),
    }


def _failed(check: dict[str, Any]) -> bool:
    return check["status"] in ("fail", "not measured")


def _discoveries(found: Mapping[str, set[str]]) -> dict[str, dict[str, int]]:
    """Per attack, in their order: examples that no earlier one broke, and examples that no other one did."""
    times = Counter(example for ids in found.values() for example in ids)
    seen: set[str] = set()
    discoveries = {}
    for attack, ids in found.items():
        alone = sum(times[example] == 1 for example in ids)
        discoveries[attack] = {"first": len(ids - seen), "alone": alone}
        seen |= ids
    return discoveries


def _bars(threat: dict[str, Any]) -> str:
    rates = {
        "clean": threat["numbers"][OVERALL]["clean_accuracy"],
        **{name: attack["numbers"]["robust_accuracy"] for name, attack in threat["attacks"].items()},
        "all attacks": threat["numbers"][OVERALL]["robust_accuracy"],
    }
    groups = {
        name: [(rate["value"], rate["low"], rate["high"])]
        for name, rate in rates.items()
        if rate["value"] is not None
    }
    return bar_chart(groups, ["right before and after the attack"], "examples")


def _diagrams(probes: dict[str, Any]) -> dict[str, Any]:
    """The curve over the radius and the loss surface, None where they were not measured."""
    curve, surface = probes.get("curve"), probes.get("surface")
    return {
        "curve": curve and _curve(curve),
        "surface": surface
        and line_chart(
            {
                "title": "Loss surface",
                "x_label": "distance, in units of epsilon",
                "y_label": "mean cross entropy, nats",
                "series": {
                    name: _points(surface["shares"], surface[key])
                    for name, key in (
                        ("along the gradient", "along_gradient"),
                        ("in a random direction", "along_random"),
                    )
                },
            }
        ),
    }


def _curve(curve: dict[str, Any]) -> dict[str, Any]:
    scale, unit = (255, "linf, in 1/255") if curve["norm"] == "linf" else (1, "l2, of pixels in [0, 1]")
    radii = [scale * epsilon for epsilon in curve["epsilons"]]
    robust, low, high, alone = (
        [100 * share for share in curve[key]] for key in ("robust_accuracy", "low", "high", "attack_alone")
    )
    svg = line_chart(
        {
            "title": "Robust accuracy over the radius",
            "x_label": f"epsilon, {unit}",
            "y_label": "robust accuracy, %",
            "series": {
                "up to this radius": _points(radii, robust),
                "attack of this radius alone": _points(radii, alone),
            },
        },
        {"up to this radius": list(zip(radii, low, high, strict=True))},
    )
    names = ("epsilons", "robust_accuracy", "low", "high", "attack_alone")
    rows = zip(*(curve[key] for key in names), strict=True)
    return {
        **curve,
        "svg": svg,
        "unit": unit,
        "rows": [{"radius": f"{scale * row[0]:.3g}", **dict(zip(names, row, strict=True))} for row in rows],
    }


def _points(x: Sequence[float], y: Sequence[float]) -> list[list[float]]:
    return [list(point) for point in zip(x, y, strict=True)]


def _pair(
    pair: dict[str, Any], rows: Sequence[Outcome], names: Mapping[str, str], answers: Sequence[str]
) -> dict[str, Any]:
    row = next((row for row in rows if row.id == pair["id"]), None)
    finder, fooled = pair["attack"], pair["adversarial_prediction"] != pair["label"]
    if row is not None:  # it also knows which answers count as right beside the label
        finder, fooled = row.found_by, not row.adversarial_correct
    return {
        **pair,
        **_answers_of(pair["label"], pair["clean_prediction"], pair["adversarial_prediction"], answers),
        "words": _words(pair["text"], pair["adversarial_text"]),
        "fooled": fooled,
        "found_by": names.get(finder, finder),
    }


def _texts(rows: Sequence[Outcome], names: Mapping[str, str], answers: Sequence[str]) -> dict[str, Any]:
    """Initially right examples whose words changed: those that broke, or if none did, those that held."""
    changed = [row for row in rows if row.clean_correct and row.text != row.adversarial_text]
    fooled = [row for row in changed if not row.adversarial_correct]
    return {
        "num_changed_texts": len(changed),
        "num_fooled_texts": len(fooled),
        "texts": [
            {
                "id": row.id,
                "words": _words(row.text, row.adversarial_text),
                "fooled": not row.adversarial_correct,
                "found_by": names.get(row.found_by, row.found_by),
                **_answers_of(row.label, row.clean_prediction, row.adversarial_prediction, answers),
            }
            for row in (fooled or changed)[:MAX_TEXTS]
        ],
    }


def _words(clean: str, attacked: str) -> list[tuple[str, str]]:
    """Runs of words; new characters beyond ASCII, which may look like another or like nothing, are named."""
    unseen = {letter for letter in set(attacked) - set(clean) if not letter.isascii()}

    def named(words: str) -> str:
        return "".join(f"{letter}[U+{ord(letter):04X}]" if letter in unseen else letter for letter in words)

    return [
        (kind, named(words) if kind == "ins" else words) for kind, words in word_difference(clean, attacked)
    ]


def _answers_of(label: int, clean: int, adversarial: int, answers: Sequence[str]) -> dict[str, str]:
    """Answers in words; an index where they have none (a vocabulary, classes without names)."""
    indices = {"right": label, "clean_answer": clean, "adversarial_answer": adversarial}
    return {
        name: answers[index] if index < len(answers) else f"no. {index}" for name, index in indices.items()
    }
