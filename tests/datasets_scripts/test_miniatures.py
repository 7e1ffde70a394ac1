"""The miniature corpora are what they say: reproducible, consistent, and with each fault once."""

import io
import json
import tarfile
import zipfile

import pytest
from PIL import Image

from rmcl_hub.datasets_scripts import miniatures
from rmcl_hub.datasets_scripts.build_miniatures import WRITERS, main
from rmcl_hub.datasets_scripts.corpora import corpus_class
from rmcl_hub.datasets_scripts.miniature_pictures import (
    encode_jpeg,
    truncate,
    unusable_pictures,
    usable_pictures,
    write_tar,
    write_zip,
)
from rmcl_hub.datasets_scripts.openpairs import read_metadata

CAPTIONS = ("coco_captions", "visual_genome", "sbu_captions", "conceptual_captions", "flickr30k")


@pytest.mark.parametrize("name", CAPTIONS)
def test_all_usable_pictures_are_rows_and_every_fault_leaves_out_one(name, miniature_corpora):
    corpus = corpus_class(name)
    folder = corpus.open(miniature_corpora[name])
    rows = [
        row
        for split in corpus.splits
        for row in corpus.with_pictures(folder, corpus.annotations(folder, split))
    ]
    assert len(rows) == len({row["image_id"] for row in rows}) == 48 + 12 * (name == "conceptual_captions")
    missing = "not downloaded" if name in ("sbu_captions", "conceptual_captions") else "missing picture"
    faults = {missing, "unreadable picture", "no text", "picture outside the folder", "duplicate id"}
    assert dict(folder.dropped) == dict.fromkeys(faults, 1)


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_same_bytes_are_written_every_time(name, miniature_corpora, tmp_path):
    WRITERS[name](tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    for file in files:
        assert (tmp_path / file).read_bytes() == (miniature_corpora[name] / file).read_bytes()


def test_usable_pictures_have_odd_modes_and_captions():
    pictures = usable_pictures(8)
    modes = [Image.open(io.BytesIO(picture.jpeg)).mode for picture in pictures]
    assert modes == ["L", "CMYK", *["RGB"] * 6]
    assert any("\n" in caption for caption in pictures[2].captions)
    assert any("一" in caption for caption in pictures[3].captions)
    assert any(not caption.strip() for caption in pictures[4].captions)
    assert [picture.number for picture in pictures] == list(range(1, 9))
    assert pictures[7].drawing == read_metadata("openmoji", "train")[7]


def test_unusable_pictures_have_one_fault_each():
    missing, cut, silent, outside, duplicate = unusable_pictures(usable_pictures(10))
    assert missing.jpeg is None
    assert encode_jpeg(cut.drawing).startswith(cut.jpeg)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(cut.jpeg)).load()
    assert not any(caption.strip() for caption in silent.captions)
    assert outside.outside
    assert not missing.outside
    assert duplicate.number == 1
    assert [picture.number for picture in (missing, cut, silent, outside)] == [17, 18, 19, 20]


def test_coco_pictures_have_the_ids_and_paths_of_the_archives(miniature_corpora):
    for year in ("train2014", "val2014"):
        with zipfile.ZipFile(miniature_corpora["coco_captions"] / f"{year}.zip") as archive:
            pictures = miniatures.coco_pictures(year)
            assert len(pictures) == 24
            for picture in pictures:
                path = miniatures.coco_path(picture.number)
                assert path == f"{year}/COCO_{year}_{picture.number:012d}.jpg"
                assert archive.read(path) == picture.jpeg


def test_visual_genome_shows_pictures_of_coco(miniature_corpora):
    root = miniature_corpora["visual_genome"]
    with zipfile.ZipFile(root / "image_data.json.zip") as archive:
        images = json.loads(archive.read("image_data.json"))
    in_coco = {image["image_id"]: image["coco_id"] for image in images if image["coco_id"] is not None}
    years = {miniatures.coco_path(coco_id).partition("/")[0] for coco_id in in_coco.values()}
    assert years == {"train2014", "val2014"}
    with (
        zipfile.ZipFile(root / "images.zip") as first,
        zipfile.ZipFile(root / "images2.zip") as second,
    ):
        of_coco = {picture.number: picture.jpeg for picture in usable_pictures(48)}
        for image_id, coco_id in in_coco.items():
            archive, folder = (second, "VG_100K_2") if image_id % 2 else (first, "VG_100K")
            assert archive.read(f"{folder}/{image_id}.jpg") == of_coco[coco_id]


def test_flickr_pictures_have_the_names_of_the_archive(miniature_corpora):
    with tarfile.open(miniature_corpora["flickr30k"] / "flickr30k-images.tar") as archive:
        for picture in miniatures.flickr_pictures():
            name = f"flickr30k-images/{miniatures.flickr_name(picture.number)}"
            assert archive.extractfile(name).read() == picture.jpeg


def test_fetched_shards_are_as_img2dataset_leaves_them(tmp_path):
    pairs = [(f"http://a.example/{index}.jpg", f"text {index}", b"jpeg") for index in range(20)]
    miniatures.write_fetched(tmp_path, [*pairs, ("http://a.example/dead.jpg", "text", None)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"0000{shard}{ending}" for shard in (0, 1) for ending in (".parquet", ".tar", "_stats.json")
    ]
    with tarfile.open(tmp_path / "00000.tar") as archive:
        assert len(archive.getnames()) == 60
        assert archive.extractfile("000000019.txt").read() == b"text 19"
        assert json.loads(archive.extractfile("000000019.json").read())["url"] == pairs[19][0]
    statistics = json.loads((tmp_path / "00001_stats.json").read_text())
    assert (statistics["count"], statistics["successes"], statistics["failed_to_download"]) == (1, 0, 1)


def test_archives_hold_the_files(tmp_path):
    files = {"a/b.txt": b"one", "c": b""}
    write_zip(tmp_path / "x.zip", files)
    write_tar(tmp_path / "x.tar", files)
    with zipfile.ZipFile(tmp_path / "x.zip") as packed, tarfile.open(tmp_path / "x.tar", "r:") as tar:
        assert {name: packed.read(name) for name in packed.namelist()} == files
        assert {name: tar.extractfile(name).read() for name in tar.getnames()} == files


def test_truncated_files_lose_their_second_half(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    truncate(path)
    assert path.read_bytes() == b"01234"


def test_the_command_writes_a_folder_per_corpus(tmp_path, capsys):
    assert main([str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*WRITERS} >= {*CAPTIONS}
    assert str(tmp_path / "out" / "flickr30k") in capsys.readouterr().out
