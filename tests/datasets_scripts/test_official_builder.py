"""What all corpora share: a fixed order, the same rows however they are read, faults counted."""

import json
import shutil

import datasets
import pytest
import torch

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.corpora import CORPORA, load_corpus
from rmcl_hub.datasets_scripts.flickr30k import Flickr30k
from rmcl_hub.datasets_scripts.miniature_pictures import encode_jpeg, usable_pictures, write_zip
from rmcl_hub.datasets_scripts.official_builder import NUM_PARTS, OfficialBuilder, clean_text
from rmcl_hub.datasets_scripts.schema import FEATURES

SPLITS = [
    ("coco_captions", "train"),
    ("coco_captions", "test"),
    ("visual_genome", "coco_overlap"),
    ("sbu_captions", "train"),
    ("conceptual_captions", "validation"),
    ("flickr30k", "validation"),
]


class Toy(OfficialBuilder):
    """Rows as `rows.json` has them."""

    task = "captions"
    splits = ("train", "test")
    archives = ("pictures.zip",)
    licence = "none"
    homepage = "https://toy.example"

    @classmethod
    def has_split(cls, folder, split):
        return folder.has(f"{split}.json")

    @classmethod
    def read_rows(cls, folder, split):
        for path, image_id, captions in folder.read_json(f"{split}.json"):
            yield {
                "image": path,
                "image_id": image_id,
                "captions": [clean_text(text) for text in captions],
                "concept": image_id,
                "source": "toy",
            }


def write_toy(root, rows, split="train"):
    root.mkdir(exist_ok=True)
    (root / f"{split}.json").write_text(json.dumps(rows))
    jpeg = encode_jpeg(usable_pictures(1)[0].drawing)
    write_zip(root / "pictures.zip", {"a.jpg": jpeg, "cut.jpg": jpeg[:200], "text.jpg": b"no picture"})


def encoded(dataset):
    return list(dataset.cast_column("image", datasets.Image(decode=False)))


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_map_style_and_streaming_give_the_same_rows_in_the_same_order(
    name, split, miniature_corpora, tmp_path
):
    root = miniature_corpora[name]
    map_style = load_corpus(root, split, corpus=name, cache_dir=str(tmp_path))
    stream = load_corpus(root, split, corpus=name, streaming=True)
    corpus = CORPORA[name]
    folder = corpus.open(root)
    rows = list(corpus.with_pictures(folder, corpus.annotations(folder, split)))
    assert len(rows) >= 6
    assert encoded(map_style) == encoded(stream) == rows
    assert map_style.features == stream.features == FEATURES["captions"]
    assert stream.num_shards == NUM_PARTS


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_hold_their_pictures_also_when_the_corpus_is_the_current_folder(
    streaming, copy_of, tmp_path, monkeypatch
):
    root = copy_of("flickr30k")
    shutil.unpack_archive(root / "flickr30k-images.tar", root)
    elsewhere = encoded(load_corpus(root, "test", "flickr30k", streaming, str(tmp_path / "elsewhere")))
    monkeypatch.chdir(root)
    inside = encoded(load_corpus(".", "test", "flickr30k", streaming, str(tmp_path / "inside")))
    assert (root / inside[0]["image"]["path"]).is_file()
    assert inside == elsewhere
    assert all(row["image"]["bytes"] for row in inside)


def test_two_workers_share_a_stream(miniature_corpora):
    stream = load_corpus(miniature_corpora["flickr30k"], "train", corpus="flickr30k", streaming=True)
    loader = torch.utils.data.DataLoader(stream.select_columns("image_id"), batch_size=None, num_workers=2)
    seen = [row["image_id"] for row in loader]
    folder = Flickr30k.open(miniature_corpora["flickr30k"])
    usable = Flickr30k.with_pictures(folder, Flickr30k.annotations(folder, "train"))
    assert sorted(seen) == sorted(row["image_id"] for row in usable)
    assert len(seen) == len(set(seen)) == 36


