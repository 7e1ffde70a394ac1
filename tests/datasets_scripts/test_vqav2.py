"""VQAv2's rows are what its files say, in splits that share no picture and no question."""

import hashlib
import itertools
import json
import zipfile

import datasets
import pyarrow as pa
import pytest

from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.official_builder import NUM_PARTS
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.schema import FEATURES
from rmcl_hub.datasets_scripts.vqa_answer_text import normalise_answer
from rmcl_hub.datasets_scripts.vqav2 import ANSWERS_FILE, Vqav2, held_out_pictures

DIVIDED = [("train2014", "train_fit", "train_dev"), ("val2014", "trainable_val", "rest_val")]


def published(root, name):
    """One of the published files, from the folder or from the archive that holds it."""
    if (root / name).is_file():
        return json.loads((root / name).read_text())
    for path in root.glob("v2_*.zip"):
        with zipfile.ZipFile(path) as archive:
            if name in archive.namelist():
                return json.loads(archive.read(name))
    raise FileNotFoundError(name)


def questions_of(root, source):
    return published(root, f"v2_OpenEnded_mscoco_{source}_questions.json")["questions"]


def annotations_of(root, source):
    return published(root, f"v2_mscoco_{source}_annotations.json")["annotations"]


def rows_of(root, split):
    folder = Vqav2.open(root)
    return list(Vqav2.with_pictures(folder, Vqav2.annotations(folder, split))), folder.dropped


@pytest.mark.parametrize(("source", "rest", "held_out"), DIVIDED)
def test_rows_are_those_of_the_published_files(source, rest, held_out, task_corpora):
    root = task_corpora["vqav2"]
    annotated = {annotation["question_id"]: annotation for annotation in annotations_of(root, source)}
    usable = {
        entry["question_id"]: entry
        for entry in questions_of(root, source)
        if entry["question"].strip() and entry["question_id"] in annotated and entry["image_id"] < 100_000
    }
    rows = [row for split in (rest, held_out) for row in rows_of(root, split)[0]]
    assert sorted(int(row["question_id"]) for row in rows) == sorted(usable)
    with zipfile.ZipFile(root / f"{source}.zip") as archive:
        for row in rows:
            entry, annotation = usable[int(row["question_id"])], annotated[int(row["question_id"])]
            given = [answer["answer"] for answer in annotation["answers"]]
            if len(set(given)) > 1:
                given = list(map(normalise_answer, given))
            assert row["question"] == " ".join(entry["question"].split())
            assert row["image_id"] == row["concept"] == str(entry["image_id"])
            assert row["question_type"] == annotation["answer_type"]
            assert row["answers"] == list(dict.fromkeys(given))
            soft = [min(10, 3 * given.count(answer)) / 10 for answer in row["answers"]]
            assert row["scores"] == pytest.approx(soft, rel=1e-6)
            name = f"{source}/COCO_{source}_{entry['image_id']:012d}.jpg"
            assert row["image"] == {"path": name, "bytes": archive.read(name)}


def test_what_cannot_be_used_is_counted(task_corpora):
    (fit, dropped), (dev, dropped_of_dev) = (
        rows_of(task_corpora["vqav2"], split) for split in ("train_fit", "train_dev")
    )
    assert len(fit) + len(dev) == 24 * 3 + 3
    assert dropped + dropped_of_dev == dict.fromkeys(
        ("duplicate id", "no annotation", "no text", "missing picture"), 1
    )


def test_the_first_of_a_duplicated_id_stays_and_odd_answers_are_normalised(task_corpora):
    rows = {
        row["question_id"]: row
        for split in ("train_fit", "train_dev")
        for row in rows_of(task_corpora["vqav2"], split)[0]
    }
    assert rows["1003"]["question"] == "谁画的? 🧔"
    scores = {name: dict(zip(rows[name]["answers"], rows[name]["scores"], strict=True)) for name in rows}
    assert scores["1003"] == {"the artist": 1}
    assert scores["1004"] == pytest.approx({"1000": 1, "0": 0.6, "2.5": 0.3, "": 0.3})
    assert scores["1005"] == {"red blue": 1, "it's red 1": 1}


