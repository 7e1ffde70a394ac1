"""One set of columns per task, whatever the rows come from."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

Row = dict[str, Any]

_STRING, _STRINGS = datasets.Value("string"), datasets.List(datasets.Value("string"))
# In every task `concept` says which rows depend on each other, for intervals: of photographs the image id.
_CAPTIONS = {
    "image": datasets.Image(),
    "image_id": _STRING,
    "captions": _STRINGS,
    "concept": _STRING,
    "source": _STRING,
}
_VQA = {
    "image": datasets.Image(),
    "image_id": _STRING,
    "question_id": _STRING,
    "question": _STRING,
    "question_type": _STRING,  # the stratum of reports; of VQAv2 its answer type: yes/no, number, other
    "answers": _STRINGS,  # distinct and normalised; empty where they are not published
    "scores": datasets.List(datasets.Value("float32")),  # soft score of each answer, in [0, 1]
    "concept": _STRING,
}
_NLVR2 = {
    "left_image": datasets.Image(),
    "right_image": datasets.Image(),
    "identifier": _STRING,
    "statement": _STRING,
    "label": datasets.Value("bool"),
    "statement_type": _STRING,
    "concept": _STRING,
}
_SNLI_VE = {
    "image": datasets.Image(),
    "image_id": _STRING,
    "pair_id": _STRING,
    "hypothesis": _STRING,
    "label": datasets.Value("int64"),  # index into ENTAILMENT_LABELS
    "concept": _STRING,
}
FEATURES = {
    "captions": datasets.Features(_CAPTIONS),
    "vqa": datasets.Features(_VQA),
    "nlvr2": datasets.Features(_NLVR2),
    "snli_ve": datasets.Features(_SNLI_VE),
}
ID_COLUMNS = {"captions": "image_id", "vqa": "question_id", "nlvr2": "identifier", "snli_ve": "pair_id"}
ROWS_PER_TABLE = 64
"""Rows that a reader has to take in at once: some 10 MB of photographs."""
ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")


def image_columns(task: str) -> list[str]:
    """Names of a task's columns that hold pictures."""
    return [name for name, feature in FEATURES[task].items() if isinstance(feature, datasets.Image)]


def texts_of(task: str, row: Row) -> list[str]:
    """The sentences of a row: its captions, question, statement or hypothesis."""
    if task == "captions":
        return row["captions"]
    return [row[{"vqa": "question", "nlvr2": "statement", "snli_ve": "hypothesis"}[task]]]


def to_tables(task: str, rows: Iterable[Row]) -> Iterator[pa.Table]:
    """Rows, pictures as `{"bytes": ..., "path": ...}`, as Arrow tables of `ROWS_PER_TABLE` rows."""
    schema, iterator = FEATURES[task].arrow_schema, iter(rows)
    while group := list(islice(iterator, ROWS_PER_TABLE)):
        yield pa.Table.from_pylist(group, schema=schema)
