"""The embedded set itself: what is in it, what is kept apart, and how it loads."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import datasets
import pytest
from PIL import Image

from rmcl_hub.datasets_scripts import describe_openpairs
from rmcl_hub.datasets_scripts.caption_cleaning import split_of
from rmcl_hub.datasets_scripts.openpairs import FEATURES, SPLITS_OF_CONFIG, load_openpairs, read_metadata
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path

FOLDER = Path(describe_openpairs.__file__).parent / "openpairs"
PARQUET_FILES = sorted(FOLDER.glob("*.parquet"))
SOURCES_OF_SPLIT = {
    "train": ("openmoji", "openclipart"),
    "validation": ("openmoji", "noto"),
    "test": ("openmoji", "noto"),
}


@pytest.fixture(scope="module")
def stored():
    """All stored rows by split, sources together."""
    return {
        split: [row for source in sources for row in read_metadata(source, split)]
        for split, sources in SOURCES_OF_SPLIT.items()
    }


def pixels_of(row):
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").tobytes()


def encoded(row):
    """A row whose images are compared by their bytes."""
    return {name: value["bytes"] if name.endswith("image") else value for name, value in row.items()}


def undecoded(dataset):
    for name in dataset.features:
        if name.endswith("image"):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


@pytest.mark.parametrize(
    ("config", "split"), [(c, s) for c, splits in SPLITS_OF_CONFIG.items() for s in splits]
)
def test_streaming_gives_the_same_rows_in_the_same_order(config, split):
    mapped, stream = load_openpairs(config, split), load_openpairs(config, split, streaming=True)
    assert mapped.features == stream.features == FEATURES[config]
    rows = [encoded(row) for row in undecoded(mapped)]
    assert [encoded(row) for row in undecoded(stream)] == rows
    assert len(rows) == len(mapped) > 100


def test_shards_of_a_stream_partition_the_rows():
    stream = load_openpairs("captions", "test", streaming=True)
    assert stream.num_shards == 8
    parts = [
        row["image_id"] for worker in range(3) for row in undecoded(stream).shard(num_shards=3, index=worker)
    ]
    assert sorted(parts) == sorted(load_openpairs("captions", "test")["image_id"])


def test_loading_needs_no_writable_cache(tmp_path, monkeypatch):
    """A file stands where the cache folder would be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    before = sorted(FOLDER.iterdir())
    assert load_openpairs("vqa", "validation").cache_files == []
    assert next(iter(load_openpairs("vqa", "validation", streaming=True)))["answers"]
    assert sorted(FOLDER.iterdir()) == before


@pytest.mark.parametrize("config", FEATURES)
def test_images_are_small_rgb_pictures(config):
    row = load_openpairs(config, "test")[0]
    for name in (name for name in row if name.endswith("image")):
        assert row[name].size == (96, 96)
        assert row[name].mode == "RGB"


def test_no_base_concept_or_hexcode_is_in_two_splits(stored):
    for key in ("concept", "base", "hexcode", "image_id"):
        values = {
            split: {row[key] for row in rows if row["source"] != "openclipart"}
            for split, rows in stored.items()
        }
        assert not values["train"] & values["test"]
        assert not values["train"] & values["validation"]
        assert not values["validation"] & values["test"]


def test_no_picture_is_in_two_splits_or_twice_in_one_source(stored):
    digests = {
        split: Counter((row["source"], hashlib.sha1(pixels_of(row)).hexdigest()) for row in rows)
        for split, rows in stored.items()
    }
    for split, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not {pixels for _, pixels in digests[split]} & {pixels for _, pixels in digests[other]}
    repeated = [key for counts in digests.values() for key, count in counts.items() if count > 1]
    assert [source for source, _ in repeated if source == "openmoji"] == []
    assert repeated == []


def test_tasks_use_pictures_of_their_own_split_only(stored):
    for split, rows in stored.items():
        images = {
            row["image"]["bytes"] for row in rows if row["source"] == "openmoji" and not row["has_twin"]
        }
        assert {row["image"]["bytes"] for row in undecoded(load_openpairs("vqa", split))} <= images
        pairs = undecoded(load_openpairs("nlvr2", split))
        assert {row[side]["bytes"] for row in pairs for side in ("left_image", "right_image")} <= images


