"""Whether an evaluation's numbers follow from what is stored beside them; one changed outcome is found."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.datasets_scripts.protocols import find_protocol
from rmcl_hub.evaluation.adversarial_examples import read_adversarial
from rmcl_hub.evaluation.audit import RULES
from rmcl_hub.evaluation.outcomes import OVERALL, Outcome, summarise
from rmcl_hub.evaluation.protocol_data import EMBEDDED, UNNAMED
from rmcl_hub.evaluation.robustness import OUTCOMES_FILE, Evaluation
from rmcl_hub.evaluation.robustness_record import EVALUATION_FILE

from .row_checks import ROUNDING

REMEDY = "evaluate again, and publish the folder as `rmcl-hub evaluate` wrote it."


def check_evaluation(evaluation: Evaluation, folder: str | Path) -> None:
    """Hold a record against its outcomes and its stored adversarial examples.

    What this cannot show, that the outcomes are the model's, `rmcl-hub rescore` does.

    Args:
        evaluation: As read from the folder.
        folder: Where the adversarial examples are.

    Raises:
        ValueError: If something does not follow; the message names it, what is written and what follows.
        FileNotFoundError: If the adversarial examples are missing.
    """
    record = evaluation.record
    _check_protocol(record)
    outcomes: dict[str, list[Outcome]] = {}
    for row in evaluation.outcomes:
        outcomes.setdefault(row.attack, []).append(row)
        _check_outcome(row)
    for name, threat in record["threats"].items():
        _check_declared(name, threat)
        _check_numbers(name, threat, outcomes, record["data"]["num_examples"])
        _check_pairs(name, threat, outcomes[name])
        stored = [identity for identities, _ in read_adversarial(folder, name) for identity in identities]
        if Counter(stored) != Counter(row.id for row in outcomes[name]):
            raise ValueError(
                f"the adversarial examples of {name!r} are of {len(stored)} ids that are not the "
                f"{len(outcomes[name])} of {OUTCOMES_FILE}; {REMEDY}"
            )


def _check_protocol(record: Mapping[str, Any]) -> None:
    """The record's protocol is one that is declared, and says of itself what its declaration says."""
    entry = record["protocol"]
    if entry["name"] == UNNAMED["name"]:
        raise ValueError(
            "the record names no protocol, because a program passed the rows, so nobody can repeat it; "
            "evaluate with `rmcl-hub evaluate`, on the embedded set or with --data."
        )
    if entry["name"] == EMBEDDED:
        declared: dict[str, Any] = {"corpus": EMBEDDED, "contamination": ""}
    else:
        protocol = find_protocol(entry["name"], entry["corpus"])
        declared = {"splits": list(protocol.test), "contamination": protocol.contamination}
    for field, expected in declared.items():
        if entry[field] != expected:
            raise ValueError(
                f"protocols are mixed: {entry['name']} of {entry['corpus']} has {field} {expected!r}, the "
                f"record says {entry[field]!r}; {REMEDY}"
            )


def _check_outcome(row: Outcome) -> None:
    if row.clean_prediction == row.adversarial_prediction and row.clean_correct != row.adversarial_correct:
        raise ValueError(
            f"example {row.id!r} under {row.attack!r} has one prediction before and after the attack, which "
            f"is right in one and wrong in the other; {OUTCOMES_FILE} was changed: {REMEDY}"
        )


def _check_declared(name: str, threat: Mapping[str, Any]) -> None:
    declared = ThreatModel.from_dict(threat["threat_model"])
    if (declared.digest, str(declared)) != (threat["digest"], threat["sentence"]):
        raise ValueError(
            f"threat model {name!r} is {declared} with digest {declared.digest}, but the record calls it "
            f"{threat['sentence']!r} with digest {threat['digest']}; {REMEDY}"
        )
    for check, (rule, level, _) in zip(threat["checks"], RULES, strict=True):
        if (check["name"], check["level"]) != (rule, level):
            raise ValueError(
                f"rule {check['rule']} of the audit of {name!r} is {rule!r}, a {level}, but the record calls "
                f"it {check['name']!r}, a {check['level']}; {REMEDY}"
            )


def _check_numbers(
    name: str, threat: Mapping[str, Any], outcomes: Mapping[str, Sequence[Outcome]], num_examples: int
) -> None:
    runs = {attack: entry["run"] for attack, entry in threat["attacks"].items()}
    for run in (name, *runs.values()):
        identities = [row.id for row in outcomes.get(run, ())]
        if not len(set(identities)) == len(identities) == num_examples:
            raise ValueError(
                f"{OUTCOMES_FILE} has {len(identities)} outcomes of {run!r} with {len(set(identities))} "
                f"different ids, the record has {num_examples} examples; {REMEDY}"
            )
    _check_worst(name, outcomes[name], [outcomes[run] for run in runs.values()])
    found = summarise({0: outcomes[name]})[name]
    written = {"numbers": threat["numbers"]}
    follows: dict[str, Any] = {"numbers": found, "attacks": {}}
    written["attacks"] = {attack: entry["numbers"] for attack, entry in threat["attacks"].items()}
    for attack, run in runs.items():
        follows["attacks"][attack] = summarise({0: outcomes[run]})[run][OVERALL]
    for path, is_written, is_found in _differences(written, follows, f"threats.{name}"):
        raise ValueError(
            f"{EVALUATION_FILE} says {path} is {is_written}, but {OUTCOMES_FILE} gives {is_found}; {REMEDY}"
        )


def _check_worst(name: str, whole: Sequence[Outcome], parts: Sequence[Sequence[Outcome]]) -> None:
    """An example is robust when no attack of the ensemble makes it wrong."""
    by_id = [{row.id: row for row in part} for part in parts]
    for row in whole:
        attacked = [part.get(row.id) for part in by_id]
        expected = (
            {part.clean_correct for part in attacked if part},
            all(part.adversarial_correct for part in attacked if part),
        )
        if None in attacked or expected != ({row.clean_correct}, row.adversarial_correct):
            raise ValueError(
                f"the outcome of example {row.id!r} under {name!r} is not the worst of its attacks; "
                f"{OUTCOMES_FILE} was changed: {REMEDY}"
            )


def _check_pairs(name: str, threat: Mapping[str, Any], whole: Sequence[Outcome]) -> None:
    fields = ("text", "adversarial_text", "label", "clean_prediction", "adversarial_prediction")
    rows = {row.id: row for row in whole}
    for pair in threat["pairs"]:
        row = rows.get(pair["id"])
        if row is None or any(pair[field] != getattr(row, field) for field in fields):
            raise ValueError(
                f"the picture of example {pair['id']!r} under {name!r} does not go with its outcome in "
                f"{OUTCOMES_FILE}; {REMEDY}"
            )


def _differences(written: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two nested records differ by more than rounding, as (path, written, found)."""
    if isinstance(written, dict) and isinstance(found, dict):
        for key in sorted({*written, *found}):
            yield from _differences(written.get(key), found.get(key), f"{path}.{key}")
    elif isinstance(written, float | int) and isinstance(found, float | int):
        if not isclose(written, found, rel_tol=ROUNDING, abs_tol=ROUNDING):
            yield path, written, found
    elif written != found:
        yield path, written, found
