"""`check` finds what is damaged and shared, and counts what the thesis's tables count."""

import io
import json
import math
import statistics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import BertTokenizerFast

from rmcl_hub.datasets_scripts.check import check, describe_check
from rmcl_hub.datasets_scripts.schema import FEATURES
from rmcl_hub.datasets_scripts.shard_reading import load_tokenizer
from rmcl_hub.datasets_scripts.shard_writing import sha256_of
from rmcl_hub.datasets_scripts.shards import MANIFEST, Manifest, Shard, SplitManifest, read_shard


def encoded(color, size=(8, 6), image_format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, image_format)
    return buffer.getvalue()


def caption_row(number, picture, captions=("a red dog .",), source="coco"):
    return {
        "image": {"bytes": picture, "path": f"{number}.png"},
        "image_id": str(number),
        "captions": list(captions),
        "concept": str(number),
        "source": source,
    }


def question_row(number, image_id, picture):
    return {
        "image": {"bytes": picture, "path": "a.png"},
        "image_id": str(image_id),
        "question_id": str(number),
        "question": "is it red ?",
        "question_type": "yes/no",
        "answers": ["yes"],
        "scores": [1.0],
        "concept": str(image_id),
    }


@pytest.fixture
def write_corpus(tmp_path):
    """Writes one shard per split, with a true manifest."""

    def write(name, splits, corpus="coco_captions", task="captions"):
        manifest = Manifest(corpus, task, "1.0.0", "none")
        (tmp_path / name / "data").mkdir(parents=True)
        for split, rows in splits.items():
            file = f"data/{split}-00000-of-00001.parquet"
            path = tmp_path / name / file
            pq.write_table(
                pa.Table.from_pylist(rows, schema=FEATURES[task].arrow_schema), path, row_group_size=2
            )
            shard = Shard(file, len(rows), path.stat().st_size, sha256_of(path))
            manifest.splits[split] = SplitManifest(len(rows), len(rows), len(rows), {}, [shard])
        (tmp_path / name / MANIFEST).write_text(manifest.to_json())
        return str(tmp_path / name)

    return write


