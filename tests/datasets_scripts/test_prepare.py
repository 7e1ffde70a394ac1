"""Shards from published files: complete, resumable, counted, and never half-written."""

import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from rmcl_hub.datasets_scripts import prepare as prepare_module
from rmcl_hub.datasets_scripts import published_files, shard_writing
from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.dataset_card import dataset_card, split_table
from rmcl_hub.datasets_scripts.official_builder import PublishedFile, SplitSize
from rmcl_hub.datasets_scripts.official_folder import BrokenArchiveError
from rmcl_hub.datasets_scripts.prepare import EmptySplitError, prepare
from rmcl_hub.datasets_scripts.shards import MANIFEST, Manifest, PreparedCorpus


@pytest.fixture
def coco(copy_of):
    """Published files that the test may change."""
    return copy_of("coco_captions")


@pytest.fixture
def prepare_here(coco, tmp_path):
    return functools.partial(
        prepare, CocoCaptions, coco, tmp_path / "out", rows_per_shard=5, num_workers=1, unofficial=True
    )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}


def remove_images(coco, chosen):
    """Take annotations of Karpathy's file out."""
    path = coco / "dataset_coco.json"
    annotations = json.loads(path.read_text())
    annotations["images"] = [image for image in annotations["images"] if not chosen(image)]
    path.write_text(json.dumps(annotations))


def test_the_manifest_counts_what_is_there_and_what_was_left_out(prepare_here, coco, out):
    manifest = prepare_here()
    assert Manifest.from_json((out / MANIFEST).read_text()) == manifest
    train = manifest.splits["train"]
    kept = list(load_corpus(coco, "train", "coco_captions", streaming=True))
    assert train.rows == train.images == len(kept) == 24
    assert train.texts == sum(len(row["captions"]) for row in kept)
    assert train.dropped == {
        "no text": 1,
        "picture outside the folder": 1,
        "duplicate id": 1,
        "missing picture": 1,
        "unreadable picture": 1,
    }
    assert [shard.rows for shard in train.shards] == [
        pq.read_metadata(out / shard.file).num_rows for shard in train.shards
    ]
    for shard in train.shards:
        assert shard_writing.sha256_of(out / shard.file) == shard.sha256
        assert (out / shard.file).stat().st_size == shard.bytes


def test_a_picture_of_several_shards_is_counted_once(coco, out):
    """As of questions about the same picture."""
    path = coco / "dataset_coco.json"
    annotations = json.loads(path.read_text())
    annotations["images"] = [
        {**image, "cocoid": 1000 * copy + image["cocoid"]}
        for image in annotations["images"]
        if image["split"] == "test"
        for copy in range(3)
    ]
    path.write_text(json.dumps(annotations))
    manifest = prepare(CocoCaptions, coco, out, ["test"], rows_per_shard=4, num_workers=1, unofficial=True)
    assert (manifest.splits["test"].rows, manifest.splits["test"].images) == (36, 12)


def test_two_processes_write_the_same_bytes_as_one(prepare_here, coco, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rmcl-hub"])  # the processes then do not import torch
    prepare_here(splits=["test"])
    arguments = {"rows_per_shard": 5, "unofficial": True}
    prepare(CocoCaptions, coco, tmp_path / "two", ["test"], num_workers=2, **arguments)
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_a_killed_run_goes_on_to_the_same_bytes_and_rewrites_no_shard(
    shard_format, prepare_here, coco, tmp_path, out, monkeypatch
):
    arguments = {"rows_per_shard": 5, "num_workers": 1, "unofficial": True, "shard_format": shard_format}
    prepare(CocoCaptions, coco, tmp_path / "whole", **arguments)
    decode, pictures = CocoCaptions.with_pictures.__func__, iter(range(1000))

    def killed_in_the_third_shard(cls, folder, rows):
        for row in decode(cls, folder, rows):
            if len(rows) <= 5 and next(pictures) == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    def run():
        CocoCaptions.with_pictures = classmethod(killed_in_the_third_shard)
        prepare_here(shard_format=shard_format)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = times(out)
    assert [name for name in left if ".unfinished-" in name] == [
        f"train-00002-of-00006.unfinished-{process.pid}"
    ]
    with pytest.raises(FileNotFoundError, match="no manifest"):
        load_corpus(out, "train")

    prepare_here(shard_format=shard_format)
    assert contents(out) == contents(tmp_path / "whole")
    finished = {name: time for name, time in left.items() if ".unfinished-" not in name}
    assert len(finished) == 4
    assert finished.items() <= times(out).items()


def test_a_second_run_writes_nothing_and_a_changed_row_only_its_shard(prepare_here, coco, out):
    prepare_here()
    before = times(out)
    prepare_here()
    assert times(out) == before
    row = CocoCaptions.annotations(CocoCaptions.open(coco), "train")[7]
    path = coco / "dataset_coco.json"
    path.write_text(path.read_text().replace(json.dumps(row["captions"][0]), '"another caption"'))
    manifest = prepare_here()
    after = times(out)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"train-00001-of-00006.parquet", "train-00001-of-00006.json"}
    assert manifest.splits["train"].rows == 24


