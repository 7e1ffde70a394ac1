"""Stages the leaderboard: a dataset repository of rows, and the Space that shows them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from rmcl_hub.evaluation import evaluation_schema

from . import row_checks
from .row_checks import ROWS_FOLDER, Row, refusal, row_file, row_text
from .staged_repository import CARD, StagedRepository

NAME = "rmcl-leaderboard"
NAMESPACE = "NAMESPACE"  # in the two cards, until it is known
SPACE_FOLDER = Path(__file__).with_name("leaderboard")
CARD_TEMPLATE = Path(__file__).with_name("leaderboard_card.md")
LICENCE = "cc-by-sa-4.0"  # of the drawings in the rows
_DTYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


def stage_leaderboard(
    rows: Sequence[Row], output_dir: str | Path, *, namespace: str
) -> list[StagedRepository]:
    """The two repositories of a leaderboard.

    Args:
        rows: As `leaderboard_rows.rows_of` gives them; pushed to a board that has rows, they join those. A
            board may begin without any.
        output_dir: Gets `datasets/rmcl-leaderboard` and `spaces/rmcl-leaderboard`.
        namespace: User or organisation on the Hub whose board it is.

    Raises:
        ValueError: If two rows have one id, or a row is not fit for the board.
    """
    _check_rows(rows)
    return [
        _stage_rows(rows, Path(output_dir) / "datasets" / NAME, namespace),
        _stage_space(Path(output_dir) / "spaces" / NAME, namespace),
    ]


def _check_rows(rows: Sequence[Row]) -> None:
    ids = [row["id"] for row in rows]
    for row in rows:
        if reason := refusal(row, evaluation_schema.schema_errors):
            raise ValueError(f"row {row.get('id')} is not fit for the leaderboard: {reason}.")
        if ids.count(row["id"]) > 1:
            raise ValueError(
                f"two rows have the id {row['id']}: {row['model']['repo']} under {row['threat']['name']} was "
                "evaluated twice; publish one of the evaluations."
            )


def _stage_rows(rows: Sequence[Row], folder: Path, namespace: str) -> StagedRepository:
    (folder / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row_file(row)).write_text(row_text(row), encoding="utf-8")
    for schema in (row_checks.SCHEMA_FILE, evaluation_schema.SCHEMA_FILE):
        _copy(schema, folder)
    metadata = {
        "pretty_name": "Robust vision-and-language models: leaderboard rows",
        "license": LICENCE,
        "language": ["en"],
        "tags": ["adversarial-robustness", "leaderboard", "vision-and-language"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "rows", "path": f"{ROWS_FOLDER}/*.json"}],
            }
        ],
        "dataset_info": {"features": row_features()},
    }
    text = CARD_TEMPLATE.read_text(encoding="utf-8").replace(NAMESPACE, namespace)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    (folder / CARD).write_text(f"---\n{front}---\n{text}", encoding="utf-8")
    sources = {row["id"]: row["evaluation_sha256"] for row in rows}
    return StagedRepository.seal(NAME, "dataset", folder, sources, accumulates=True)


def _stage_space(folder: Path, namespace: str) -> StagedRepository:
    folder.mkdir(parents=True, exist_ok=True)
    for source in space_files():
        _copy(source, folder)
    card = folder / CARD
    card.write_text(card.read_text(encoding="utf-8").replace(NAMESPACE, namespace), encoding="utf-8")
    return StagedRepository.seal(NAME, "space", folder)


def space_files() -> list[Path]:
    """All that the Space is made of: its own folder, and the checks that it shares with this package."""
    own = [path for path in sorted(SPACE_FOLDER.iterdir()) if path.is_file()]
    shared = [(Path(str(module.__file__)), module.SCHEMA_FILE) for module in (row_checks, evaluation_schema)]
    return [*own, *(path for paths in shared for path in paths)]


def _copy(source: Path, folder: Path) -> None:
    (folder / source.name).write_bytes(source.read_bytes())


def row_features() -> list[dict[str, Any]]:
    """The features of a row for `load_dataset`, as a card's metadata writes them, from the row's schema.

    Without them each file would have the types of what it happens to hold, and a null has none.
    """
    schema = json.loads(row_checks.SCHEMA_FILE.read_text(encoding="utf-8"))
    return list(_fields(schema))


def _fields(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, entry in schema["properties"].items():
        # The reader takes what looks like a day for a time.
        yield {"name": name, **({"dtype": "date32"} if name == "date" else _feature(entry))}


def _feature(entry: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in entry:
        keys = entry["$ref"].split("#/")[1].split("/")
        return _feature(reduce(getitem, keys, evaluation_schema.evaluation_schema()))
    types = [entry["type"]] if isinstance(entry.get("type"), str) else entry.get("type", [])
    kind = next((name for name in types if name != "null"), "string")  # choices among texts state no type
    if kind == "object":
        return {"struct": list(_fields(entry))}
    if kind == "array":
        inner = _feature(entry["items"] if isinstance(entry.get("items"), dict) else entry["prefixItems"][0])
        return {"list": inner.get("dtype") or inner.get("struct")}
    return {"dtype": _DTYPES[kind]}
