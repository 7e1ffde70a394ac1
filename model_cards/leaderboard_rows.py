"""Rows of the leaderboard, made of an evaluation that holds against what is stored beside it."""

import hashlib
import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from rmcl_hub.evaluation.audit_rules import Status
from rmcl_hub.evaluation.evaluation_schema import check_record, schema_errors
from rmcl_hub.evaluation.outcomes import OVERALL, load_outcomes
from rmcl_hub.evaluation.robustness import OUTCOMES_FILE, Evaluation
from rmcl_hub.evaluation.robustness_record import EVALUATION_FILE

from .evaluation_gates import check_evaluation
from .redistribution import terms_of
from .row_checks import FORMAT, MAX_EXAMPLES, Row, refusal, row_id
from .staged_repository import MANIFEST, StagedRepository, describe_file

NUMBERS = ("clean_accuracy", "robust_accuracy", "attack_success_rate")
PICTURE_SIZE = 128  # pixels of the longer side: to look at, while the stored set holds them as they were


@dataclass(frozen=True)
class BoardRows:
    """What of an evaluation may stand on the leaderboard.

    Attributes:
        accepted: Rows, each fit for its file; see `leaderboard_row.schema.json`.
        refused: Threat model to the reason why its row may not.
    """

    accepted: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def rows_of(
    evaluation_folder: str | Path,
    *,
    model_repo: str,
    revision: str | None = None,
    recipe: str | None = None,
    submitter: str | None = None,
) -> BoardRows:
    """One row per threat model of an evaluation; each number is copied from its `evaluation.json`.

    Args:
        evaluation_folder: What `rmcl-hub evaluate` wrote: the record, the outcomes, the adversarial examples.
        model_repo: Where the model is on the Hub, as user/name.
        revision: Commit of the model there, 40 hexadecimal digits.
        recipe: How the model was trained, in words.
        submitter: Name on the Hub of whoever submits.

    Raises:
        FileNotFoundError: If the record, the outcomes or the adversarial examples are missing.
        ValueError: If the record does not fit its schema, names no protocol, or does not follow from what is
            stored beside it: then no row of it may stand.
    """
    folder = Path(evaluation_folder)
    for name in (EVALUATION_FILE, OUTCOMES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; give a folder that `rmcl-hub evaluate` wrote."
            )
    _check_seal(folder)
    content = (folder / EVALUATION_FILE).read_bytes()
    record = json.loads(content)
    check_record(record)
    check_evaluation(Evaluation(record, load_outcomes(folder / OUTCOMES_FILE)), folder)
    told = {
        "recipe": recipe,
        "submitter": submitter,
        "evaluation_sha256": hashlib.sha256(content).hexdigest(),
    }
    found = BoardRows()
    for name in record["threats"]:
        row = {**_row(record, name, model_repo, revision), **told}
        row = {"format": FORMAT, "id": row_id(row), **row}
        reason = refusal(row, schema_errors)
        if reason is None:
            found.accepted.append(row)
        else:
            found.refused[name] = reason
    return found


def _check_seal(folder: Path) -> None:
    """Of a set of adversarial examples from the Hub, the files are those that its manifest names."""
    if not (folder / MANIFEST).is_file():
        return
    sealed = StagedRepository.load(folder).files
    for name in (EVALUATION_FILE, OUTCOMES_FILE):
        found, named = describe_file(folder / name)["sha256"], sealed.get(name, {}).get("sha256")
        if found != named:
            raise ValueError(
                f"{folder / name} has SHA-256 {found}, but {MANIFEST} beside it names {named}; it was "
                "changed after it was published: download the set again."
            )


def _row(record: Mapping[str, Any], name: str, model_repo: str, revision: str | None) -> Row:
    threat = record["threats"][name]
    location = record["protocol"]["location"] or ""
    model = record["model"]
    statuses = Counter(check["status"] for check in threat["checks"])
    curve = {"curve": threat["probes"]["curve"]} if "curve" in threat["probes"] else {}
    return {
        **{key: record[key] for key in ("date", "task", "settings", "data")},
        "code": record["code"]["revision"],
        "libraries": ", ".join(f"{name} {version}" for name, version in record["code"]["versions"].items()),
        # A folder of one's own machine says nothing to others, and is private.
        "protocol": {
            **record["protocol"],
            "location": location if location.startswith("hf://") else None,
        },
        "model": {
            "name": model_repo,  # many folders are called "finetuned"
            "repo": model_repo,
            "revision": revision,
            **{key: model[key] for key in ("class", "digest")},
        },
        "control": next(
            (row["verdict"] for row in record.get("comparisons", ()) if row["attack"] == name), None
        ),
        "threat": {
            "name": name,
            "sentence": threat["sentence"],
            "digest": threat["digest"],
            "model": threat["threat_model"],
        },
        "numbers": {key: threat["numbers"][OVERALL][key] for key in NUMBERS},
        **curve,
        **{key: threat[key] for key in ("verdict", "reasons", "publishable", "checks", "cost")},
        "audit": {status: statuses[status] for status in get_args(Status)},
        "examples": _examples(record, threat["pairs"]),
    }


def _examples(record: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A few attacked pairs, pictures made smaller.

    None of a corpus whose pictures may not be passed on.
    """
    if terms_of(record["protocol"]["corpus"]).pictures is None:
        return []
    answers = record["answers"]

    def answer(index: int) -> str:
        return answers[index] if 0 <= index < len(answers) else f"answer {index}"

    return [
        {
            **{key: pair[key] for key in ("id", "text", "adversarial_text")},
            **{key: _smaller(pair[key]) for key in ("clean_picture", "attacked_picture")},
            "right_answer": answer(pair["label"]),
            "clean_answer": answer(pair["clean_prediction"]),
            "adversarial_answer": answer(pair["adversarial_prediction"]),
        }
        for pair in pairs[:MAX_EXAMPLES]
    ]


def _smaller(picture: str) -> str:
    """A PNG data URI with its longer side at most `PICTURE_SIZE`; a small one stays as it is."""
    head, data = picture.split(",", 1)
    with Image.open(BytesIO(b64decode(data))) as image:
        if max(image.size) <= PICTURE_SIZE:
            return picture
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        file = BytesIO()
        image.save(file, format="PNG")
    return f"{head},{b64encode(file.getvalue()).decode()}"
