"""One call loads a corpus from published files, from shards on disk and from the Hub, with the same rows."""

import json
import shutil

import datasets
import pytest
from huggingface_hub import HfApi

from rmcl_hub.datasets_scripts.corpora import CORPORA, corpus_class, load_corpus
from rmcl_hub.datasets_scripts.schema import FEATURES
from rmcl_hub.datasets_scripts.shards import MANIFEST


def rows_of(dataset):
    """Rows with the stored bytes of their pictures."""
    return list(dataset.cast_column("image", datasets.Image(decode=False)))


@pytest.fixture
def coco_root(miniature_corpora):
    return miniature_corpora["coco_captions"]


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.mark.parametrize("streaming", [False, True])
def test_published_files_and_both_kinds_of_shards_give_the_same_rows(
    streaming, coco_root, prepare_coco, cache
):
    published = load_corpus(coco_root, "train", "coco_captions", streaming=streaming, cache_dir=cache)
    rows = rows_of(published)
    assert len(rows) == len({row["image_id"] for row in rows}) == 24
    for shard_format in ("parquet", "webdataset"):
        folder = prepare_coco(shard_format, shard_format=shard_format)
        loaded = load_corpus(folder, "train", streaming=streaming, cache_dir=cache)
        assert loaded.features == FEATURES["captions"]
        assert loaded.split == "train"
        assert rows_of(loaded) == rows


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_streams_of_shards_can_be_shared_by_workers(shard_format, prepare_coco):
    stream = load_corpus(prepare_coco(shard_format=shard_format), "train", streaming=True)
    assert stream.num_shards == 3


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_changed_shards_are_not_answered_from_the_cache(shard_format, prepare_coco, cache):
    folder = prepare_coco(shard_format=shard_format)
    first = rows_of(load_corpus(folder, "train", cache_dir=cache))
    other = prepare_coco("other", shard_format=shard_format, splits=["restval"])
    shutil.rmtree(folder)
    manifest = json.loads((other / MANIFEST).read_text().replace("restval", "train"))
    other.rename(folder)
    for path in sorted((folder / "data").iterdir()):
        path.rename(path.with_name(path.name.replace("restval", "train")))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    second = rows_of(load_corpus(folder, "train", cache_dir=cache))
    assert len(second) == 6
    assert not {row["image_id"] for row in first} & {row["image_id"] for row in second}


def test_changed_published_files_are_not_answered_from_the_cache(coco_root, tmp_path, cache):
    root = shutil.copytree(coco_root, tmp_path / "coco")
    annotations = json.loads((root / "dataset_coco.json").read_text())
    first = load_corpus(root, "test", "coco_captions", cache_dir=cache)
    of_test = [image for image in annotations["images"] if image["split"] == "test"]
    annotations["images"].remove(of_test[0])
    (root / "dataset_coco.json").write_text(json.dumps(annotations))
    second = load_corpus(root, "test", "coco_captions", cache_dir=cache)
    assert set(first["image_id"]) - set(second["image_id"]) == {str(of_test[0]["cocoid"])}


def test_an_unknown_corpus_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="no corpus 'coco_caption'; did you mean 'coco_captions'"):
        corpus_class("coco_caption")
    with pytest.raises(ValueError, match="no corpus 'xyz'; choose one of coco_captions"):
        corpus_class("xyz")
    assert all(corpus_class(name).__module__.endswith(f".{name}") for name in CORPORA)


