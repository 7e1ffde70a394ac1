import datasets
import pytest

from rmcl_hub.datasets_scripts.corpora import CORPORA, load_corpus
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.evaluation import file_overlap as module
from rmcl_hub.evaluation.file_overlap import PreparedSplits, file_overlap


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def in_small_shards(request, tmp_path_factory):
    """COCO with two rows per shard."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco_captions(folder / "official")
    prepare(
        CORPORA["coco_captions"],
        folder / "official",
        folder / "shards",
        rows_per_shard=2,
        num_workers=1,
        unofficial=True,
        shard_format=request.param,
    )
    return PreparedCorpus(str(folder / "shards"))


def test_splits_of_a_corpus_are_apart(in_small_shards):
    test = load_corpus(in_small_shards.location, "test")
    found = file_overlap(PreparedSplits(in_small_shards, ("train", "restval")), test)
    rows = sum(in_small_shards.split(split).rows for split in ("train", "restval"))
    assert (found["same_pixels"], found["same_ids"]) == (0, 0)
    assert found["num_test_images"] == len(test)
    assert found["how"] == f"file by file with {rows} of {rows} training rows, by id with all"


def test_a_split_overlaps_itself(in_small_shards):
    test = load_corpus(in_small_shards.location, "test")
    found = file_overlap(PreparedSplits(in_small_shards, ("train", "test")), test)
    assert found["same_pixels"] == found["num_test_images"] == len(test)
    assert found["same_ids"] == len(test)


def test_the_same_file_under_another_id(in_small_shards):
    def renamed(row):
        return {**row, "image_id": f"another {row['image_id']}"}

    test = load_corpus(in_small_shards.location, "test")
    test = test.cast_column("image", datasets.Image(decode=False)).map(renamed)
    found = file_overlap(PreparedSplits(in_small_shards, ("test",)), test)
    assert (found["same_pixels"], found["same_ids"]) == (found["num_test_images"], 0)


def test_files_of_a_sample_and_ids_of_all(in_small_shards, monkeypatch):
    monkeypatch.setattr(module, "MAX_TRAIN_ROWS", 5)
    rows = in_small_shards.split("test").rows
    test = load_corpus(in_small_shards.location, "test")
    found = file_overlap(PreparedSplits(in_small_shards, ("test",)), test)
    assert found["same_ids"] == rows
    if in_small_shards.manifest.format == "parquet":
        assert 0 < found["num_train_images"] < rows
        assert found["same_pixels"] == found["num_train_images"]
        assert found["how"].startswith(
            f"file by file with {found['num_train_images']} of {rows} training rows"
        )
    else:
        assert found["same_pixels"] == rows