def test_splits_follow_the_hash_of_the_concept(stored):
    for split, rows in stored.items():
        assert all(split_of(row["concept"]) == split for row in rows if row["source"] != "openclipart")
    # The SHA-1 of "1F33D" begins with 72a532e4 (position 0.45), that of "1F427" with 0bb8aad7 (0.05).
    assert [split_of("1F33D"), split_of("1F427")] == ["train", "test"]
    train_bases = {row["base"] for row in stored["train"] if row["source"] == "openmoji"}
    assert {split_of(base) for base in train_bases} == set(
        stored
    )  # siblings follow their concept, not their own hash


def test_training_clip_art_names_no_held_out_concept(stored):
    def plain(text):
        return " ".join(text.lower().split())

    held_out = {plain(row["annotation"]) for row in stored["validation"] + stored["test"]}
    clip_art = {
        plain(c) for row in stored["train"] if row["source"] == "openclipart" for c in row["captions"]
    }
    assert held_out & clip_art == set()


def test_every_picture_has_captions_with_words(stored):
    for row in (row for rows in stored.values() for row in rows):
        assert row["captions"]
        assert all(any(letter.isalpha() for letter in caption) for caption in row["captions"])
        assert len({caption.lower() for caption in row["captions"]}) == len(row["captions"])


def test_noto_shows_held_out_concepts_under_the_same_captions(stored):
    for split in ("validation", "test"):
        captions = {row["hexcode"]: row["captions"] for row in stored[split] if row["source"] == "openmoji"}
        noto = [row for row in stored[split] if row["source"] == "noto"]
        assert len(noto) > 0.8 * len(captions)
        assert all(captions[row["hexcode"]] == row["captions"] for row in noto)


@pytest.mark.parametrize("path", PARQUET_FILES, ids=lambda path: path.name)
def test_every_file_is_small_and_has_its_licence(path):
    licence = path.with_name(f"LICENSE-{path.stem.split('-')[0]}.md")
    assert path.stat().st_size < 8e6
    assert path.name in licence.read_text(encoding="utf-8").splitlines()[0]
    assert f"]({licence.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_all_files_together_are_small():
    assert len(PARQUET_FILES) == 6
    assert sum(path.stat().st_size for path in PARQUET_FILES) < 10e6


def test_card_tells_the_counts_types_and_baselines():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert describe_openpairs.counts_table() in card
    assert describe_openpairs.types_table() in card
    assert describe_openpairs.baselines_table() in card


def test_card_tells_the_caption_statistics(tiny_tokenizer):
    # The card counts in the whole BERT vocabulary; the packaged one holds what the training captions need.
    tokenizer = type(tiny_tokenizer)(str(vocabulary_path()))
    computed = describe_openpairs.captions_table(lambda text: len(tokenizer.tokenize(text))).splitlines()
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for line in computed:
        images_and_captions = line.rsplit("|", 2)[0]
        assert images_and_captions in card
    train = next(line for line in computed if line.startswith("| openmoji, train"))
    length = float(train.split("|")[4].split("±")[0])
    stated = next(line for line in card.splitlines() if line.startswith("| openmoji, train"))
    assert float(stated.split("|")[4].split("±")[0]) == pytest.approx(length, abs=0.1)


def test_authors_hold_no_mail_addresses(stored):
    assert not [row["author"] for rows in stored.values() for row in rows if "@" in row["author"]]


def test_unknown_configuration_and_split_name_the_valid_ones():
    with pytest.raises(
        ValueError, match="no configuration 'caption'; choose one of captions, noto, vqa, nlvr2"
    ):
        load_openpairs("caption")
    with pytest.raises(
        ValueError, match="'captions' has no split 'val'; choose one of train, validation, test"
    ):
        load_openpairs("captions", "val")
    with pytest.raises(ValueError, match="'noto' has no split 'train'; choose one of validation, test"):
        load_openpairs("noto", "train")
