"""The leaderboard Space as the Hub runs it: its files side by side, without rmcl_hub and torch.

`make test-leaderboard` runs these tests in an environment of their own; elsewhere they are left out.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As `space_files` of model_cards/leaderboard_repository.py, which needs the package, stages them.
SHARED = (
    "model_cards/row_checks.py",
    "model_cards/leaderboard_row.schema.json",
    "evaluation/evaluation_schema.py",
    "evaluation/evaluation.schema.json",
)
SPACE = Path(tempfile.mkdtemp(prefix="rmcl-hub-space-"))
THESIS = "all test questions but those on 1,000 pictures are trained on (thesis Table 4.2)"

collect_ignore_glob = [] if find_spec("gradio") else ["test_*.py"]
if find_spec("gradio"):
    # Read by the libraries when they are imported.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(SPACE / "hf_home"), GRADIO_ANALYTICS_ENABLED="False")
    for path in [*(ROOT / "model_cards" / "leaderboard").iterdir(), *(ROOT / name for name in SHARED)]:
        if path.is_file():
            shutil.copy(path, SPACE)
    sys.path.insert(0, str(SPACE))


def pytest_unconfigure():
    shutil.rmtree(SPACE, ignore_errors=True)


@pytest.fixture
def row():
    """A sound row: VQA on the embedded set under linf-4, with curve and examples."""
    return json.loads((Path(__file__).parent / "row.json").read_text())


def shares(right, held, total):
    """Numbers of a row from counts, with intervals wide enough."""
    parts = {
        "clean_accuracy": (right, total),
        "robust_accuracy": (held, total),
        "attack_success_rate": (right - held, right),
    }
    return {
        name: {
            "value": count / n if n else None,
            "low": max(0.0, count / n - 0.1) if n else 0.0,
            "high": min(1.0, count / n + 0.1) if n else 1.0,
            "n": n,
            "method": "Wilson" if n else "undefined",
        }
        for name, (count, n) in parts.items()
    }


def changed_row(name, threat="linf-4", *, right=48, held=24, protocol="openpairs", task="vqa", flag=False):
    """A sound row of another model: how many of 64 examples are right, and how many of them hold."""
    from row_checks import row_id

    row = json.loads((Path(__file__).parent / "row.json").read_text())
    row["model"].update(name=name, repo=f"someone/{re.sub('[^a-z]+', '-', name.lower())}")
    row["task"], row["numbers"] = task, shares(right, held, 64)
    if threat != "linf-4":
        row["threat"].update(name=threat, digest=f"{len(threat):016x}")
        del row["curve"]
    if protocol != "openpairs":
        row["protocol"].update(name=protocol, corpus="vqav2", splits=["trainable_val", "rest_val"])
        row["protocol"]["contamination"] = THESIS if protocol == "thesis" else ""
        row["examples"] = []
    if flag:
        row["checks"][12].update(status="fail", detail="3 more of 64")
        row["audit"]["fail"] += 1
        row["audit"]["pass"] -= 1
        row.update(verdict="not converged", reasons=["rule 13, converged: 3 more of 64"])
    return {**row, "id": row_id(row)}


@pytest.fixture
def make_row():
    return changed_row


def write_rows(folder, rows):
    from row_checks import row_file, row_text

    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row_file(row)).write_text(row_text(row))
    return folder


@pytest.fixture
def write_board(tmp_path):
    """Function from rows to a folder that holds them."""
    return lambda *rows: write_rows(tmp_path, rows)


@pytest.fixture(scope="session")
def served():
    """Address of the app, started as on the Hub, over seven rows and two files that are refused."""
    folder = SPACE / "board"
    rows = [
        changed_row("Control", held=9),
        changed_row("RMCL", held=40),
        changed_row("RMCL", "words-20pct", held=44),
        changed_row("Barlow <b>Twins</b>", held=30, flag=True),
        changed_row("Control", protocol="clean", right=50, held=5),
        changed_row("Control", protocol="thesis", right=60, held=6),
        changed_row("Pairs", task="nlvr2", right=40, held=20),
    ]
    write_rows(folder, rows)
    gated = copy.deepcopy(changed_row("Gated", held=31))
    gated["checks"][17].update(status="fail", detail="3 test pictures are trained on")
    write_rows(folder, [gated])
    (folder / "rows" / "broken.json").write_text("{")
    environment = {**os.environ, "LEADERBOARD_ROWS": str(folder), "GRADIO_SERVER_NAME": "127.0.0.1"}
    command = [sys.executable, "-u", "app.py"]
    with subprocess.Popen(command, cwd=SPACE, env=environment, stdout=subprocess.PIPE, text=True) as app:
        lines = []
        for line in app.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("the app did not start:\n" + "".join(lines))
        yield found[0]
        app.terminate()
