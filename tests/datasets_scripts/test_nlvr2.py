"""NLVR2's rows are what its files say, wherever the repository and the pictures are laid."""

import io
import json
import shutil
import zipfile

import datasets
import pytest
from PIL import Image

from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.nlvr2 import Nlvr2
from rmcl_hub.datasets_scripts.schema import FEATURES


def rows_of(root, split):
    folder = Nlvr2.open(root)
    return list(Nlvr2.with_pictures(folder, Nlvr2.annotations(folder, split))), folder.dropped


def entries_of(root, split):
    return [json.loads(line) for line in (root / f"data/{split}.json").read_text().split("\n") if line]


@pytest.mark.parametrize(("split", "count"), [("train", 32), ("dev", 8), ("test1", 8)])
def test_rows_are_those_of_the_published_files(split, count, task_corpora):
    root = task_corpora["nlvr2"]
    entries = {entry["identifier"]: entry for entry in reversed(entries_of(root, split))}
    rows, dropped = rows_of(root, split)
    assert len(rows) == count == len(entries) - 3 * (split == "train")
    assert {row["label"] for row in rows} == {True, False}
    for row in rows:
        entry = entries[row["identifier"]]
        name, picture_set, pair, _ = row["identifier"].split("-")
        assert row["statement"] == " ".join(entry["sentence"].split())
        assert str(row["label"]) == entry["label"]
        assert row["concept"] == f"{name}-{picture_set}-{pair}"
        assert row["statement_type"] == "statement"
        place = {"train": f"images/train/{entry.get('directory')}", "dev": "images/dev", "test1": "test1"}[
            split
        ]
        for column, side in (("left_image", 0), ("right_image", 1)):
            path = f"{place}/{name}-{picture_set}-{pair}-img{side}.png"
            assert row[column]["path"] == path
            packed = split == "train"
            content = (
                zipfile.ZipFile(root / "train_img.zip").read(path) if packed else (root / path).read_bytes()
            )
            assert row[column]["bytes"] == content
    unusable = ("duplicate id", "no text", "missing picture", "picture outside the folder")
    assert dropped == (dict.fromkeys(unusable, 1) if split == "train" else {})


def test_gray_pictures_and_jpegs_named_png_are_kept(task_corpora):
    rows = {row["identifier"]: row for row in rows_of(task_corpora["nlvr2"], "train")[0]}
    left, right = (
        Image.open(io.BytesIO(rows["train-0-0-0"][column]["bytes"]))
        for column in ("left_image", "right_image")
    )
    assert (left.mode, left.format) == ("L", "PNG")
    assert right.format == "JPEG"


def test_a_line_separator_within_a_sentence_ends_no_line(task_corpora):
    assert any("\u2028" in entry["sentence"] for entry in entries_of(task_corpora["nlvr2"], "dev"))
    assert any("and in Ελληνικά." in row["statement"] for row in rows_of(task_corpora["nlvr2"], "dev")[0])


@pytest.mark.parametrize("place", ["nlvr2/data", "."])
def test_annotations_may_lie_elsewhere(place, copy_of_task, task_corpora):
    root = copy_of_task("nlvr2")
    (root / place).mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "data").iterdir()):
        shutil.move(path, root / place)
    for split in Nlvr2.splits:
        assert rows_of(root, split) == rows_of(task_corpora["nlvr2"], split)


def test_pictures_may_lie_beside_images_or_in_it(copy_of_task, task_corpora):
    root = copy_of_task("nlvr2")
    shutil.move(root / "images/dev", root / "dev")
    shutil.move(root / "test1", root / "images/test1")
    for split in ("dev", "test1"):
        expected, _ = rows_of(task_corpora["nlvr2"], split)
        for row, other in zip(rows_of(root, split)[0], expected, strict=True):
            assert row["left_image"]["bytes"] == other["left_image"]["bytes"]
            assert row["left_image"]["path"] != other["left_image"]["path"]


def test_map_style_and_streaming_give_the_same_rows(task_corpora, tmp_path):
    root = task_corpora["nlvr2"]
    read = []
    for options in ({"cache_dir": str(tmp_path)}, {"streaming": True}):
        data = load_corpus(root, "train", corpus="nlvr2", **options)
        assert data.features == FEATURES["nlvr2"]
        for column in ("left_image", "right_image"):
            data = data.cast_column(column, datasets.Image(decode=False))
        read.append(list(data))
    assert read[0] == read[1] == rows_of(root, "train")[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"identifier": "dev-9-0-0", "sente',
            r"Line 9 of .*data/dev.json.* is not valid JSON .* download finished",
        ),
        ("[1, 2]", "Line 9 of .* is list, not an object"),
        (
            '{"identifier": "dev-9-0-0", "sentence": "x", "label": "Maybe"}',
            "label of NLVR2 dev-9-0-0 is 'Maybe'",
        ),
        ('{"identifier": "dev-9-0-0", "label": "True"}', "not the published fields.*sentence"),
    ],
)
def test_a_bad_line_is_named(line, message, copy_of_task):
    root = copy_of_task("nlvr2")
    with (root / "data/dev.json").open("a") as stream:
        stream.write(line)
    with pytest.raises(ValueError, match=message):
        Nlvr2.annotations(Nlvr2.open(root), "dev")


def test_a_split_that_is_not_there(copy_of_task):
    root = copy_of_task("nlvr2")
    (root / "data/dev.json").unlink()
    assert not Nlvr2.has_split(Nlvr2.open(root), "dev")
    with pytest.raises(FileNotFoundError, match=r"holds no nlvr2/data/dev.json or data/dev.json or dev.json"):
        load_corpus(root, "dev", corpus="nlvr2")
