"""Columns of every task, and rows as tables."""

import pytest

from rmcl_hub.datasets_scripts.schema import (
    FEATURES,
    ID_COLUMNS,
    ROWS_PER_TABLE,
    image_columns,
    texts_of,
    to_tables,
)


def test_every_task_names_its_pictures_and_its_key():
    assert set(FEATURES) == set(ID_COLUMNS)
    assert {task: image_columns(task) for task in FEATURES} == {
        "captions": ["image"],
        "vqa": ["image"],
        "nlvr2": ["left_image", "right_image"],
        "snli_ve": ["image"],
    }
    for task, column in ID_COLUMNS.items():
        assert FEATURES[task][column].dtype == FEATURES[task]["concept"].dtype == "string"


def test_texts_of_a_row():
    assert texts_of("captions", {"captions": ["a", "b"]}) == ["a", "b"]
    assert texts_of("vqa", {"question": "why?"}) == ["why?"]
    assert texts_of("nlvr2", {"statement": "so"}) == ["so"]
    assert texts_of("snli_ve", {"hypothesis": "perhaps"}) == ["perhaps"]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (ROWS_PER_TABLE, [ROWS_PER_TABLE]),
        (2 * ROWS_PER_TABLE + 3, [ROWS_PER_TABLE, ROWS_PER_TABLE, 3]),
    ],
)
def test_rows_become_tables_as_they_are(count, sizes):
    rows = [
        {
            "image": {"bytes": bytes([index]), "path": f"{index}.jpg"},
            "image_id": str(index),
            "captions": ["a", "b"][: index % 3],
            "concept": str(index),
            "source": "toy",
        }
        for index in range(count)
    ]
    tables = list(to_tables("captions", iter(rows)))
    assert [len(table) for table in tables] == sizes
    assert [row for table in tables for row in table.to_pylist()] == rows
    assert all(table.schema.equals(FEATURES["captions"].arrow_schema) for table in tables)