def test_another_shard_size_leaves_no_old_shard(prepare_here, out):
    prepare_here()
    manifest = prepare_here(rows_per_shard=30)
    files = {path.name for path in (out / "data").glob("*.parquet")}
    assert files == {shard.file.removeprefix("data/") for s in manifest.splits.values() for shard in s.shards}
    assert len(datasets.load_dataset(str(out), split="train", cache_dir=str(out / "cache"))) == 24


def test_splits_of_another_version_are_written_again(prepare_here, out, monkeypatch):
    before = prepare_here(splits=["train", "test"])
    monkeypatch.setattr(CocoCaptions, "VERSION", datasets.Version("9.0.0"))
    after = prepare_here(splits=["test"])
    assert (before.version, after.version) == ("1.0.0", "9.0.0")
    assert list(after.splits) == ["test"]  # train is of the earlier version


def test_a_removed_or_cut_shard_is_written_again(prepare_here, out):
    first = prepare_here()
    removed, cut = (out / shard.file for shard in first.splits["train"].shards[:2])
    removed.unlink()
    cut.write_bytes(cut.read_bytes()[:-50])
    assert prepare_here() == first
    PreparedCorpus(str(out)).check_files("train")


def test_splits_that_are_prepared_later_join_the_manifest_in_the_corpus_s_order(prepare_here, out):
    prepare_here(splits=["test"])
    assert list(prepare_here(splits=["train"]).splits) == ["train", "test"]
    assert list(Manifest.from_json((out / MANIFEST).read_text()).splits) == ["train", "test"]


