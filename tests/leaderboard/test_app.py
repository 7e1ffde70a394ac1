import re
import urllib.request

import pytest
from app import about_text, build_app, summary_of, update_of
from board import BY_THREAT, HEADERS, ORDERS, VERDICTS, load_board
from gradio_client import Client

EMBEDDED = "embedded openpairs, test"
CLEAN = "clean protocol of vqav2, trainable_val + rest_val"


@pytest.fixture
def board(make_row, write_board):
    rows = [
        make_row("A"),
        make_row("B", "words-20pct"),
        make_row("A", protocol="clean"),
        make_row("A", task="mlm"),
    ]
    return load_board(str(write_board(*rows)))


def names_of(update):
    return update[5].data["Model"].tolist()


def test_at_first_a_task_and_a_protocol_are_chosen(board):
    update = update_of(board, None, None, None, VERDICTS, BY_THREAT)
    assert [choice["value"] for choice in update[:2]] == ["mlm", EMBEDDED]
    assert names_of(update) == ["A"]


def test_choices_that_do_not_go_with_the_task_are_dropped(board):
    update = update_of(board, "vqa", CLEAN, ["words-20pct"], VERDICTS, BY_THREAT)
    assert [choice["value"] for choice in update[:3]] == ["vqa", CLEAN, []]
    assert names_of(update) == ["A"]
    update = update_of(board, "mlm", CLEAN, [], VERDICTS, BY_THREAT)
    assert [choice["value"] for choice in update[:3]] == ["mlm", EMBEDDED, []]


def test_an_empty_board_has_no_plots(tmp_path):
    (tmp_path / "rows").mkdir()
    board = load_board(str(tmp_path))
    update = update_of(board, None, None, None, VERDICTS, BY_THREAT)
    assert names_of(update) == []
    assert not any(plot["visible"] for plot in update[7:13])
    assert "No row is refused" in update[13]
    assert "0 rows. Read from" in summary_of(board)
    build_app(str(tmp_path))


def test_a_curve_that_nobody_measured_is_not_drawn(board):
    scatter, _, linf, _, l2, _ = update_of(board, "vqa", EMBEDDED, [], VERDICTS, BY_THREAT)[7:13]
    assert [plot["visible"] for plot in (scatter, linf, l2)] == [True, True, False]


def test_about_is_the_card_without_its_metadata():
    assert about_text().lstrip().startswith("## What stands here")
    assert "sdk_version" not in about_text()


def test_the_page_answers_and_asks_no_other_server(served):
    with urllib.request.urlopen(served) as answer:
        page = answer.read().decode()
    assert "Robust vision-and-language models" in page
    loaded = re.findall(r"(?:src|href)=\"(https?://[^\"]+)\"", page)
    assert [address for address in loaded if not address.startswith((served, "https://gradio.app"))] == []


def test_a_program_can_ask_for_rows(served):
    client = Client(served, verbose=False)
    assert "7 rows; 2 are refused" in client.predict(api_name="/read_again")
    robust = list(ORDERS)[1]
    found = client.predict("vqa", EMBEDDED, [], ["trusted"], robust, api_name="/update")
    table = next(entry for entry in found if isinstance(entry, dict) and "headers" in entry)
    assert table["headers"] == HEADERS
    assert [(row[0], row[1], row[3]) for row in table["data"]] == [
        ("RMCL", "words-20pct", 68.8),
        ("RMCL", "linf-4", 62.5),
        ("Control", "linf-4", 14.1),
    ]
    details = client.predict(table["data"][0][-1], api_name="/show")
    assert "<strong>68.8 %</strong>" in details
