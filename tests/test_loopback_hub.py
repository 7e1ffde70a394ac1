"""The Hub on loopback, through huggingface_hub itself: what pushes rely on, and failing when told to."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

WEIGHTS = bytes(range(256)) * 64


@pytest.fixture
def api(loopback_hub):
    return HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))


@pytest.fixture
def folder(tmp_path):
    """A small model folder: a card, a configuration, weights and a file in a folder."""
    root = tmp_path / "model"
    (root / "pictures").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- robust\n---\n# A model\n")
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0" + WEIGHTS[:90])
    return root


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_comes_back_as_it_went_up(api, folder, tmp_path):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    names = [".gitattributes", *sorted(contents(folder))]
    assert sorted(api.list_repo_files("user/model")) == sorted(names)
    api.snapshot_download("user/model", local_dir=tmp_path / "back", cache_dir=tmp_path / "cache")
    back = contents(tmp_path / "back")
    del back[".gitattributes"]
    assert back == contents(folder)


def test_every_commit_branch_and_tag_stays_readable(api, folder, tmp_path):
    api.create_repo("user/model")
    first = api.upload_folder(repo_id="user/model", folder_path=folder, commit_message="first").oid
    api.create_branch("user/model", branch="v1")
    api.create_tag("user/model", tag="1.0", revision=first)
    (folder / "config.json").write_text('{"version": 2}')
    (folder / "pictures" / "a.png").unlink()
    second = api.upload_folder(
        repo_id="user/model", folder_path=folder, commit_message="second", delete_patterns="pictures/*"
    ).oid

    def read(revision):
        path = api.hf_hub_download(
            "user/model", "config.json", revision=revision, cache_dir=tmp_path / "cache"
        )
        return Path(path).read_text()

    assert [read(revision) for revision in (first, "v1", "1.0", "main", second)] == ["{}"] * 3 + [
        '{"version": 2}'
    ] * 2
    assert "pictures/a.png" in api.list_repo_files("user/model", revision="1.0")
    assert "pictures/a.png" not in api.list_repo_files("user/model")
    assert [commit.title for commit in api.list_repo_commits("user/model")] == [
        "second",
        "first",
        "initial commit",
    ]
    refs = api.list_repo_refs("user/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "v1": first}
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("1.0", "refs/tags/1.0")]
    api.delete_branch("user/model", branch="v1")
    api.delete_tag("user/model", tag="1.0")
    refs = api.list_repo_refs("user/model")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])


def test_a_pull_request_by_somebody_else_is_opened_and_merged(api, loopback_hub, folder):
    api.create_repo("user/rows", repo_type="dataset")
    guest = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("guest"))
    commit = guest.upload_file(
        repo_id="user/rows",
        repo_type="dataset",
        path_in_repo="rows/guest.json",
        path_or_fileobj=b"{}",
        create_pr=True,
        commit_message="A row",
    )
    assert commit.pr_num == 1
    assert commit.pr_revision == "refs/pr/1"
    (found,) = api.get_repo_discussions("user/rows", repo_type="dataset")
    assert (found.num, found.title, found.author, found.status) == (1, "A row", "guest", "open")
    assert found.is_pull_request
    assert "rows/guest.json" not in api.list_repo_files("user/rows", repo_type="dataset")
    assert "rows/guest.json" in api.list_repo_files("user/rows", repo_type="dataset", revision="refs/pr/1")
    api.merge_pull_request("user/rows", 1, repo_type="dataset")
    details = api.get_discussion_details("user/rows", 1, repo_type="dataset")
    assert (details.status, details.target_branch) == ("merged", "refs/heads/main")
    assert details.merge_commit_oid == api.dataset_info("user/rows").sha
    assert "rows/guest.json" in api.list_repo_files("user/rows", repo_type="dataset")