def test_the_card_gives_datasets_the_same_splits(prepare_here, out):
    manifest = prepare_here()
    (out / "data" / "train-00009-of-00006.unfinished-1").write_bytes(b"half a shard")
    loaded = datasets.load_dataset(str(out), cache_dir=str(out / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {
        name: split.rows for name, split in manifest.splits.items()
    }
    assert isinstance(loaded["train"].features["image"], datasets.Image)
    text = (out / "README.md").read_text()
    assert text == dataset_card(CocoCaptions, manifest)
    assert yaml.safe_load(text.split("---")[1])["configs"][0]["data_files"][0] == {
        "split": "train",
        "path": "data/train-*.parquet",
    }
    assert CocoCaptions.licence in text
    assert all(line in text for line in split_table(CocoCaptions, manifest))


def test_differences_to_the_documentation_are_said_in_words(prepare_here, monkeypatch):
    monkeypatch.setattr(CocoCaptions, "documented", {"train": SplitSize(25, 60), "test": SplitSize(12, 28)})
    lines = split_table(CocoCaptions, prepare_here())
    assert "- train has 1 fewer pictures than documented; 5 rows were left out." in lines
    assert not any(line.startswith("- test") for line in lines)
    assert "| test | 12 | 12 | 28 | 12, 28 | none |" in lines


def test_extra_files_lie_beside_the_manifest(prepare_here, out, monkeypatch):
    monkeypatch.setattr(CocoCaptions, "extra_files", classmethod(lambda cls, folder: {"answers.json": "[1]"}))
    prepare_here()
    assert (out / "answers.json").read_text() == "[1]"


def test_a_split_without_usable_rows_ends_the_run_only_if_it_was_asked_for(prepare_here, coco, caplog):
    remove_images(coco, lambda image: image["split"] == "restval")
    assert list(prepare_here().splits) == ["train", "validation", "test"]
    assert "CocoCaptions restval has no usable row; left out: none. It is passed over." in caplog.text
    with pytest.raises(EmptySplitError, match="restval has no usable row"):
        prepare_here(splits=["restval"])


def test_pictures_that_are_not_downloaded_are_missed_before_anything_is_written(prepare_here, coco, out):
    (coco / "val2014.zip").unlink()
    assert list(prepare_here().splits) == ["train"]
    assert not list((out / "data").glob("val*"))
    with pytest.raises(
        EmptySplitError,
        match=r"test: 12 of 12 rows were tried, and none can be used \(12 missing picture;",
    ):
        prepare_here(splits=["test"])
    (coco / "train2014.zip").unlink()
    shutil.rmtree(out)
    with pytest.raises(EmptySplitError, match=r"Are the pictures downloaded to .*coco"):
        prepare_here()


def test_splits_that_do_not_exist_or_are_not_there_are_named(prepare_here, coco, out):
    with pytest.raises(ValueError, match="no split 'tset'; choose from train, restval, validation, test"):
        prepare_here(splits=["train", "tset"])
    (coco / "dataset_coco.json").unlink()
    assert list(prepare_here().splits) == ["train"]  # COCO's own annotations have it
    with pytest.raises(FileNotFoundError, match=r"holds no dataset_coco.json"):
        prepare_here(splits=["train", "test"])
    (coco / "annotations_trainval2014.zip").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"none of the splits train, .* https://coco.* no annotations/capt"
    ):
        prepare_here()


def test_a_half_finished_archive_is_named_and_nothing_is_lost(prepare_here, coco, out):
    prepare_here()
    before = contents(out)
    archive = coco / "val2014.zip"
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(BrokenArchiveError, match=r"val2014.zip .* is not a complete archive .* Fetch the"):
        prepare_here(rows_per_shard=7)
    assert contents(out) == before


def test_archives_of_another_size_are_refused_before_anything_is_written(prepare_here, coco, out):
    size = (coco / "train2014.zip").stat().st_size
    with pytest.raises(
        ValueError,
        match=rf"train2014.zip has {size:,} bytes, but 13,510,573,713 are .*curl -C - .*--unoff",
    ):
        prepare_here(unofficial=False)
    assert not out.exists()


def test_archives_are_hashed_once_unless_they_change(prepare_here, coco, monkeypatch, out):
    archives = [coco / "train2014.zip", coco / "val2014.zip"]
    published = {
        path.name: PublishedFile(path.stat().st_size, shard_writing.sha256_of(path)) for path in archives
    }
    monkeypatch.setattr(CocoCaptions, "published", published)
    hashed = []

    def spy(path, description):
        hashed.append(path.name)
        return shard_writing.sha256_of(path)

    monkeypatch.setattr(published_files, "sha256_of", spy)
    manifest = prepare_here(unofficial=False)
    assert hashed == ["train2014.zip", "val2014.zip"]
    assert manifest.checked == {name: file.sha256 for name, file in published.items()}
    assert prepare_here(unofficial=False, splits=["test"]).checked == manifest.checked
    assert len(hashed) == 2
    content = bytearray(archives[1].read_bytes())
    content[-1] ^= 1
    archives[1].write_bytes(content)
    os.utime(archives[1], (1, 1))  # as downloaders do
    before = contents(out)
    with pytest.raises(ValueError, match=r"val2014.zip has another checksum than .* fetch it again"):
        prepare_here(unofficial=False)
    assert hashed[2:] == ["val2014.zip"]
    assert contents(out) == before


def test_too_little_space_is_said_before_anything_is_written(prepare_here, coco, out, monkeypatch):
    pictures = sum(
        len(row["image"]["bytes"])
        for row in CocoCaptions.with_pictures(
            CocoCaptions.open(coco), CocoCaptions.annotations(CocoCaptions.open(coco), "test")
        )
    )
    free = [pictures // 2]
    usage = lambda path: shutil._ntuple_diskusage(0, 0, free[0])  # noqa: E731
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", usage)
    with pytest.raises(OSError, match=r"test needs about 0.0 GB more in .*out, whose disk has 0.0 GB free;"):
        prepare_here(splits=["test"])
    assert not list((out / "data").iterdir())
    free[0] = pictures + 1000
    prepare_here(splits=["test"])
    free[0] = 0
    prepare_here(splits=["test"])  # nothing is to be written


def test_space_is_needed_once_for_a_picture_of_neighbours(coco, tmp_path):
    """What Parquet does with the pictures of questions that follow each other."""
    annotations = CocoCaptions.annotations(CocoCaptions.open(coco), "test")
    (picture,) = CocoCaptions.with_pictures(CocoCaptions.open(coco), annotations[:1])
    for count in (1, 40):
        shard_writing._write_parquet(tmp_path / f"{count}.parquet", "captions", [picture] * count)
    once, often = ((tmp_path / f"{count}.parquet").stat().st_size for count in (1, 40))
    assert often - once < len(picture["image"]["bytes"]) / 2
    run = prepare_module._Run(CocoCaptions, coco, tmp_path, 5, 1, "parquet")
    assert run._count_stored_pictures([annotations[0]] * 40 + annotations[1:3]) == 3


def test_a_disk_that_fills_up_loses_nothing_else(prepare_here, out, monkeypatch):
    write, written = pq.ParquetWriter.write_table, []

    def fill_up(self, table):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(table)
        write(self, table)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", fill_up)
        with pytest.raises(OSError, match=r"The disk of .*out is full\. Make room and run the same command"):
            prepare_here()
    assert sorted(times(out)) == [
        f"train-0000{index}-of-00006.{suffix}" for index in (0, 1) for suffix in ("json", "parquet")
    ]
    kept = times(out)
    assert prepare_here().splits["train"].rows == 24
    assert kept.items() <= times(out).items()


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_a_second_run_in_the_same_folder_ends_the_first_and_spoils_no_shard(
    shard_format, prepare_here, coco, tmp_path, out, monkeypatch
):
    arguments = {"rows_per_shard": 5, "num_workers": 1, "unofficial": True, "shard_format": shard_format}
    prepare(CocoCaptions, coco, tmp_path / "whole", **arguments)
    decode, pictures = CocoCaptions.with_pictures.__func__, iter(range(1000))

    def overtaken_in_the_third_shard(cls, folder, rows):
        for row in decode(cls, folder, rows):
            if len(rows) <= 5 and next(pictures) == 12:
                process = multiprocessing.get_context("fork").Process(target=prepare_here, kwargs=arguments)
                process.start()
                process.join()
                assert process.exitcode == 0
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(CocoCaptions, "with_pictures", classmethod(overtaken_in_the_third_shard))
        with pytest.raises(OSError, match=r"train-00002.* was removed while it was written, as another run"):
            prepare_here(**arguments)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_named(coco, out):
    out.write_text("a file")
    with pytest.raises(OSError, match=r"out cannot be written \(.*\); choose another with --output-dir"):
        prepare(CocoCaptions, coco, out, unofficial=True)


def test_shards_are_not_written_among_the_published_files(coco, monkeypatch):
    before = contents(coco)
    monkeypatch.chdir(coco)
    with pytest.raises(ValueError, match=r"^\. holds the published files; give the shards an --output-dir"):
        prepare(CocoCaptions, coco, ".", unofficial=True)
    assert contents(coco) == before


def test_a_folder_of_another_corpus_or_format_is_refused(prepare_here, out):
    prepare_here(splits=["test"])
    before = times(out)
    with pytest.raises(ValueError, match="holds coco_captions as parquet; give coco_captions as webdataset"):
        prepare_here(shard_format="webdataset")
    (out / MANIFEST).write_text((out / MANIFEST).read_text().replace("coco_captions", "flickr30k"))
    with pytest.raises(ValueError, match="holds flickr30k as parquet; give coco_captions as parquet a"):
        prepare_here()
    assert times(out) == before


def test_numbers_below_one_are_refused(prepare_here):
    with pytest.raises(ValueError, match="rows_per_shard must be at least 1, got 0"):
        prepare_here(rows_per_shard=0)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        prepare_here(num_workers=0)
