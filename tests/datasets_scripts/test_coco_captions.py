"""COCO's rows are what its files say, by either set of annotations."""

import json
import zipfile

import pytest

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions, val2014_ids
from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.miniature_pictures import truncate, write_zip

KARPATHY_NAMES = {"train": "train", "restval": "restval", "validation": "val", "test": "test"}


def annotations(root, split):
    return CocoCaptions.annotations(CocoCaptions.open(root), split)


def move_into_zip(file, archive):
    write_zip(archive, {file.name: file.read_bytes()})
    file.unlink()


@pytest.mark.parametrize("split", CocoCaptions.splits)
def test_rows_are_those_of_karpathys_file(split, miniature_corpora):
    root = miniature_corpora["coco_captions"]
    entries = json.loads((root / "dataset_coco.json").read_text())["images"]
    expected = {}
    for entry in entries:
        sentences = [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
        if entry["split"] == KARPATHY_NAMES[split] and any(sentences) and ".." not in entry["filename"]:
            path = f"{entry['filepath']}/{entry['filename']}"
            row = {"image": path, "image_id": str(entry["cocoid"]), "captions": [s for s in sentences if s]}
            expected.setdefault(row["image_id"], row)
    rows = annotations(root, split)
    assert {
        row["image_id"]: {key: row[key] for key in ("image", "image_id", "captions")} for row in rows
    } == (expected)
    assert {row["source"] for row in rows} == {"coco"}
    assert all(row["concept"] == row["image_id"] for row in rows)


def test_pictures_are_the_bytes_in_the_archives(miniature_corpora):
    root = miniature_corpora["coco_captions"]
    folder = CocoCaptions.open(root)
    rows = list(CocoCaptions.with_pictures(folder, CocoCaptions.annotations(folder, "test")))
    assert len(rows) == 12
    with zipfile.ZipFile(root / "val2014.zip") as archive:
        for row in rows:
            assert row["image"]["bytes"] == archive.read(row["image"]["path"])


def test_splits_share_no_picture_and_train_is_train2014(miniature_corpora):
    rows = {split: annotations(miniature_corpora["coco_captions"], split) for split in CocoCaptions.splits}
    ids = [row["image_id"] for split in rows.values() for row in split]
    assert len(ids) == len(set(ids))
    for split, of_split in rows.items():
        year = "train2014" if split == "train" else "val2014"
        assert all(row["image"].startswith(f"{year}/") for row in of_split)


def test_karpathys_file_may_be_in_its_archive(copy_of, miniature_corpora):
    root = copy_of("coco_captions")
    move_into_zip(root / "dataset_coco.json", root / "caption_datasets.zip")
    for split in CocoCaptions.splits:
        assert annotations(root, split) == annotations(miniature_corpora["coco_captions"], split) != []


@pytest.mark.parametrize("place", ["archive", "annotations", "top"])
def test_cocos_own_annotations_give_the_same_train(place, copy_of, miniature_corpora):
    root = copy_of("coco_captions")
    (root / "dataset_coco.json").unlink()
    if place != "archive":
        with zipfile.ZipFile(root / "annotations_trainval2014.zip") as archive:
            archive.extractall(root)
        (root / "annotations_trainval2014.zip").unlink()
    if place == "top":
        (root / "annotations" / "captions_train2014.json").rename(root / "captions_train2014.json")
    assert annotations(root, "train") == annotations(miniature_corpora["coco_captions"], "train") != []
    assert [
        split for split in CocoCaptions.splits if CocoCaptions.has_split(CocoCaptions.open(root), split)
    ] == ["train"]
    with pytest.raises(
        FileNotFoundError, match=r"holds no dataset_coco.json, neither unpacked nor in .*_datasets"
    ):
        load_corpus(root, "validation", corpus="coco_captions")


def test_val2014_ids_are_the_same_in_both_files(copy_of):
    root = copy_of("coco_captions")
    ids = val2014_ids(CocoCaptions.open(root))
    assert len(ids) == 24
    (root / "dataset_coco.json").unlink()
    assert val2014_ids(CocoCaptions.open(root)) == ids
    (root / "annotations_trainval2014.zip").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no annotations/captions_val2014.json or captions_val2014.json"
    ):
        val2014_ids(CocoCaptions.open(root))


def test_half_finished_annotations_are_named(copy_of):
    root = copy_of("coco_captions")
    truncate(root / "dataset_coco.json")
    with pytest.raises(
        ValueError, match=r"dataset_coco.json in .* is not valid JSON .*; is the download finished"
    ):
        annotations(root, "test")


def test_other_annotations_under_that_name_are_refused(copy_of):
    root = copy_of("coco_captions")
    (root / "dataset_coco.json").write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    with pytest.raises(
        ValueError, match=r"CocoCaptions test .* not the published fields \(KeyError: 'split'\)"
    ):
        annotations(root, "test")


def test_documented_sizes_add_up_to_cocos():
    sizes = CocoCaptions.documented
    assert sum(sizes[split].images for split in ("restval", "validation", "test")) == 40_504  # val2014
    assert sum(size.images for size in sizes.values()) == 123_287
    assert sum(size.texts for size in sizes.values()) == 616_767  # of the published annotations