def test_a_wrong_path_says_what_was_expected_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json, .* make one with `rmcl-hub"):
        load_corpus(tmp_path / "nowhere", "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"file holds no manifest.json, so it is no prepared corpus"):
        load_corpus(tmp_path / "file", "train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; give the one with the download"):
        load_corpus(tmp_path / "nowhere", "train", "coco_captions")
    with pytest.raises(FileNotFoundError, match=r"holds no dataset_coco.json, .*; fetch it"):
        load_corpus(tmp_path, "test", "coco_captions")


def test_a_missing_split_is_named_with_those_there_are(coco_root, prepare_coco):
    with pytest.raises(ValueError, match="has no split 'tset'; choose one of train, restval"):
        load_corpus(coco_root, "tset", "coco_captions")
    folder = prepare_coco(splits=["validation", "test"])
    with pytest.raises(ValueError, match="no split 'train', only validation, test; prepare it with --splits"):
        load_corpus(folder, "train")


def test_the_shards_of_another_corpus_are_refused(prepare_coco):
    with pytest.raises(ValueError, match="holds coco_captions, not flickr30k; give the folder of flickr30k"):
        load_corpus(prepare_coco(), "train", "flickr30k")


def test_a_manifest_that_is_none_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: manifest.json is not that of a prepared corpus"):
        load_corpus(tmp_path, "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_and_cut_shards_are_named_before_anything_is_read(streaming, prepare_coco, cache):
    folder = prepare_coco()
    whole, cut, missing = sorted((folder / "data").glob("train*.parquet"))
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"Shard .*{missing.name} is missing; fetch it, or run"):
        load_corpus(folder, "train", streaming=streaming, cache_dir=cache)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"{cut.name} cannot be read \(it has .* instead of .*\)"):
        load_corpus(folder, "train", streaming=streaming, cache_dir=cache)
    assert whole.is_file()
    assert len(rows_of(load_corpus(folder, "test", streaming=streaming, cache_dir=cache))) == 12


def test_damage_that_keeps_the_size_is_reported_with_the_folder(prepare_coco, cache):
    folder = prepare_coco()
    shard = sorted((folder / "data").glob("train*.parquet"))[1]
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(OSError, match=r"prepared \(train\) .* names the damaged shards"):
        load_corpus(folder, "train", cache_dir=cache)


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_a_split_that_gives_fewer_rows_than_its_manifest_tells_is_refused(shard_format, prepare_coco, cache):
    folder = prepare_coco(shard_format=shard_format)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["splits"]["test"]["shards"][-1]["rows"] += 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        OSError, match=r"prepared \(test\) gives 12 rows instead of 13. `rmcl-hub data check`"
    ):
        load_corpus(folder, "test", cache_dir=cache)


@pytest.mark.parametrize("revision", ["", "@main", "@0123abc"])
def test_an_address_on_the_hub_must_name_a_commit(revision):
    with pytest.raises(ValueError, match="names no commit, so its rows could change under a result; append"):
        load_corpus(f"hf://datasets/user/name{revision}", "train")


READ_FROM_HUB = """
import json, sys
sys.argv[0] = "rmcl-hub"  # the package then does not import torch
import datasets
from rmcl_hub.datasets_scripts.corpora import load_corpus

def ids(dataset):
    return [row["image_id"] for row in dataset.cast_column("image", datasets.Image(decode=False))]

found = []
for commit in sys.argv[1:]:
    address = f"hf://datasets/user/coco@{commit}"
    stream = load_corpus(address, "train", streaming=True)
    sizes = [row["image"].size for row in stream]
    found.append([ids(load_corpus(address, "train")), ids(stream), sizes])
message = ""
try:
    load_corpus("hf://datasets/user/coco@" + "f" * 40, "train")
except FileNotFoundError as error:
    message = str(error)
print(json.dumps([found, message]))
"""


def test_the_pinned_commit_of_the_hub_wins(prepare_coco, loopback_hub, run_against_hub):
    """Three commits; the second has other rows under the same file names, and is `main`."""
    first, second = prepare_coco("first"), prepare_coco("second")
    manifest = json.loads((second / MANIFEST).read_text())
    shards = manifest["splits"]["train"]["shards"]
    (second / shards[1]["file"]).replace(second / shards[0]["file"])
    manifest["splits"]["train"]["shards"] = [{**shards[1], "file": shards[0]["file"]}]
    (second / MANIFEST).write_text(json.dumps(manifest))
    third = prepare_coco("third", shard_format="webdataset")
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    coco = {"repo_id": "user/coco", "repo_type": "dataset"}
    api.create_repo(**coco)
    api.create_branch(**coco, branch="tar")
    commits = {
        api.upload_folder(**coco, folder_path=folder, revision=branch, delete_patterns="*").oid: folder
        for folder, branch in ((first, "main"), (second, "main"), (third, "tar"))
    }
    found, message = json.loads(run_against_hub(READ_FROM_HUB, *commits).stdout.splitlines()[-1])
    for folder, (mapped, streamed, sizes) in zip(commits.values(), found, strict=True):
        rows = load_corpus(folder, "train", streaming=True)
        assert mapped == streamed == [row["image_id"] for row in rows]
        assert sizes == [list(row["image"].size) for row in rows]
    (first_rows, _, _), (second_rows, _, _), (third_rows, _, _) = found
    assert len(first_rows) == 24
    assert not set(second_rows) & set(first_rows[: shards[0]["rows"]])
    assert third_rows == first_rows
    assert "holds no manifest.json" in message
