"""Groups of texts: what may be a negative, when it changes, and that pictures are not read for it."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rmcl_hub.datasets_scripts.retrieval_collator import RetrievalCollator, caption_table, read_captions
from rmcl_hub.datasets_scripts.schema import FEATURES
from rmcl_hub.datasets_scripts.shards import Manifest, PreparedCorpus, Shard, SplitManifest
from rmcl_hub.datasets_scripts.webdataset_shards import write_samples

TWIN = "The  DOG sits"  # of image-0's second caption


@pytest.fixture
def captions(pairs):
    rows = [*pairs, {"image_id": "other", "captions": [TWIN, " ", "a tree"]}]
    return caption_table(pa.table({name: [row[name] for row in rows] for name in ("image_id", "captions")}))


@pytest.fixture
def collator(processor, captions):
    return RetrievalCollator(processor, captions, num_negatives=5, max_text_length=24)


def plain(text):
    return " ".join(text.lower().split())


def test_captions_are_listed_with_their_owners():
    rows = pa.table({"image_id": ["a", "b", "c"], "captions": [["x", "y"], [], ["z"]]})
    assert caption_table(rows).to_pydict() == {"image_id": ["a", "a", "c"], "caption": ["x", "y", "z"]}


def test_a_group_is_the_own_text_and_different_texts_of_others(collator, pairs):
    for epoch in range(20):
        collator.epoch = epoch
        batch = collator(pairs)
        for row, group in zip(pairs, batch["text"], strict=True):
            own = {plain(caption) for caption in row["captions"]}
            assert group[0] in row["captions"]
            assert not own & {plain(text) for text in group[1:]}
            assert len({plain(text) for text in group}) == 6
            assert all(text.strip() for text in group)
    assert batch["labels"].tolist() == [0] * 8
    assert batch["pixel_values"].shape == (8, 3, 32, 32)  # one picture per group
    assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (8, 6)
    words = collator.processor.tokenizer(batch["text"][3][4])["input_ids"]
    assert batch["input_ids"][3, 4, : len(words)].tolist() == words


def test_every_foreign_caption_gets_its_turn(collator, pairs, captions):
    drawn = set()
    for collator.epoch in range(60):
        drawn |= {plain(text) for text in collator(pairs[:1])["text"][0][1:]}
    own = {plain(caption) for caption in pairs[0]["captions"]}
    assert drawn == {plain(text) for text in captions["caption"].to_pylist() if text.strip()} - own


def test_negatives_change_with_epoch_and_seed_and_are_those_of_a_resumed_run(processor, captions, pairs):
    def texts(epoch, seed=0, rows=pairs):
        collator = RetrievalCollator(processor, captions, num_negatives=5, seed=seed)
        collator.epoch = epoch
        return [group[1:] for group in collator(rows)["text"]]

    assert texts(1) == texts(1)
    assert texts(1)[4:] == texts(1, rows=pairs[4:])  # whatever else is in the batch
    torch.manual_seed(9)
    assert texts(1) == texts(1)
    assert all(one != other for one, other in zip(texts(0), texts(1), strict=True))
    assert all(one != other for one, other in zip(texts(0), texts(0, seed=1), strict=True))


def test_too_few_captions_are_an_error(processor, pairs):
    rows = pa.table({"image_id": ["image-0", "b", "c"], "captions": [["own"], ["A dog"], ["a  dog"]]})
    collator = RetrievalCollator(processor, caption_table(rows), num_negatives=2)
    with pytest.raises(
        ValueError, match=r"Among 3 captions only 1 are no caption of image 'image-0', .*num_negatives \(2\)"
    ):
        collator(pairs[:1])
    collator = RetrievalCollator(processor, caption_table(rows[:0]), num_negatives=2)
    with pytest.raises(ValueError, match="Among 0 captions only 0"):
        collator(pairs[:1])


def test_captions_of_a_corpus_of_tars_are_read_too(tmp_path, pairs):
    buffer = io.BytesIO()
    pairs[0]["image"].save(buffer, "PNG")
    row = {"image": {"bytes": buffer.getvalue(), "path": "a.png"}, "image_id": "a", "captions": ["x", "y"]}
    write_samples(tmp_path / "train.tar", "captions", [{**row, "concept": "a", "source": "coco"}])
    split = SplitManifest(1, 1, 2, {}, [Shard("train.tar", 1, 1, "")])
    manifest = Manifest("sbu", "captions", "1.0.0", "", {"train": split}, format="webdataset")
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    table = read_captions(PreparedCorpus(str(tmp_path)), ["train"])
    assert table.to_pydict() == {"image_id": ["a", "a"], "caption": ["x", "y"]}


def test_captions_of_a_corpus_come_from_all_shards_of_the_splits(tmp_path):
    splits = {}
    for split, names in {"train": ("a", "b"), "restval": ("c",), "test": ("d",)}.items():
        shards = []
        for name in names:
            row = {"image": None, "image_id": name, "captions": [f"{name} one", f"{name} two"]}
            row |= {"concept": name, "source": "coco"}
            table = pa.Table.from_pylist([row], schema=FEATURES["captions"].arrow_schema)
            pq.write_table(table, tmp_path / f"{split}-{name}.parquet")
            shards.append(Shard(f"{split}-{name}.parquet", 1, 1, ""))
        splits[split] = SplitManifest(len(names), len(names), 2 * len(names), {}, shards)
    manifest = Manifest("coco_captions", "captions", "1.0.0", "", splits)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    corpus = PreparedCorpus(str(tmp_path))
    table = read_captions(corpus, ["train", "restval"])
    assert table["image_id"].to_pylist() == ["a", "a", "b", "b", "c", "c"]
    assert table["caption"].to_pylist() == ["a one", "a two", "b one", "b two", "c one", "c two"]
    (tmp_path / "train-b.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(OSError, match=r"train-b\.parquet cannot be read"):
        read_captions(corpus, ["train"])
