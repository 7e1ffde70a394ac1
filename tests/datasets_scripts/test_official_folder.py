"""Packed and unpacked files read the same, nothing outside the folder is read, and damage is named."""

import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor

import pytest

from rmcl_hub.datasets_scripts.images import UnreadableImageError
from rmcl_hub.datasets_scripts.miniature_pictures import truncate, write_tar, write_zip
from rmcl_hub.datasets_scripts.official_folder import (
    BrokenArchiveError,
    MissingPictureError,
    OfficialFolder,
    TarArchive,
    is_safe_path,
)

FILES = {f"pictures/{index}.jpg": bytes([index]) * (400 + index) for index in range(30)}
UNSAFE = ["../secret", "pictures/../../secret", "/etc/hostname", "..\\secret", "C:/secret", "C:secret", ""]


def unpacked(root):
    (root / "pictures").mkdir()
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    return OfficialFolder(root)


def zipped(root):
    write_zip(root / "a.zip", FILES)
    return OfficialFolder(root, ["not-there.zip", "a.zip"])


def tarred(root):
    write_tar(root / "a.tar", FILES)
    return OfficialFolder(root, ["a.tar"])


def deflated(root):
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text.json", b'{"a": "' + bytes(range(32, 127)).replace(b'"', b"") * 40 + b'"}')
        archive.writestr("picture.jpg", bytes(range(256)) * 40)
    content = bytearray((root / "a.zip").read_bytes())
    for start in (60, content.index(b"picture.jpg") + 30):
        content[start : start + 8] = b"\xff" * 8
    (root / "a.zip").write_bytes(content)
    return OfficialFolder(root, ["a.zip"])


LAYOUTS = pytest.mark.parametrize("layout", [unpacked, zipped, tarred])


@LAYOUTS
def test_every_layout_reads_the_same(layout, tmp_path):
    folder = layout(tmp_path)
    assert {name: folder.read_picture(name) for name in FILES} == FILES
    assert folder.has("pictures/3.jpg")
    assert folder.has("pictures/99.jpg", "pictures/3.jpg")
    assert not folder.has("pictures/99.jpg", "pictures")
    with pytest.raises(MissingPictureError, match=r"'pictures/99.jpg' is neither in .* nor in its archives"):
        folder.read_picture("pictures/99.jpg")


@LAYOUTS
def test_a_folder_with_open_archives_goes_to_another_process(layout, tmp_path):
    folder = layout(tmp_path)
    folder.read_picture("pictures/1.jpg")
    assert pickle.loads(pickle.dumps(folder)).read_picture("pictures/2.jpg") == FILES["pictures/2.jpg"]
    with ProcessPoolExecutor(2) as pool:
        assert list(pool.map(folder.read_picture, FILES)) == list(FILES.values())


def test_unpacked_files_come_before_packed_ones(tmp_path):
    folder = zipped(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").write_bytes(b"newer")
    assert folder.read_picture("pictures/1.jpg") == b"newer"


def test_paths_lead_through_tars(tmp_path):
    """Also to and fro between two, of which only one index is kept."""
    (tmp_path / "train").mkdir()
    for shard in "ab":
        write_tar(tmp_path / "train" / f"{shard}.tar", {f"{n}.jpg": f"{shard}{n}".encode() for n in range(3)})
    folder = OfficialFolder(tmp_path)
    for name in ("a.tar/0", "b.tar/0", "a.tar/2", "b.tar/1"):
        assert folder.read_picture(f"train/{name}.jpg") == name.replace(".tar/", "").encode()
    for name in ("train/a.tar/9.jpg", "train/c.tar/0.jpg"):
        with pytest.raises(MissingPictureError):
            folder.read_picture(name)


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("layout", [unpacked, zipped, tarred])
def test_nothing_outside_the_folder_is_read(name, layout, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    with_secret = {**FILES, name or "x": b"secret"}
    folder = layout(root)
    if layout is zipped:
        write_zip(root / "a.zip", with_secret)
    if layout is tarred:
        write_tar(root / "a.tar", with_secret)
    assert not is_safe_path(name)
    assert not folder.has(name)
    with pytest.raises(MissingPictureError):
        folder.read_picture(name)
    with pytest.raises(FileNotFoundError):
        folder.read_text(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "a..b.jpg", "...", "é/ü.jpg"])
def test_ordinary_paths_are_safe(name):
    assert is_safe_path(name)


@pytest.mark.parametrize("layout", [zipped, tarred])
def test_a_truncated_archive_is_named_with_its_size(layout, tmp_path):
    folder = layout(tmp_path)
    path = tmp_path / folder.archives[-1]
    truncate(path)
    message = (
        rf"{path} \({path.stat().st_size:,} bytes\) is not a complete archive .*half-finished.*`curl -C -`"
    )
    with pytest.raises(BrokenArchiveError, match=message):
        folder.read_picture("pictures/1.jpg")


def test_a_tar_is_incomplete_wherever_it_is_cut(tmp_path):
    write_tar(tmp_path / "whole.tar", FILES)
    content = (tmp_path / "whole.tar").read_bytes()
    assert TarArchive(tmp_path / "whole.tar").namelist() == list(FILES)
    end = 1024 * len(FILES)  # each member is a header and one block
    for length in [*range(0, end, 512), *range(100, end, 1111)]:
        (tmp_path / "cut.tar").write_bytes(content[:length])
        with pytest.raises(BrokenArchiveError, match="half-finished"):
            TarArchive(tmp_path / "cut.tar")


def test_tars_give_each_members_bytes(tmp_path):
    write_tar(tmp_path / "a.tar", FILES)
    archive = TarArchive(tmp_path / "a.tar")
    for name in reversed(FILES):
        assert archive.read(name) == FILES[name]


def test_damage_inside_an_archive_is_named(tmp_path):
    folder = deflated(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"image 'picture.jpg' cannot be unpacked"):
        folder.read_picture("picture.jpg")
    with pytest.raises(
        BrokenArchiveError, match=r"text.json cannot be unpacked from its archive in .* Fetch"
    ):
        folder.read_json("text.json")


def test_texts_have_alternative_names(tmp_path):
    (tmp_path / "b.json").write_text('{"größe": 1}', encoding="utf-8")
    folder = OfficialFolder(tmp_path, ["c.zip"])
    assert folder.read_json("a.json", "b.json") == {"größe": 1}
    assert folder.read_text("b.json") == '{"größe": 1}'
    with pytest.raises(FileNotFoundError, match=r"holds no a.json or d.json, neither unpacked nor in c.zip"):
        folder.read_json("a.json", "d.json")


def test_half_finished_and_binary_texts_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [')
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    folder = OfficialFolder(tmp_path)
    with pytest.raises(
        ValueError, match=r"a.json in .* is not valid JSON .*is the download finished\? Fetch"
    ):
        folder.read_json("a.json")
    with pytest.raises(ValueError, match=r"b.json is not UTF-8 text .*is it the right file"):
        folder.read_json("b.json")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(FileNotFoundError, match=rf"no folder .*{name}; give the one with the downloaded"):
            OfficialFolder(tmp_path / name)