def test_the_order_does_not_depend_on_the_published_one(tmp_path):
    rows = [["a.jpg", str(index), ["text"]] for index in range(40)]
    write_toy(tmp_path, rows)
    order = [row["image_id"] for row in Toy.annotations(Toy.open(tmp_path), "train")]
    write_toy(tmp_path, rows[::-1])
    assert [row["image_id"] for row in Toy.annotations(Toy.open(tmp_path), "train")] == order
    assert sorted(order) != order != [row[1] for row in rows]
    write_toy(tmp_path, rows[:20])  # rows keep their places to each other
    kept = [row["image_id"] for row in Toy.annotations(Toy.open(tmp_path), "train")]
    assert kept == [image_id for image_id in order if int(image_id) < 20]


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path):
    good = ["a.jpg", "1", ["a  text\nof two lines", ""]]
    bad = [
        ["a.jpg", "1", ["another"]],
        ["../a.jpg", "2", ["text"]],
        ["a.jpg", "3", ["", "\t"]],
        ["a.jpg", "4", []],
        ["nowhere.jpg", "5", ["text"]],
        ["cut.jpg", "6", ["text"]],
        ["text.jpg", "7", ["text"]],
    ]
    write_toy(tmp_path, [good, *bad])
    folder = Toy.open(tmp_path)
    rows = list(Toy.with_pictures(folder, Toy.annotations(folder, "train")))
    assert [(row["image_id"], row["captions"]) for row in rows] == [("1", ["a text of two lines", ""])]
    assert rows[0]["image"]["path"] == "a.jpg"
    assert folder.dropped == {
        "duplicate id": 1,
        "picture outside the folder": 1,
        "no text": 2,
        "missing picture": 1,
        "unreadable picture": 2,
    }


def test_changed_files_are_not_answered_from_the_cache(copy_of, tmp_path):
    root, cache = copy_of("coco_captions"), str(tmp_path / "cache")
    before = load_corpus(root, "test", corpus="coco_captions", cache_dir=cache)
    content = json.loads((root / "dataset_coco.json").read_text())
    for entry in content["images"]:
        entry["sentences"][0]["raw"] = "a new caption"
    (root / "dataset_coco.json").write_text(json.dumps(content))
    after = load_corpus(root, "test", corpus="coco_captions", cache_dir=cache)
    assert after["image_id"] == before["image_id"]
    assert all(captions[0] == "a new caption" for captions in after["captions"])
    assert not any(captions[0] == "a new caption" for captions in before["captions"])


def test_the_builder_reads_all_splits_that_are_there(tmp_path):
    write_toy(tmp_path / "root", [["a.jpg", "1", ["text"]]])
    builder = Toy(data_dir=str(tmp_path / "root"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert {name: len(rows) for name, rows in builder.as_dataset().items()} == {"train": 1}
    assert builder.info.license == "none"
    assert builder.info.homepage == "https://toy.example"


def test_a_folder_without_annotations_is_named(tmp_path):
    builder = Toy(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(
        FileNotFoundError, match=r"holds the annotations of none of the splits train, test of Toy; see https"
    ):
        builder.download_and_prepare()


def test_unknown_splits_are_refused(miniature_corpora):
    folder = CocoCaptions.open(miniature_corpora["coco_captions"])
    with pytest.raises(
        ValueError, match="CocoCaptions has no split 'val'; choose one of train, restval, valid"
    ):
        CocoCaptions.annotations(folder, "val")


def test_annotations_of_another_kind_are_refused(tmp_path):
    write_toy(tmp_path, [["a.jpg", "1", [5]]])
    with pytest.raises(ValueError, match=r"of Toy train .* not the published fields .*https://toy.example"):
        Toy.annotations(Toy.open(tmp_path), "train")


def test_texts_become_one_line():
    assert clean_text("  a\r\nb\t c  ") == "a b c"
    assert clean_text(" \n") == ""


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_say_where_they_come_from(name):
    corpus = CORPORA[name]
    assert corpus.homepage.startswith("https://")
    assert corpus.licence
    assert {split for splits in corpus.documented for split in splits.split("+")} <= {*corpus.splits}
    for file in corpus.published.values():
        assert file.sha256 is None or len(file.sha256) == 64
