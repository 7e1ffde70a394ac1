"""Visual Genome's rows are what its files say, and none that trains is a test picture of COCO."""

import json
import zipfile

import pytest

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.miniature_pictures import write_zip
from rmcl_hub.datasets_scripts.visual_genome import VisualGenome


def rows_of(root, split):
    folder = VisualGenome.open(root)
    return list(VisualGenome.with_pictures(folder, VisualGenome.annotations(folder, split)))


def read_packed(root, name):
    with zipfile.ZipFile(root / f"{name}.zip") as archive:
        return json.loads(archive.read(name))


def test_captions_are_the_phrases_of_the_regions(miniature_corpora):
    root = miniature_corpora["visual_genome"]
    phrases = {}
    for entry in read_packed(root, "region_descriptions.json"):
        phrases.setdefault(str(entry["id"]), [region["phrase"] for region in entry["regions"]])
    rows = [row for split in VisualGenome.splits for row in rows_of(root, split)]
    assert len(rows) == 48
    for row in rows:
        assert row["captions"] == [
            " ".join(text.split()) for text in phrases[row["image_id"]] if text.strip()
        ]
        assert row["image"]["path"] in (f"VG_100K/{row['image_id']}.jpg", f"VG_100K_2/{row['image_id']}.jpg")


def test_no_picture_that_coco_tests_on_is_in_train(miniature_corpora):
    root = miniature_corpora["visual_genome"]
    coco = CocoCaptions.open(miniature_corpora["coco_captions"])
    tested = {
        row["image_id"]
        for split in ("restval", "validation", "test")
        for row in CocoCaptions.annotations(coco, split)
    }
    coco_ids = {
        str(image["image_id"]): str(image["coco_id"]) for image in read_packed(root, "image_data.json")
    }
    train = {row["image_id"] for row in rows_of(root, "train")}
    overlap = {row["image_id"] for row in rows_of(root, "coco_overlap")}
    assert not {coco_ids[image_id] for image_id in train} & tested
    assert {coco_ids[image_id] for image_id in overlap} <= tested
    assert len(overlap) == 12
    # Others of COCO's pictures, and pictures that are not COCO's, do train.
    assert len([image_id for image_id in train if coco_ids[image_id] != "None"]) == 12
    assert len([image_id for image_id in train if coco_ids[image_id] == "None"]) == 24


def test_without_the_pictures_of_val2014_nothing_is_read(copy_of):
    root = copy_of("visual_genome")
    (root / "dataset_coco.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"not say which pictures are in COCO's val2014.*Put dataset_coco.json"
    ):
        rows_of(root, "train")


def test_cocos_own_annotations_say_the_same(copy_of, miniature_corpora):
    root = copy_of("visual_genome")
    (root / "dataset_coco.json").unlink()
    archive = miniature_corpora["coco_captions"] / "annotations_trainval2014.zip"
    (root / archive.name).write_bytes(archive.read_bytes())
    for split in VisualGenome.splits:
        assert rows_of(root, split) == rows_of(miniature_corpora["visual_genome"], split) != []


def test_unpacked_files_give_the_same_rows(copy_of, miniature_corpora):
    root = copy_of("visual_genome")
    for archive in list(root.glob("*.zip")):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(root, [name for name in packed.namelist() if ".." not in name])
        archive.unlink()
    for split in VisualGenome.splits:
        assert rows_of(root, split) == rows_of(miniature_corpora["visual_genome"], split) != []


def test_pictures_without_regions_are_counted(copy_of):
    root = copy_of("visual_genome")
    regions = read_packed(root, "region_descriptions.json")
    content = json.dumps([entry for entry in regions if entry["id"] != 5]).encode()
    write_zip(root / "region_descriptions.json.zip", {"region_descriptions.json": content})
    folder = VisualGenome.open(root)
    rows = VisualGenome.annotations(folder, "coco_overlap")
    assert "5" not in {row["image_id"] for row in rows}
    assert len(rows) == 11
    assert folder.dropped == {"no text": 1}
