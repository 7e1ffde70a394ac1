"""Manifests, and shards of both formats, read back row by row; damage is named."""

import pytest

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.shards import (
    MANIFEST,
    Manifest,
    PreparedCorpus,
    Shard,
    SplitManifest,
    open_shard,
    read_row_group,
    read_shard,
)
from rmcl_hub.datasets_scripts.webdataset_shards import read_samples, write_samples

QUESTION = {
    "image": {"bytes": b"picture" * 200, "path": "val2014/a.b.JPG"},
    "image_id": "7",
    "question_id": "70",
    "question": "Où est\n“le chat”?",
    "question_type": "other",
    "answers": ["là", "no"],
    "scores": [0.3, 1.0],
    "concept": "7",
}
STATEMENT = {
    "left_image": {"bytes": b"left" * 200, "path": "a"},
    "right_image": {"bytes": b"right", "path": "b.png"},
    "identifier": "dev-1-0-0",
    "statement": "Both are red.",
    "label": True,
    "statement_type": "",
    "concept": "1",
}


def test_a_manifest_comes_back_as_it_was():
    shard = Shard("data/train-00000-of-00001.parquet", 2, 300, "ab")
    manifest = Manifest(
        "coco_captions",
        "captions",
        "1.0.0",
        "CC BY 4.0",
        {"train": SplitManifest(2, 2, 10, {"no text": 1}, [shard])},
        checked={"train2014.zip": "cd"},
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"splits": {"train": {}}}', '{"splits": {}, "other": 1}'])
def test_what_is_no_manifest_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json is not that of a prepared corpus .*; prepare it"):
        Manifest.from_json(text)


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_a_shard_holds_the_rows_of_its_corpus(shard_format, prepare_coco, miniature_corpora):
    corpus = PreparedCorpus(str(prepare_coco(shard_format=shard_format)))
    folder = CocoCaptions.open(miniature_corpora["coco_captions"])
    expected = list(CocoCaptions.with_pictures(folder, CocoCaptions.annotations(folder, "train")))
    read = [row for address in corpus.files("train") for row in read_shard(address, "captions", shard_format)]
    assert read == expected


@pytest.mark.parametrize(("task", "row"), [("vqa", QUESTION), ("nlvr2", STATEMENT)])
def test_samples_keep_every_column_and_picture(task, row, tmp_path):
    path = tmp_path / "dev-00000-of-00001.unfinished"
    write_samples(path, task, [row, row])
    with path.open("rb") as stream:
        assert list(read_samples(stream, task)) == [row, row]
    path.write_bytes(path.read_bytes()[:1000])
    with path.open("rb") as stream, pytest.raises(OSError, match=r"unexpected end of data"):
        list(read_samples(stream, task))


def test_a_row_that_lacks_its_last_file_is_damage(tmp_path):
    path = tmp_path / "dev-00000-of-00001.tar"
    write_samples(path, "vqa", [QUESTION, QUESTION])
    one_row = 512 * 4 + 1024  # two headers, 1,400 and fewer than 512 bytes
    for length, error in ((one_row, None), (one_row + 512 + 1536, "ends within a row")):
        whole = path.read_bytes()
        cut = tmp_path / f"{length}.tar"
        cut.write_bytes(whole[:length])
        with cut.open("rb") as stream:
            if error is None:
                assert list(read_samples(stream, "vqa")) == [QUESTION]
                continue
            with pytest.raises(OSError, match=error):
                list(read_samples(stream, "vqa"))


def test_row_groups_are_small_and_read_alone(prepare_coco):
    corpus = PreparedCorpus(str(prepare_coco()))
    (address, *_) = corpus.files("train")
    with open_shard(address) as shard:
        assert shard.num_row_groups == 1
        rows = read_row_group(address, shard, 0, ["image_id"])
    assert rows == [{"image_id": row["image_id"]} for row in read_shard(address, "captions", "parquet")]


@pytest.mark.parametrize(("shard_format", "suffix"), [("parquet", "parquet"), ("webdataset", "tar")])
def test_damaged_and_missing_shards_are_named(shard_format, suffix, prepare_coco):
    corpus = PreparedCorpus(str(prepare_coco(shard_format=shard_format, splits=["test"])))
    cut, missing = corpus.files("test")
    with open(cut, "r+b") as stream:  # noqa: PTH123 - an address
        stream.truncate(2000)
    with pytest.raises(OSError, match=rf"test-00000-of-00002.{suffix} cannot be read \(.*\): half-"):
        list(read_shard(cut, "captions", shard_format))
    with pytest.raises(FileNotFoundError, match=rf"test-00002-of-00002.{suffix} is missing"):
        list(read_shard(missing.replace("00001", "00002"), "captions", shard_format))


def test_a_damaged_row_group_is_named_with_its_shard(prepare_coco):
    (address, *_) = PreparedCorpus(str(prepare_coco())).files("train")
    with open(address, "r+b") as stream:  # noqa: PTH123 - an address
        stream.write(bytes(4000))
    with (
        open_shard(address) as shard,
        pytest.raises(OSError, match=r"train-00000-of-00003.parquet cannot be"),
    ):
        read_row_group(address, shard, 0)


def test_files_are_checked_by_their_sizes(prepare_coco):
    folder = prepare_coco()
    corpus = PreparedCorpus(f"{folder}/")
    corpus.check_files("train")
    first = folder / corpus.split("train").shards[0].file
    first.write_bytes(first.read_bytes() + b" ")
    with pytest.raises(OSError, match=r"train-00000-of-00003.parquet cannot be read \(it has .* instead of"):
        corpus.check_files("train")
    for path in (folder / "data").iterdir():
        path.unlink()
    (folder / "data").rmdir()
    with pytest.raises(FileNotFoundError, match=r"train-00000-of-00003.parquet is missing"):
        corpus.check_files("train")


def test_a_manifest_on_disk_is_named_when_it_is_none(tmp_path):
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path}: manifest.json is not"):
        PreparedCorpus(str(tmp_path))
