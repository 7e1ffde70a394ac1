import re
from html.parser import HTMLParser

import pytest
from row_details import details_html, refused_html


class Tags(HTMLParser):
    """Counts tags, and sees that each one is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_all_that_the_row_says_is_there(make_row):
    row = make_row("A", right=48, held=24, flag=True)
    row["model"]["revision"] = "0123456789" * 4
    row["control"] = "A is better than the control"
    text = details_html(row)
    for part in (
        "<strong>37.5 %</strong> [27.5, 47.5], of 64 examples",
        "<strong>50.0 %</strong> [40.0, 60.0], of 48 examples",
        row["threat"]["sentence"],
        "not converged",
        "rule 13, converged: 3 more of 64",
        row["evaluation_sha256"],
        row["model"]["digest"],
        row["data"]["digest"],
        row["threat"]["digest"],
        f"/someone/a/tree/{row['model']['revision']}",
        "A is better than the control",
        row["libraries"],
    ):
        assert part in text
    assert text.count("<figure>") == len(row["examples"]) == 2
    assert all(f"{check['rule']}. {check['name']}" in text for check in row["checks"])


def test_contamination_is_said(make_row):
    assert "Contaminated: all test questions" in details_html(make_row("A", protocol="thesis"))
    assert "Contaminated" not in details_html(make_row("A", protocol="clean"))


def test_rows_without_examples_say_why(make_row):
    assert "its pictures may not be passed on" in details_html(make_row("A", protocol="clean"))


def test_nothing_right_before_the_attack(make_row):
    assert "undefined: nothing was right" in details_html(make_row("A", right=0, held=0))


def test_changed_words_are_marked(make_row):
    row = make_row("A")
    row["examples"][0].update(text="is it red", adversarial_text="is it crimson")
    assert "attacked: is it <mark>crimson</mark>" in details_html(row)


EVIL = "\"><script>alert('x')</script>"


def replace_texts(value):
    """Every free text of a row by one that breaks out of HTML where it is not escaped."""
    if isinstance(value, dict):
        return {
            key: entry if key in ("verdict", "clean_picture", "attacked_picture") else replace_texts(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [replace_texts(entry) for entry in value]
    return EVIL if isinstance(value, str) else value


def test_no_text_of_a_row_becomes_html(make_row):
    honest = make_row("A", flag=True)
    row = replace_texts(honest)
    found, expected = Tags(details_html(row)), Tags(details_html(honest))
    assert "script" not in {tag for tag, _ in found.seen}
    assert {tag for tag, _ in found.seen} <= {tag for tag, _ in expected.seen} | {"mark"}
    assert not any(name.startswith("on") for _, attributes in found.seen for name in attributes)
    assert "<script>" not in refused_html({EVIL: EVIL})


@pytest.mark.parametrize("refused", [{}, {"a.json": "no row"}])
def test_refused_files_are_listed_with_the_reason(refused):
    text = refused_html(refused)
    Tags(text)
    assert len(re.findall("<li>", text)) == len(refused)
    assert ("No row is refused" in text) is (not refused)
    assert all(f"<code>{name}</code>: {reason}" in text for name, reason in refused.items())