@pytest.mark.parametrize(("source", "rest", "held_out"), DIVIDED)
def test_a_tenth_of_the_pictures_is_held_out_by_hash(source, rest, held_out, task_corpora):
    root = task_corpora["vqav2"]
    pictures = {entry["image_id"] for entry in questions_of(root, source)}
    ranked = sorted(pictures, key=lambda image_id: hashlib.sha1(str(image_id).encode()).hexdigest())
    chosen = {int(row["image_id"]) for row in rows_of(root, held_out)[0]}
    others = {int(row["image_id"]) for row in rows_of(root, rest)[0]}
    assert chosen == set(ranked[: len(ranked) // 10])
    assert others == set(ranked[len(ranked) // 10 :]) - {400_037}


@pytest.mark.parametrize(
    ("pictures", "count"), [(1, 1), (19, 1), (20, 2), (9_999, 999), (10_010, 1_000), (40_504, 1_000)]
)
def test_how_many_pictures_are_held_out(pictures, count):
    ids = [*range(pictures), *range(pictures)]
    chosen = held_out_pictures(ids)
    assert len(chosen) == count
    assert chosen <= set(ids)
    assert chosen == held_out_pictures(ids[::-1])


def test_test_dev_is_no_part_of_test(task_corpora):
    root = task_corpora["vqav2"]
    of_server = {
        source: {entry["question_id"] for entry in questions_of(root, source)}
        for source in ("test2015", "test-dev2015")
    }
    rows = {split: rows_of(root, split)[0] for split in ("test", "test_dev")}
    found = {split: {int(row["question_id"]) for row in rows[split]} for split in rows}
    assert found["test_dev"] == of_server["test-dev2015"]
    assert found["test"] == of_server["test2015"] - of_server["test-dev2015"]
    assert len(found["test"]) == len(found["test_dev"]) == 8
    for row in (*rows["test"], *rows["test_dev"]):
        assert row["answers"] == row["scores"] == []
        assert row["question_type"] == "not published"
        assert row["image"]["path"] == f"test2015/COCO_test2015_{int(row['image_id']):012d}.jpg"


def test_all_splits_are_disjoint(task_corpora):
    folder = Vqav2.open(task_corpora["vqav2"])
    rows = [row for split in Vqav2.splits for row in Vqav2.annotations(folder, split)]
    assert len({row["question_id"] for row in rows}) == len(rows)


def test_map_style_and_streaming_give_the_same_rows(task_corpora, tmp_path):
    root = task_corpora["vqav2"]
    for split in ("train_fit", "test_dev"):
        map_style = load_corpus(root, split, corpus="vqav2", cache_dir=str(tmp_path))
        stream = load_corpus(root, split, corpus="vqav2", streaming=True)
        assert map_style.features == stream.features == FEATURES["vqa"]
        assert stream.num_shards == NUM_PARTS
        read = [list(data.cast_column("image", datasets.Image(decode=False))) for data in (map_style, stream)]
        assert read[0] == read[1]
        rows = pa.Table.from_pylist(rows_of(root, split)[0], FEATURES["vqa"].arrow_schema)
        assert read[0] == rows.to_pylist()  # scores in half the digits of Python's


class TestAnswers:
    def test_are_laid_beside_the_shards_most_frequent_first(self, task_corpora, tmp_path):
        root = task_corpora["vqav2"]
        prepare(Vqav2, root, tmp_path, num_workers=1, unofficial=True)
        answers = json.loads((tmp_path / ANSWERS_FILE).read_text(encoding="utf-8"))
        counts = {}
        for source in ("train2014", "val2014"):
            for annotation in annotations_of(root, source):
                answer = normalise_answer(annotation["multiple_choice_answer"])
                counts[answer] = counts.get(answer, 0) + 1
        frequent = sorted((-count, answer) for answer, count in counts.items() if count >= 9)
        assert answers == [answer for _, answer in frequent]
        assert {"1", "yes", "no", "people"} == set(answers)

    def test_need_the_annotations_of_train_and_val(self, copy_of_task, caplog):
        root = copy_of_task("vqav2")
        (root / "v2_mscoco_val2014_annotations.json").unlink()
        assert Vqav2.extra_files(Vqav2.open(root)) == {}
        assert "No answers.json, because v2_mscoco_val2014_annotations.json is missing." in caplog.text


class TestMissingFiles:
    @pytest.mark.parametrize(
        ("file", "lost"),
        [
            ("v2_Questions_Train_mscoco.zip", {"train_fit", "train_dev"}),
            ("v2_Annotations_Train_mscoco.zip", {"train_fit", "train_dev"}),
            ("v2_mscoco_val2014_annotations.json", {"trainable_val", "rest_val"}),
            ("v2_Questions_Test_mscoco.zip", {"test", "test_dev"}),
        ],
    )
    def test_take_their_splits_away(self, file, lost, copy_of_task):
        root = copy_of_task("vqav2")
        (root / file).unlink()
        folder = Vqav2.open(root)
        assert {split for split in Vqav2.splits if not Vqav2.has_split(folder, split)} == lost
        with pytest.raises(FileNotFoundError, match=r"holds no v2_.*\.json, neither unpacked nor in"):
            load_corpus(root, min(lost), corpus="vqav2")

    def test_test_alone_is_not_separated_from_test_dev(self, copy_of_task):
        root = copy_of_task("vqav2")
        content = published(root, "v2_OpenEnded_mscoco_test2015_questions.json")
        (root / "v2_Questions_Test_mscoco.zip").unlink()
        (root / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(content))
        folder = Vqav2.open(root)
        assert not Vqav2.has_split(folder, "test")
        with pytest.raises(
            FileNotFoundError, match=r"holds no v2_OpenEnded_mscoco_test-dev2015_questions.json"
        ):
            Vqav2.annotations(folder, "test")

    def test_a_file_of_something_else_is_refused(self, copy_of_task):
        root = copy_of_task("vqav2")
        (root / "v2_mscoco_val2014_annotations.json").write_text('{"images": []}')
        with pytest.raises(ValueError, match=r"rest_val.* have not the published fields.*annotations"):
            Vqav2.annotations(Vqav2.open(root), "rest_val")


def test_documented_sizes_cover_every_split_once():
    assert sorted(split for joined in Vqav2.documented for split in joined.split("+")) == sorted(Vqav2.splits)
    assert [size.texts for size in Vqav2.documented.values()] == [443_757, 214_354, 447_793]


def test_a_picture_is_stored_once_for_all_its_questions(task_corpora, tmp_path):
    """Its questions are neighbours, in an order that is not the pictures' own."""
    prepare(Vqav2, task_corpora["vqav2"], tmp_path, ["train_fit"], num_workers=1, unofficial=True)
    rows = load_corpus(tmp_path, "train_fit", streaming=True).cast_column(
        "image", datasets.Image(decode=False)
    )
    pictures = {row["image_id"]: len(row["image"]["bytes"]) for row in rows}
    asked = [row["image_id"] for row in rows]
    runs = [image_id for image_id, _ in itertools.groupby(asked)]
    assert len(runs) == len(pictures) < len(asked)
    assert runs != sorted(runs, key=int)
    (shard,) = (tmp_path / "data").glob("*.parquet")
    once, again = sum(pictures.values()), sum(pictures[image_id] for image_id in asked)
    assert again > 1.5 * once
    assert shard.stat().st_size < once + (again - once) / 3  # and the questions themselves
