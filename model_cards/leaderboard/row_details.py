"""One row of the leaderboard as HTML. Rows are other people's: every text of theirs is escaped."""

import difflib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from board import percent, protocol_of
from huggingface_hub import constants
from row_checks import Row

SIGNS = {"trusted": "\u2714", "not converged": "\u25d0", "non-adaptive": "\u25b2", "unreliable": "\u2716"}
NUMBERS = {
    "clean_accuracy": "Clean accuracy",
    "robust_accuracy": "Robust accuracy",
    "attack_success_rate": "Attack success",
}


def details_html(row: Row) -> str:
    """Everything that a row says, as one article."""
    contamination = row["protocol"]["contamination"]
    parts = [
        f"<h3>{escape(row['model']['name'])} <span>under {escape(row['threat']['name'])}</span></h3>",
        f"<p>{escape(row['threat']['sentence'])}. {escape(row['task'])}, {escape(protocol_of(row))}; "
        f"{escape(row['data']['sampling'])}.</p>",
        f'<p class="warning">Contaminated: {escape(contamination)}</p>' if contamination else "",
        _numbers(row),
        _verdict(row),
        _examples(row["examples"]),
        "<h4>Where it is from</h4>",
        _table(_provenance(row)),
    ]
    return f'<article class="details">{"".join(parts)}</article>'


def refused_html(refused: dict[str, str]) -> str:
    """Files that hold no row that may stand, each with the reason."""
    if not refused:
        return '<p class="details">No row is refused.</p>'
    items = "".join(
        f"<li><code>{escape(name)}</code>: {escape(reason)}</li>" for name, reason in refused.items()
    )
    return f'<div class="details"><p>{len(refused)} refused, because</p><ul>{items}</ul></div>'


def _numbers(row: Row) -> str:
    def shown(rate: dict[str, Any]) -> str:
        if rate["value"] is None:
            return "undefined: nothing was right before the attack"
        ends = f"[{percent(rate['low'])}, {percent(rate['high'])}]"
        return f"<strong>{percent(rate['value'])} %</strong> {ends}, of {rate['n']} examples"

    return _table((name, shown(row["numbers"][key])) for key, name in NUMBERS.items())


def _verdict(row: Row) -> str:
    verdict, audit = row["verdict"], row["audit"]
    counts = ", ".join(f"{number} {escape(status)}" for status, number in audit.items() if number)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in row["reasons"])
    checks = (
        (f"{check['rule']}. {escape(check['name'])}", f"{escape(check['status'])}: {escape(check['detail'])}")
        for check in row["checks"]
    )
    parts = [
        f"<h4>Verdict: {SIGNS[verdict]} {escape(verdict)}</h4>",
        f"<p>Of {len(row['checks'])} checks: {counts}.</p>",
        f"<ul>{reasons}</ul>" if reasons else "",
        f"<p>Control: {escape(row['control'])}</p>" if row["control"] else "",
        f"<details><summary>All checks</summary>{_table(checks)}</details>",
    ]
    return "".join(parts)


def _examples(examples: Sequence[dict[str, str]]) -> str:
    if not examples:
        return "<p>No attacked examples travel with this row: its pictures may not be passed on.</p>"
    return f"<h4>Attacked examples</h4><div class='examples'>{''.join(map(_example, examples))}</div>"


def _example(example: dict[str, str]) -> str:
    before, after = example["text"], example["adversarial_text"]
    pictures = "".join(
        f'<img src="{escape(example[key])}" alt="{label} picture of example {escape(example["id"])}">'
        for key, label in (("clean_picture", "clean"), ("attacked_picture", "attacked"))
    )
    fooled = "fooled" if example["adversarial_answer"] != example["clean_answer"] else "not fooled"
    answers = ", ".join(
        f"{when} <em>{escape(example[key])}</em>"
        for when, key in (
            ("right is", "right_answer"),
            ("said before the attack", "clean_answer"),
            ("and after it", "adversarial_answer"),
        )
    )
    lines = [escape(before), f"attacked: {_difference(before, after)}" if before != after else ""]
    lines.append(f"{answers}: {fooled}")
    caption = "".join(f"<p>{line}</p>" for line in lines if line)
    return f'<figure><div class="pictures">{pictures}</div><figcaption>{caption}</figcaption></figure>'


def _difference(before: str, after: str) -> str:
    """The second text with the words marked that the first one lacks."""
    old, new = before.split(), after.split()
    pieces = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = escape(" ".join(new[start:end]))
        if words:
            pieces.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(pieces)


def _provenance(row: Row) -> Iterator[tuple[str, str]]:
    model, cost, settings = row["model"], row["cost"], row["settings"]
    address = f"{constants.ENDPOINT}/{model['repo']}"
    if model["revision"]:
        address += f"/tree/{model['revision']}"
    name = f"{model['repo']}{'@' + model['revision'][:12] if model['revision'] else ''}"
    yield "Model", f'<a href="{escape(address)}">{escape(name)}</a>'
    yield "Weights", f"{escape(model['class'])}, digest <code>{escape(model['digest'])}</code>"
    yield "Recipe", escape(row["recipe"] or "the submitter has not said")
    yield "Attacks in training", escape(", ".join(settings["trained_with"]) or "none named")
    yield "Defence at test time", escape(settings["defence"] or "nobody has said")
    yield (
        "Effort",
        f"{escape(settings['effort'])}: {settings['apgd_steps']} steps of APGD, {settings['square_queries']} "
        f"queries of Square, {settings['word_candidates']} substitutes per word; seed {settings['seed']}",
    )
    yield "Data", f"digest <code>{escape(row['data']['digest'])}</code>"
    yield "Threat model", f"digest <code>{escape(row['threat']['digest'])}</code>"
    yield "evaluation.json", f"SHA-256 <code>{escape(row['evaluation_sha256'])}</code>"
    yield (
        "Cost per example",
        f"{cost['forwards']:.4g} forwards, {cost['backwards']:.4g} backwards, {cost['seconds']:.3g} s",
    )
    yield "Code", f"<code>{escape(row['code'])}</code>"
    yield "Libraries", escape(row["libraries"])
    yield "Date and submitter", escape(f"{row['date']}, {row['submitter'] or 'not named'}")
    yield "Row", f"<code>{escape(row['id'])}</code>"


def _table(lines: Any) -> str:
    """Names and cells; the cells are HTML already."""
    rows = "".join(f"<tr><th scope='row'>{name}</th><td>{cell}</td></tr>" for name, cell in lines)
    return f"<table>{rows}</table>"
