"""Whether a leaderboard row is sound in itself; the Space runs this file as it is, so it needs no library.

That a row's numbers follow from its evaluation is shown where the evaluation is: `evaluation_gates.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
SchemaErrors: TypeAlias = Callable[[Any, dict[str, Any]], list[str]]

SCHEMA_FILE = Path(__file__).with_name("leaderboard_row.schema.json")
FORMAT = "rmcl-hub-leaderboard-row/1"
ROWS_FOLDER = "rows"
MAX_EXAMPLES = 6
ROUNDING = 1e-6  # of shares that were written as decimals


def row_file(row: Row) -> str:
    """Where a row lies in the leaderboard's repository."""
    return f"{ROWS_FOLDER}/{row['id']}.json"


def row_text(row: Row) -> str:
    """A row as the content of its file: one line, so that the file is JSON and JSON Lines."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def row_id(row: Row) -> str:
    """Sixteen hexadecimal digits over what identifies a row: model, task, protocol and threat model."""
    protocol = {name: row["protocol"][name] for name in ("name", "corpus", "splits", "galleries")}
    identity = [row["model"]["repo"], row["model"]["digest"], row["task"], protocol, row["threat"]["digest"]]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def refusal(row: Any, schema_errors: SchemaErrors) -> str | None:
    """Why a row may not stand in the table; None if it may.

    Args:
        row: As read from its file; anything may be in it.
        schema_errors: `evaluation_schema.schema_errors`, which is elsewhere in the package than in the Space.
    """
    errors = schema_errors(row, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    if errors:
        return "it does not fit leaderboard_row.schema.json: " + "; ".join(errors[:3])
    checks = (_identity, _audit, _rates, _curve, _examples)
    return next((found for check in checks if (found := check(row))), None)


def _identity(row: Row) -> str | None:
    if row["id"] != row_id(row):
        return f"its id is {row['id']}, but its model, task, protocol and threat model give {row_id(row)}"
    if row["protocol"]["name"] == "unnamed":
        return "its protocol is unnamed: rows that a program passed cannot be compared with anything"
    return None


def _audit(row: Row) -> str | None:
    """The verdict follows from the checks, and every gate is passed."""
    checks = row["checks"]
    gates = [check for check in checks if check["level"] == "gate"]
    failed_gates = [check for check in gates if check["status"] in ("fail", "not measured")]
    failed = [check for check in checks if check["status"] == "fail" or check in failed_gates]
    if failed_gates:
        first = failed_gates[0]
        return f"gate {first['rule']} of the audit, {first['name']}, is not passed: {first['detail']}"
    if not row["publishable"]:
        return "the audit says that it is not publishable"
    if (row["verdict"] == "trusted") != (not failed) or len(row["reasons"]) != len(failed):
        return (
            f"its verdict is {row['verdict']!r} for {len(row['reasons'])} reasons, but {len(failed)} of its "
            "checks failed"
        )
    counts = Counter(check["status"] for check in checks)
    if any(number != counts[status] for status, number in row["audit"].items()):
        return f"its audit counts are {row['audit']}, its checks give {dict(counts)}"
    return None


def _rates(row: Row) -> str | None:
    """Shares are counts over their denominators, lie in their intervals, and add up."""
    clean, robust, success = (
        row["numbers"][name] for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate")
    )
    for name, rate in row["numbers"].items():
        if rate["value"] is None:
            if rate["n"]:
                return f"{name} has no value, though {rate['n']} examples are behind it"
            continue
        count = rate["value"] * rate["n"]
        if not isclose(count, round(count), abs_tol=ROUNDING * max(rate["n"], 1)):
            return f"{name} {rate['value']} is no share of {rate['n']} examples"
        if not rate["low"] - ROUNDING <= rate["value"] <= rate["high"] + ROUNDING:
            return f"{name} {rate['value']} lies outside its interval [{rate['low']}, {rate['high']}]"
    total = row["data"]["num_examples"]
    if not clean["n"] == robust["n"] == total:
        return f"its accuracies are over {clean['n']} and {robust['n']} examples, but {total} were attacked"
    right, survived = round(clean["value"] * total), round(robust["value"] * total)
    broken = round((success["value"] or 0) * success["n"])
    if (success["n"], broken) != (right, right - survived):
        return (
            f"{right} of {total} examples are right, {survived} of them under attack too, but attack success "
            f"is {broken} of {success['n']}"
        )
    return None


def _curve(row: Row) -> str | None:
    if "curve" not in row:
        return None
    curve = row["curve"]
    columns = [curve[name] for name in ("epsilons", "robust_accuracy", "low", "high")]
    if len({len(column) for column in columns}) != 1:
        return "its epsilon curve has columns of different lengths"
    epsilons, robust, low, high = columns
    if epsilons != sorted(set(epsilons)) or robust != sorted(robust, reverse=True):
        return "its epsilon curve must have rising radii and never rise itself"
    inside = (a - ROUNDING <= value <= b + ROUNDING for a, value, b in zip(low, robust, high, strict=True))
    return None if all(inside) else "its epsilon curve leaves its interval"


def _examples(row: Row) -> str | None:
    found = len(row["examples"])
    return f"it has {found} examples; at most {MAX_EXAMPLES} are shown" if found > MAX_EXAMPLES else None
