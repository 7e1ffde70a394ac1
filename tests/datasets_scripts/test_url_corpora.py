"""Corpora of addresses are read from what img2dataset leaves, finished or not."""

import csv
import hashlib
import json
import shlex
import tarfile
from pathlib import Path

import pytest

from rmcl_hub.datasets_scripts.conceptual_captions import ConceptualCaptions
from rmcl_hub.datasets_scripts.corpora import load_corpus
from rmcl_hub.datasets_scripts.miniature_pictures import truncate
from rmcl_hub.datasets_scripts.miniatures import write_fetched
from rmcl_hub.datasets_scripts.official_folder import BrokenArchiveError
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.sbu_captions import SbuCaptions


def rows_of(corpus, root, split="train"):
    folder = corpus.open(root)
    return list(corpus.with_pictures(folder, corpus.annotations(folder, split))), dict(folder.dropped)


def published_pairs(root, split):
    """Captions by address, from the published list."""
    if (root / "sbu-captions-all.json").is_file():
        content = json.loads((root / "sbu-captions-all.json").read_text())
        return dict(zip(content["image_urls"], content["captions"], strict=True))
    name = {"train": "Train_GCC-training.tsv", "validation": "Validation_GCC-1.1.0-Validation.tsv"}[split]
    with (root / name).open(encoding="utf-8", newline="") as stream:
        return {url: caption for caption, url in csv.reader(stream, delimiter="\t")}


@pytest.mark.parametrize(
    ("corpus", "split"),
    [(SbuCaptions, "train"), (ConceptualCaptions, "train"), (ConceptualCaptions, "validation")],
)
def test_rows_are_the_fetched_pictures_with_the_published_captions(corpus, split, miniature_corpora):
    root = miniature_corpora[corpus.source]
    rows, _ = rows_of(corpus, root, split)
    assert len(rows) == (48 if split == "train" else 12)
    captions = {
        hashlib.sha256(url.encode()).hexdigest()[:16]: " ".join(caption.split())
        for url, caption in published_pairs(root, split).items()
    }
    for row in rows:
        first = row["image_id"] == rows[0]["image_id"]  # its address is there again with another caption
        assert first or row["captions"] == [captions[row["image_id"]]]
        tar, _, name = row["image"]["path"].rpartition("/")
        with tarfile.open(root / tar) as archive:
            assert row["image"]["bytes"] == archive.extractfile(name).read()
            beside = json.loads(archive.extractfile(name.replace(".jpg", ".json")).read())
        assert row["image_id"] == hashlib.sha256(beside["url"].encode()).hexdigest()[:16]
        assert row["source"] == corpus.source


def test_rows_come_shard_by_shard(miniature_corpora):
    rows, _ = rows_of(SbuCaptions, miniature_corpora["sbu_captions"])
    paths = [row["image"]["path"] for row in rows]
    assert paths == sorted(paths)
    assert {path.rpartition("/")[0] for path in paths} == {f"train/0000{shard}.tar" for shard in range(3)}


def test_ids_stay_when_the_list_is_fetched_again(tmp_path, miniature_corpora):
    root = miniature_corpora["sbu_captions"]
    pictures = {row["captions"][0]: row["image"]["bytes"] for row in rows_of(SbuCaptions, root)[0]}
    pairs = [(f"http://a.example/{text}", text, jpeg) for text, jpeg in pictures.items()]
    write_fetched(tmp_path / "one" / "train", pairs)
    write_fetched(tmp_path / "two" / "train", pairs[::-1])
    one, two = (
        {row["image_id"]: (row["captions"], row["image"]["bytes"]) for row in rows_of(SbuCaptions, root)[0]}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    assert len(one) == len(pictures) > 40


def test_addresses_without_a_picture_are_counted(tmp_path, miniature_corpora):
    jpeg = rows_of(SbuCaptions, miniature_corpora["sbu_captions"])[0][0]["image"]["bytes"]
    pairs = [(f"http://a.example/{index}", "a text", None if index % 3 else jpeg) for index in range(30)]
    write_fetched(tmp_path / "train", pairs)
    rows, dropped = rows_of(SbuCaptions, tmp_path)
    assert len(rows) == 10
    assert dropped == {"not downloaded": 20}


def test_of_a_repeated_address_the_first_caption_stays(tmp_path, miniature_corpora):
    """Whichever arrived first: the shards list them in the opposite order here."""
    jpeg = rows_of(SbuCaptions, miniature_corpora["sbu_captions"])[0][0]["image"]["bytes"]
    write_fetched(tmp_path / "train", [("http://a.example/1", f"text {index}", jpeg) for index in range(25)])
    rows, dropped = rows_of(SbuCaptions, tmp_path)
    assert [row["captions"] for row in rows] == [["text 0"]]
    assert dropped == {"duplicate id": 24}


@pytest.mark.parametrize("ending", ["_stats.json", ".parquet"])
def test_an_unfinished_shard_is_named(ending, copy_of):
    root = copy_of("conceptual_captions")
    (root / "train" / f"00001{ending}").unlink()
    message = (
        r"1 of 3 shards in .*train are not finished; the first is 00001, .*the same command again, or remove"
    )
    with pytest.raises(FileNotFoundError, match=message):
        rows_of(ConceptualCaptions, root)
    assert len(rows_of(ConceptualCaptions, root, "validation")[0]) == 12
    for file in (root / "train").glob("00001*"):
        file.unlink()
    assert len(rows_of(ConceptualCaptions, root)[0]) == 28  # doing without


def test_damaged_shards_are_named(copy_of):
    root = copy_of("sbu_captions")
    truncate(root / "train" / "00000.tar")
    with pytest.raises(BrokenArchiveError, match=r"00000.tar .* is not a complete archive"):
        rows_of(SbuCaptions, root)
    truncate(root / "train" / "00000.parquet")
    with pytest.raises(
        ValueError, match=r"00000.parquet cannot be read .*Remove this file, 00000.tar and 00000_st"
    ):
        rows_of(SbuCaptions, root)


def options_of(message):
    """Options of the img2dataset command in an error."""
    words = shlex.split(message[message.rindex("img2dataset --") :])
    return dict(zip(words[1::2], words[2::2], strict=True))


@pytest.mark.parametrize(
    ("corpus", "split", "list_options"),
    [
        (SbuCaptions, "train", ("sbu-captions-all.json", "json", "image_urls", "captions")),
        (ConceptualCaptions, "train", ("train.tsv", "tsv", "url", "caption")),
        (ConceptualCaptions, "validation", ("validation.tsv", "tsv", "url", "caption")),
    ],
)
def test_without_pictures_the_command_that_fetches_them_is_given(corpus, split, list_options, tmp_path):
    root = tmp_path / "with space"
    root.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"holds no shards of pictures .*`pip install img2dataset`"
    ) as error:
        load_corpus(root, split, corpus=corpus.source)
    options = options_of(str(error.value))
    names = ("--url_list", "--input_format", "--url_col", "--caption_col")
    assert tuple(options[name] for name in names) == list_options
    assert options["--output_folder"] == str(root / split)
    assert options["--output_format"] == "webdataset"
    assert options["--compute_hash"] == "sha256"
    assert not corpus.has_split(corpus.open(root), split)
    with pytest.raises(FileNotFoundError, match=r"(?s)none of the splits train.* --output_folder"):
        prepare(corpus, root, tmp_path / "shards")


def test_the_header_that_the_published_lists_lack_is_added():
    command = ConceptualCaptions.fetch_command(Path("cc"), "train")
    assert command.startswith(r"printf 'caption\turl\n' | cat - Train_GCC-training.tsv > train.tsv")
