"""SNLI-VE's rows are what its files say; hypotheses without a majority label are left out and counted."""

import json
import tarfile
from collections import Counter

import datasets
import pytest

from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.schema import ENTAILMENT_LABELS, FEATURES
from rmcl_hub.datasets_scripts.snli_ve import SnliVe


def rows_of(root, split):
    folder = SnliVe.open(root)
    return list(SnliVe.with_pictures(folder, SnliVe.annotations(folder, split))), folder.dropped


def entries_of(root, split):
    return [json.loads(line) for line in (root / f"snli_ve_{split}.jsonl").read_text().split("\n") if line]


@pytest.mark.parametrize(("split", "count"), [("train", 108), ("dev", 18), ("test", 18)])
def test_rows_are_those_of_the_published_files(split, count, task_corpora):
    root = task_corpora["snli_ve"]
    entries = {entry["pairID"]: entry for entry in entries_of(root, split)}
    rows, dropped = rows_of(root, split)
    assert len(rows) == count
    assert Counter(row["label"] for row in rows) == dict.fromkeys(range(3), count // 3)
    with tarfile.open(root / "flickr30k-images.tar") as archive:
        for row in rows:
            entry = entries[row["pair_id"]]
            assert ENTAILMENT_LABELS[row["label"]] == entry["gold_label"]
            assert row["hypothesis"] == " ".join(entry["sentence2"].split())
            assert row["image_id"] == row["concept"] == entry["Flickr30K_ID"]
            path = f"flickr30k-images/{entry['Flickr30K_ID']}.jpg"
            assert row["image"] == {"path": path, "bytes": archive.extractfile(path).read()}
            assert entry["sentence1"] not in row.values()
    unusable = ("no majority label", "duplicate id", "no text", "missing picture")
    assert dropped == (dict.fromkeys(unusable, 1) if split == "train" else {})


def test_splits_share_no_picture(task_corpora):
    pictures = [
        {row["image_id"] for row in rows_of(task_corpora["snli_ve"], split)[0]} for split in SnliVe.splits
    ]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 48


def test_unpacked_pictures_give_the_same_rows(copy_of_task, task_corpora):
    root = copy_of_task("snli_ve")
    with tarfile.open(root / "flickr30k-images.tar") as archive:
        archive.extractall(root, filter="data")
    (root / "flickr30k-images.tar").unlink()
    assert rows_of(root, "dev") == rows_of(task_corpora["snli_ve"], "dev")


def test_map_style_and_streaming_give_the_same_rows(task_corpora, tmp_path):
    root = task_corpora["snli_ve"]
    read = []
    for options in ({"cache_dir": str(tmp_path)}, {"streaming": True}):
        data = load_corpus(root, "train", corpus="snli_ve", **options)
        assert data.features == FEATURES["snli_ve"]
        read.append(list(data.cast_column("image", datasets.Image(decode=False))))
    assert read[0] == read[1] == rows_of(root, "train")[0]


def test_an_unknown_label_is_named(copy_of_task):
    root = copy_of_task("snli_ve")
    entry = {**entries_of(root, "dev")[0], "gold_label": "perhaps", "pairID": "7.jpg#0r1n"}
    with (root / "snli_ve_dev.jsonl").open("a") as stream:
        stream.write(json.dumps(entry))
    with pytest.raises(
        ValueError, match=r"gold_label of SNLI-VE pair 7.jpg#0r1n is 'perhaps'; expected entailment"
    ):
        SnliVe.annotations(SnliVe.open(root), "dev")


def test_a_split_that_is_not_there(copy_of_task):
    root = copy_of_task("snli_ve")
    (root / "snli_ve_test.jsonl").unlink()
    assert not SnliVe.has_split(SnliVe.open(root), "test")
    with pytest.raises(FileNotFoundError, match=r"holds no snli_ve_test.jsonl, neither unpacked nor in"):
        load_corpus(root, "test", corpus="snli_ve")


def test_documented_sizes():
    # By label, as the makers print them.
    labels = {
        "train": (176_932, 176_045, 176_550),
        "dev": (5_959, 5_960, 5_939),
        "test": (5_973, 5_964, 5_964),
    }
    assert {split: size.texts for split, size in SnliVe.documented.items()} == {
        k: sum(v) for k, v in labels.items()
    }
