"""Flickr30k's rows are what its files say."""

import gzip
import json
import tarfile
import zipfile

import pytest

from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.flickr30k import Flickr30k
from rmcl_hub.datasets_scripts.official_folder import BrokenArchiveError


def rows_of(root, split):
    folder = Flickr30k.open(root)
    return list(Flickr30k.with_pictures(folder, Flickr30k.annotations(folder, split)))


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("validation", "val"), ("test", "test")])
def test_rows_are_those_of_karpathys_file(split, name, miniature_corpora):
    root = miniature_corpora["flickr30k"]
    with zipfile.ZipFile(root / "caption_datasets.zip") as archive:
        entries = json.loads(archive.read("dataset_flickr30k.json"))["images"]
    captions = {
        entry["filename"].split(".")[0]: [s["raw"] for s in entry["sentences"]]
        for entry in reversed(entries)  # of a duplicated id the first
        if entry["split"] == name
    }
    rows = rows_of(root, split)
    assert len(rows) == {"train": 36, "val": 6, "test": 6}[name]
    with tarfile.open(root / "flickr30k-images.tar") as archive:
        for row in rows:
            expected = [" ".join(text.split()) for text in captions[row["image_id"]] if text.strip()]
            assert row["captions"] == expected
            picture = archive.extractfile(f"flickr30k-images/{row['image_id']}.jpg").read()
            assert row["image"]["bytes"] == picture


def test_unpacked_files_give_the_same_rows(copy_of, miniature_corpora):
    root = copy_of("flickr30k")
    with tarfile.open(root / "flickr30k-images.tar") as archive:
        usable = [member for member in archive.getmembers() if ".." not in member.name]
        archive.extractall(root, usable, filter="data")
    with zipfile.ZipFile(root / "caption_datasets.zip") as archive:
        archive.extractall(root)
    (root / "flickr30k-images.tar").unlink()
    (root / "caption_datasets.zip").unlink()
    for split in Flickr30k.splits:
        assert rows_of(root, split) == rows_of(miniature_corpora["flickr30k"], split) != []


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz"])
def test_a_compressed_tar_must_be_unpacked(ending, copy_of):
    root = copy_of("flickr30k")
    tar = root / "flickr30k-images.tar"
    tar.with_name(f"flickr30k-images{ending}").write_bytes(gzip.compress(tar.read_bytes(), 1))
    tar.unlink()
    with pytest.raises(BrokenArchiveError, match=rf"compressed tar.*: `tar -xzf flickr30k-images{ending}`"):
        rows_of(root, "test")


def test_without_the_splits_nothing_is_read(copy_of):
    root = copy_of("flickr30k")
    (root / "caption_datasets.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no dataset_flickr30k.json, neither unpacked nor in"):
        load_corpus(root, "test", corpus="flickr30k")


def test_documented_sizes_are_five_captions_a_picture():
    sizes = Flickr30k.documented
    assert all(size.texts == 5 * size.images for size in sizes.values())
    assert sum(size.images for size in sizes.values()) == 31_014
