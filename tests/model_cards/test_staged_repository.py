"""A manifest names every file by what `sha256sum` and the file system say, and nothing else."""

import hashlib
import json

import pytest

from rmcl_hub.model_cards.staged_repository import (
    MANIFEST,
    StagedRepository,
    check_name,
    describe_file,
    files_of,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "data" / "deep" / "rows.json").write_bytes(b"[1, 2]")
    (tmp_path / "data" / "empty.txt").touch()
    return tmp_path


def test_the_manifest_names_every_file_with_hash_and_size(folder):
    staged = StagedRepository.seal("toy", "dataset", folder, {"digest": "abc"})
    written = json.loads((folder / MANIFEST).read_text())
    assert set(written["files"]) == {"README.md", "data/deep/rows.json", "data/empty.txt"}
    assert written["files"]["data/deep/rows.json"] == {
        "sha256": hashlib.sha256(b"[1, 2]").hexdigest(),
        "size": 6,
    }
    assert written["files"]["data/empty.txt"]["size"] == 0
    assert (written["name"], written["repo_type"], written["sources"]) == (
        "toy",
        "dataset",
        {"digest": "abc"},
    )
    assert written["accumulates"] is False
    assert staged.files == written["files"]
    assert StagedRepository.load(folder) == staged


def test_sealing_again_gives_the_same_bytes_and_follows_the_folder(folder):
    StagedRepository.seal("toy", "dataset", folder)
    first = (folder / MANIFEST).read_bytes()
    StagedRepository.seal("toy", "dataset", folder)
    assert (folder / MANIFEST).read_bytes() == first, "a repeated push would find a change"
    (folder / "data" / "empty.txt").unlink()
    assert "data/empty.txt" not in StagedRepository.seal("toy", "dataset", folder).files


def test_a_link_to_a_folder_counts_as_a_file(folder):
    (folder / "outside").symlink_to(folder / "data", target_is_directory=True)
    assert "outside" in files_of(folder), "or the refusal of links would not see it"


def test_describe_file_reads_files_larger_than_a_buffer(tmp_path):
    content = bytes(range(256)) * 4096
    (tmp_path / "large").write_bytes(content)
    assert describe_file(tmp_path / "large") == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user/name", r"'user/name' can be no name on the Hub \(the namespace is given apart"),
        ("my model", "'my model' can be no name on the Hub.*alphanumeric.*; rename it"),
        ("a--b", "'a--b' can be no name"),
        ("x" * 97, "can be no name"),
    ],
)
def test_names_that_the_hub_does_not_take_are_refused(name, message, folder):
    with pytest.raises(ValueError, match=message):
        check_name(name)
    with pytest.raises(ValueError, match=message):
        StagedRepository.seal(name, "model", folder)


def test_what_can_be_no_repository_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="repo_type is 'metric'; the Hub knows model, dataset, space"):
        StagedRepository.seal("toy", "metric", folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no file: there is nothing to publish as 'toy'"):
        StagedRepository.seal("toy", "model", tmp_path / "nothing")


def test_loading_says_what_is_wrong(folder):
    with pytest.raises(FileNotFoundError, match=f"is no staged repository: it has no {MANIFEST}"):
        StagedRepository.load(folder)
    (folder / MANIFEST).write_text('{"format": "other/9"}')
    with pytest.raises(ValueError, match="has format 'other/9', this version reads 'rmcl-hub-manifest/1'"):
        StagedRepository.load(folder)
