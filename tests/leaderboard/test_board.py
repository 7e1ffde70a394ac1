import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from board import (
    HEADERS,
    ORDERS,
    VERDICTS,
    choose_rows,
    default_source,
    load_board,
    percent,
    protocol_of,
    protocols_of,
    table_of,
    tasks_of,
    threats_of,
)
from row_checks import row_text

ROOT = Path(__file__).parents[2]
EMBEDDED = "embedded openpairs, test"
CLEAN = "clean protocol of vqav2, trainable_val + rest_val"
THESIS = "thesis protocol of vqav2, trainable_val + rest_val (contaminated)"


@pytest.fixture
def board(make_row, write_board):
    rows = [
        make_row("B", held=20),
        make_row("A", held=40),
        make_row("A", "words-20pct", held=30, flag=True),
        make_row("A", protocol="thesis", held=10),
        make_row("A", protocol="clean", held=11),
        make_row("A", task="nlvr2", right=0, held=0),
    ]
    return load_board(str(write_board(*rows)))


def names_of(rows):
    return [(row["model"]["name"], row["threat"]["name"]) for row in rows]


def test_all_sound_rows_are_read(board):
    assert len(board.rows) == 6
    assert board.refused == {}
    assert board.source.startswith("the folder ")


def test_tasks_protocols_and_threats_are_those_that_have_rows(board):
    assert tasks_of(board) == ["nlvr2", "vqa"]
    assert protocols_of(board, "vqa") == [CLEAN, EMBEDDED, THESIS]
    assert protocols_of(board, "nlvr2") == [EMBEDDED]
    assert threats_of(board, "vqa", EMBEDDED) == ["linf-4", "words-20pct"]
    assert threats_of(board, "vqa", CLEAN) == ["linf-4"]


@pytest.mark.parametrize("protocol", [CLEAN, EMBEDDED, THESIS])
def test_protocols_are_never_mixed(board, protocol):
    rows = choose_rows(board, "vqa", protocol, [], VERDICTS)
    assert rows
    assert {protocol_of(row) for row in rows} == {protocol}


def test_threats_and_verdicts_filter(board):
    def chosen(threats, verdicts):
        return names_of(choose_rows(board, "vqa", EMBEDDED, threats, verdicts))

    assert chosen([], VERDICTS) == [("A", "linf-4"), ("B", "linf-4"), ("A", "words-20pct")]
    assert chosen(["words-20pct"], VERDICTS) == [("A", "words-20pct")]
    assert chosen([], ["trusted"]) == [("A", "linf-4"), ("B", "linf-4")]
    assert chosen(["words-20pct"], ["trusted"]) == []
    assert chosen([], []) == []


def test_orders_sort_as_they_say(make_row, write_board):
    rows = [
        make_row("b", right=40, held=20),
        make_row("C", right=50, held=10),
        make_row("a", right=30, held=18),
        make_row("d", right=0, held=0),
    ]
    board = load_board(str(write_board(*rows)))

    def names(order):
        return [row["model"]["name"] for row in choose_rows(board, "vqa", EMBEDDED, [], VERDICTS, order)]

    threat, robust, clean, success, model = ORDERS
    assert names(threat) == names(robust) == ["b", "a", "C", "d"]
    assert names(clean) == ["C", "b", "a", "d"]
    assert names(success) == ["a", "b", "C", "d"]  # 12/30, 20/40, 40/50, undefined
    assert names(model) == ["a", "b", "C", "d"]


def test_the_table_is_in_per_cent_and_can_be_undefined(board):
    first = table_of(choose_rows(board, "vqa", EMBEDDED, [], VERDICTS)).iloc[0]
    assert first[HEADERS[:8]].tolist() == ["A", "linf-4", 75.0, 62.5, 52.5, 72.5, 16.7, "trusted"]
    undefined = table_of(choose_rows(board, "nlvr2", EMBEDDED, [], VERDICTS)).iloc[0]
    assert undefined["Attack success %"] != undefined["Attack success %"]  # NaN
    assert percent(1 / 3) == 33.3
    assert list(table_of([]).columns) == HEADERS