@pytest.fixture
def tokenizer_folder(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_counts_and_lengths_of_a_prepared_corpus(prepare_coco, tokenizer_folder, tiny_tokenizer):
    folder = prepare_coco()
    report = check([str(folder)], tokenizer_folder, num_workers=1)
    assert report.passed
    assert not report.shared
    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    assert [split.split for split in report.splits] == list(manifest.splits)
    for found in report.splits:
        split = manifest.splits[found.split]
        assert (found.rows, found.images, found.texts) == (split.rows, split.images, split.texts)
        lengths = [
            len(tiny_tokenizer.tokenize(caption))
            for shard in split.shards
            for row in read_shard(str(folder / shard.file), "captions", "parquet")
            for caption in row["captions"]
        ]
        assert found.mean_length == pytest.approx(statistics.mean(lengths))
        assert found.std_length == pytest.approx(statistics.pstdev(lengths))
    line = f"| {len(lengths)} | {statistics.mean(lengths):.2f} ± {statistics.pstdev(lengths):.2f} | 0 |"
    assert line in describe_check(report)[5]


def test_web_datasets_are_checked_alike(prepare_coco, tokenizer_folder):
    folders = [prepare_coco(name, shard_format=name) for name in ("parquet", "webdataset")]
    one, other = (check([str(folder)], tokenizer_folder, num_workers=1) for folder in folders)
    for found, expected in zip(other.splits, one.splits, strict=True):
        assert (found.rows, found.images, found.texts) == (expected.rows, expected.images, expected.texts)
        assert found.mean_length == expected.mean_length


def test_the_packaged_vocabulary_measures_by_default(write_corpus):
    location = write_corpus("one", {"train": [caption_row(1, encoded("red"), ["a smiling cat", "a cat"])]})
    (split,) = check([location], num_workers=1).splits
    lengths = [len(load_tokenizer(None).tokenize(text)) for text in ("a smiling cat", "a cat")]
    assert split.mean_length == statistics.mean(lengths)
    assert isinstance(load_tokenizer(None), BertTokenizerFast)


def test_pictures_are_told_apart_by_pixels_not_by_files(write_corpus, tokenizer_folder):
    rows = [
        caption_row(1, encoded("red")),
        caption_row(2, encoded("red", image_format="BMP")),
        caption_row(3, encoded("red", size=(6, 8))),
    ]
    (split,) = check([write_corpus("one", {"train": rows})], tokenizer_folder, num_workers=1).splits
    assert (split.rows, split.images) == (3, 2)


def test_a_test_picture_that_is_trained_on_fails_and_others_are_only_told(write_corpus, tokenizer_folder):
    red, blue, green = (caption_row(n, encoded(c)) for n, c in enumerate(("red", "blue", "green")))
    splits = {"train": [red, blue], "validation": [blue, green], "test": [green]}
    location = write_corpus("one", splits)
    report = check([location], tokenizer_folder, num_workers=1)
    assert report.passed
    assert [(pair.first, pair.second, pair.images, pair.image_ids) for pair in report.shared] == [
        (f"{location} train", f"{location} validation", 1, 1),
        (f"{location} validation", f"{location} test", 1, 1),
    ]
    location = write_corpus("two", {"restval": [red, blue], "test": [{**blue, "image_id": "9"}]})
    report = check([location], tokenizer_folder, num_workers=1)
    assert not report.passed
    told = f"{location} restval and {location} test share 1 pictures and 0 image ids."
    assert f"- {told} A MODEL THAT TRAINS ON THE ONE MUST NOT BE TESTED ON THE OTHER." in describe_check(
        report
    )


def test_image_ids_are_compared_within_their_source_only(write_corpus, tokenizer_folder):
    red, blue = encoded("red"), encoded("blue", size=(9, 9))
    captions = write_corpus("captions", {"train": [caption_row(5, red), caption_row(6, red, source="sbu")]})
    questions = write_corpus(
        "questions", {"rest_val": [question_row(n, n, blue) for n in (5, 6)]}, "vqav2", "vqa"
    )
    report = check([captions, questions], tokenizer_folder, num_workers=1)
    (pair,) = report.shared
    assert (pair.images, pair.image_ids, pair.contaminated) == (0, 1, True)
    assert report.splits[1].images == 1


@pytest.mark.parametrize(
    ("corpus", "split", "contaminated"),
    [
        ("vqav2", "train_fit", False),
        ("vqav2", "train_dev", False),  # chooses checkpoints
        ("vqav2", "trainable_val", True),
        ("vqav2", "test_dev", True),  # in no protocol, for its answers are not published
        ("sbu_captions", "train", False),
    ],
)
def test_roles_are_those_of_the_clean_protocol(corpus, split, contaminated, write_corpus, tokenizer_folder):
    picture = encoded("red")
    task = "vqa" if corpus == "vqav2" else "captions"
    row = question_row(1, 1, picture) if task == "vqa" else caption_row(1, picture)
    locations = [
        write_corpus("one", {"train": [caption_row(2, picture)]}),
        write_corpus("two", {split: [row]}, corpus, task),
    ]
    assert check(locations, tokenizer_folder, num_workers=1).passed is not contaminated


def test_damage_is_named_and_the_rest_is_still_checked(write_corpus, tokenizer_folder, tmp_path):
    good, bad = caption_row(1, encoded("red")), caption_row(2, b"no picture")
    location = write_corpus(
        "one", {"train": [good, bad], "validation": [good], "test": [good], "other": [good]}
    )
    manifest = json.loads((tmp_path / "one" / MANIFEST).read_text())
    manifest["splits"]["other"]["shards"][0]["rows"] = 3
    (tmp_path / "one" / MANIFEST).write_text(json.dumps(manifest))
    data = tmp_path / "one" / "data"
    (data / "validation-00000-of-00001.parquet").unlink()
    test = data / "test-00000-of-00001.parquet"
    test.write_bytes(test.read_bytes()[:-9])
    report = check([location], tokenizer_folder, num_workers=1)
    train, validation, test, other = report.splits
    assert not report.passed
    assert (train.rows, train.images, other.rows) == (2, 1, 1)
    assert "train-00000-of-00001.parquet: image '2' cannot be read" in train.problems[0]
    assert "is missing" in validation.problems[0]
    assert "has another checksum than its manifest says" in test.problems[0]
    assert "cannot be read" in test.problems[1]
    assert "holds 1 rows, but its manifest says 3" in other.problems[0]
    assert all(
        f"- {problem}" in describe_check(report) for split in report.splits for problem in split.problems
    )


def test_a_flipped_bit_is_damage(write_corpus, tokenizer_folder, tmp_path):
    location = write_corpus("one", {"train": [caption_row(1, encoded("red"), ["a red dog"])]})
    shard = tmp_path / "one" / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"red", b"rec", 1))
    report = check([location], tokenizer_folder, num_workers=1)
    assert [problem.partition(" has ")[2] for problem in report.splits[0].problems] == [
        "another checksum than its manifest says."
    ]


def test_many_damages_are_cut_short(write_corpus, tokenizer_folder):
    rows = [caption_row(number, b"no picture") for number in range(25)]
    lines = describe_check(check([write_corpus("one", {"train": rows})], tokenizer_folder, num_workers=1))
    assert sum("cannot be read" in line for line in lines) == 20
    assert lines[-1].startswith("- 5 more damages in")


def test_rows_without_texts_have_no_length(write_corpus, tokenizer_folder):
    location = write_corpus("one", {"train": [caption_row(1, encoded("red"), [])]})
    (split,) = check([location], tokenizer_folder, num_workers=1).splits
    assert (split.texts, split.mean_length, split.std_length) == (0, 0, 0)
    assert not math.isnan(split.std_length)


def test_wrong_locations_and_tokenizers_are_refused(write_corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no manifest.json"):
        check([str(tmp_path / "nowhere")])
    location = write_corpus("one", {"train": [caption_row(1, encoded("red"))]})
    with pytest.raises(FileNotFoundError, match="no folder nowhere with a tokenizer; give one that"):
        check([location], "nowhere")
