"""Rows of the leaderboard: read, checked again, and chosen for one table."""

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from evaluation_schema import schema_errors
from huggingface_hub import metadata_load, snapshot_download
from row_checks import ROWS_FOLDER, Row, refusal, row_file

SOURCE_VARIABLE = "LEADERBOARD_ROWS"
VERDICTS = ["trusted", "not converged", "non-adaptive", "unreliable"]
MODEL, THREAT, ROW = "Model", "Threat model", "Row"
CLEAN, ROBUST, LOW, HIGH, SUCCESS = "Clean %", "Robust %", "95 % from", "95 % to", "Attack success %"
SHARES = [CLEAN, ROBUST, LOW, HIGH, SUCCESS]
HEADERS = [MODEL, THREAT, *SHARES, "Verdict", "Examples", ROW]
BY_THREAT = "threat model, then robust accuracy"
ORDERS: dict[str, Callable[[Row], Any]] = {
    BY_THREAT: lambda row: (row["threat"]["name"], -_share(row, "robust_accuracy")),
    "robust accuracy, highest first": lambda row: -_share(row, "robust_accuracy"),
    "clean accuracy, highest first": lambda row: -_share(row, "clean_accuracy"),
    "attack success, lowest first": lambda row: _share(row, "attack_success_rate"),
    "model": lambda row: row["model"]["name"].lower(),
}
"""What rows can be sorted by, to the key."""
MAX_BYTES = 2_000_000  # of one row's file, pictures included


@dataclass(frozen=True)
class Board:
    """What was read.

    Attributes:
        rows: Those that may stand in a table.
        refused: File to the reason why its row may not.
        source: Where they are from, in words.
    """

    rows: Sequence[Row]
    refused: dict[str, str]
    source: str


def default_source() -> str:
    """Where the rows are: the variable `LEADERBOARD_ROWS`, else the first data set that README.md names."""
    metadata = metadata_load(Path(__file__).with_name("README.md")) or {}
    return os.environ.get(SOURCE_VARIABLE) or metadata["datasets"][0]


def load_board(source: str) -> Board:
    """Read and check all rows.

    Args:
        source: A folder that holds `rows/`, or a dataset repository as user/name or user/name@revision.

    Returns:
        The board; an empty one whose `source` tells why, if nothing can be read.
    """
    if Path(source).is_dir():
        folder, described = Path(source), f"the folder {Path(source).name}"
    else:
        repository, _, revision = source.partition("@")
        try:
            folder = Path(
                snapshot_download(
                    repository,
                    repo_type="dataset",
                    revision=revision or None,
                    allow_patterns=f"{ROWS_FOLDER}/*.json",
                )
            )
        except (OSError, ValueError) as error:
            # Neither the error nor its address is for visitors: it may tell of the machine.
            return Board([], {}, f"nothing: {repository} cannot be read now ({type(error).__name__})")
        described = f"{repository} at commit {folder.name[:12]}"
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for path in sorted((folder / ROWS_FOLDER).glob("*.json")):
        row, reason = _read(path)
        if row is not None:
            rows.append(row)
        else:
            refused[path.name] = reason
    return Board(rows, refused, described)


def _read(path: Path) -> tuple[Row | None, str]:
    """A sound row, or None and why it is none; anything may stand in the file."""
    if path.stat().st_size > MAX_BYTES:
        return None, f"it has {path.stat().st_size} bytes; at most {MAX_BYTES} are read"
    try:
        row: Any = json.loads(path.read_text(encoding="utf-8"))
        reason = refusal(row, schema_errors)
    except (ValueError, OverflowError, RecursionError) as error:
        return None, f"it cannot be read: {error}"
    if reason is None and row_file(row) != f"{ROWS_FOLDER}/{path.name}":
        reason = f"its id is {row['id']}, so its file must be {row_file(row)}"
    return (row, "") if reason is None else (None, reason)


def protocol_of(row: Row) -> str:
    """A row's protocol in words; rows with different ones never stand in one table."""
    protocol = row["protocol"]
    galleries = ", ".join(f"{entry['count']} x {entry['size']} pictures" for entry in protocol["galleries"])
    name = "embedded" if protocol["name"] == protocol["corpus"] else f"{protocol['name']} protocol of"
    words = [f"{name} {protocol['corpus']}", " + ".join(protocol["splits"]), galleries]
    return ", ".join(filter(None, words)) + (" (contaminated)" if protocol["contamination"] else "")


def tasks_of(board: Board) -> list[str]:
    """Tasks that have rows."""
    return sorted({row["task"] for row in board.rows})


def protocols_of(board: Board, task: str) -> list[str]:
    """Protocols that have rows of a task, those without contamination first."""
    found = {protocol_of(row) for row in board.rows if row["task"] == task}
    return sorted(found, key=lambda words: (words.endswith("(contaminated)"), words))


def threats_of(board: Board, task: str, protocol: str) -> list[str]:
    """Threat models that have rows of a task and protocol."""
    rows = (row for row in board.rows if (row["task"], protocol_of(row)) == (task, protocol))
    return sorted({row["threat"]["name"] for row in rows})


def choose_rows(
    board: Board,
    task: str,
    protocol: str,
    threats: Collection[str],
    verdicts: Collection[str],
    order: str = BY_THREAT,
) -> list[Row]:
    """Rows of one task and one protocol.

    Args:
        board: What was read.
        task: One of `tasks_of`.
        protocol: One of `protocols_of`.
        threats: Names of threat models; none means all.
        verdicts: Those to show.
        order: One of `ORDERS`; equal rows stand in the order of their ids.
    """
    chosen = [
        row
        for row in board.rows
        if (row["task"], protocol_of(row)) == (task, protocol)
        and (not threats or row["threat"]["name"] in threats)
        and row["verdict"] in verdicts
    ]
    return sorted(chosen, key=lambda row: (ORDERS[order](row), row["id"]))


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Cells under `HEADERS`; shares in per cent, NaN where undefined."""
    cells = [
        {
            MODEL: row["model"]["name"],
            THREAT: row["threat"]["name"],
            CLEAN: percent(row["numbers"]["clean_accuracy"]["value"]),
            ROBUST: percent(row["numbers"]["robust_accuracy"]["value"]),
            LOW: percent(row["numbers"]["robust_accuracy"]["low"]),
            HIGH: percent(row["numbers"]["robust_accuracy"]["high"]),
            SUCCESS: percent(row["numbers"]["attack_success_rate"]["value"]),
            "Verdict": row["verdict"],
            "Examples": row["data"]["num_examples"],
            ROW: row["id"],
        }
        for row in rows
    ]
    return pd.DataFrame(cells, columns=HEADERS)


def _share(row: Row, number: str) -> float:
    """A share to sort by; one that is undefined, as nothing was right, stands behind all others."""
    value = row["numbers"][number]["value"]
    return 2.0 if value is None else value


def percent(share: float | None) -> float:
    """A share as a percentage with one decimal; NaN for None."""
    return float("nan") if share is None else round(100 * share, 1)