def fail_gate(row):
    row["checks"][17].update(status="fail", detail="3 test pictures are trained on")


def claim_more(row):
    row["numbers"]["robust_accuracy"]["value"] += 1 / 64


def claim_another_model(row):
    row["model"]["repo"] = "other/model"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (fail_gate, "gate 18 of the audit, splits are apart, is not passed: 3 test pictures are trained on"),
        (claim_more, "but attack success is 24 of 48"),
        (claim_another_model, "but its model, task, protocol and threat model give"),
        (lambda row: row.pop("verdict"), "verdict: is missing"),
        (lambda row: row.update(libraries="x" * 2_100_000), "bytes; at most 2000000 are read"),
    ],
)
def test_a_row_that_is_not_sound_is_refused_with_the_reason(make_row, write_board, edit, reason):
    row = make_row("A")
    edit(row)
    board = load_board(str(write_board(make_row("B"), row)))
    assert [found["model"]["name"] for found in board.rows] == ["B"]
    assert reason in board.refused[f"{row['id']}.json"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "\ud800", "[" * 100_000, '{"a": NaN}', '{"date": ' + "9" * 5000 + "}"]
)
def test_anything_may_stand_in_a_file(make_row, write_board, content):
    folder = write_board(make_row("B"))
    (folder / "rows" / "x.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    board = load_board(str(folder))
    assert len(board.rows) == 1
    assert set(board.refused) == {"x.json"}


def test_a_copy_under_another_name_is_refused(make_row, write_board):
    row = make_row("B")
    folder = write_board(row)
    (folder / "rows" / "copy.json").write_text(row_text(row))
    board = load_board(str(folder))
    assert len(board.rows) == 1
    assert board.refused == {"copy.json": f"its id is {row['id']}, so its file must be rows/{row['id']}.json"}


def test_without_the_hub_the_board_is_empty_and_says_so():
    board = load_board("someone/rmcl-leaderboard")
    assert (board.rows, board.refused) == ([], {})
    assert board.source.startswith("nothing: someone/rmcl-leaderboard cannot be read now (")


def test_the_source_is_the_variable_s_or_the_card_s(monkeypatch):
    monkeypatch.delenv("LEADERBOARD_ROWS", raising=False)
    assert default_source() == "NAMESPACE/rmcl-leaderboard"
    monkeypatch.setenv("LEADERBOARD_ROWS", "me/rows@v1")
    assert default_source() == "me/rows@v1"


@pytest.fixture
def hub():
    """Address and token of a Hub on loopback."""
    command = [sys.executable, "-u", str(ROOT / "tests" / "loopback_hub.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        text = program.stdout.readline() + program.stdout.readline()
        yield re.search(r"HF_ENDPOINT=(\S+)", text)[1], re.search(r"HF_TOKEN=(\S+)", text)[1]
        program.terminate()


def test_rows_of_a_dataset_repository_by_revision(hub, make_row, tmp_path):
    endpoint, token = hub
    program = f"""
import sys
sys.path.insert(0, {str(Path(sys.modules["board"].__file__).parent)!r})
from huggingface_hub import HfApi
from board import load_board
from row_checks import row_file, row_text
import json
api, row = HfApi(), json.loads(sys.stdin.read())
api.create_repo("user/board", repo_type="dataset")
empty = api.dataset_info("user/board").sha
api.upload_file(path_or_fileobj=row_text(row).encode(), path_in_repo=row_file(row), repo_id="user/board",
                repo_type="dataset")
board, before = load_board("user/board"), load_board("user/board@" + empty)
print(json.dumps([[row["id"] for row in board.rows], board.source, len(before.rows), before.source, empty]))
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    row = make_row("A")
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(row),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids, source, before, old_source, empty = json.loads(done.stdout.splitlines()[-1])
    assert ids == [row["id"]]
    assert re.fullmatch(r"user/board at commit [0-9a-f]{12}", source)
    assert before == 0
    assert old_source == f"user/board at commit {empty[:12]}"
