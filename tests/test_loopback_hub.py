"""The Hub on loopback, through huggingface_hub itself: what pushes rely on, and failing when told to."""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 64
PICTURE = b"\x89PNG\r\n\x1a\n\0\0" + WEIGHTS[:90]


@pytest.fixture
def api(loopback_hub, monkeypatch):
    """The client of "user", which repeats requests at once instead of after seconds."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))


@pytest.fixture
def guest(loopback_hub):
    return HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("guest"))


@pytest.fixture
def folder(tmp_path):
    """A small model folder: a card, a configuration, weights and a picture in a folder of its own."""
    root = tmp_path / "model"
    (root / "pictures").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- robust\n---\n# A model\n")
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "pictures" / "a.png").write_bytes(PICTURE)
    return root


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def downloaded(api, tmp_path, **arguments):
    """What the repository holds, but for the file of attributes that the Hub puts there itself."""
    api.snapshot_download(
        "user/model", local_dir=tmp_path / "back", cache_dir=tmp_path / "cache", **arguments
    )
    return {
        name: content for name, content in contents(tmp_path / "back").items() if name != ".gitattributes"
    }


def statuses(hub, method, path):
    return [entry["status"] for entry in hub.requests if entry["method"] == method and path in entry["path"]]


# Files, revisions, pull requests


def test_a_folder_comes_back_as_it_went_up(api, folder, tmp_path):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    assert set(api.list_repo_files("user/model")) == {".gitattributes", *contents(folder)}
    assert downloaded(api, tmp_path) == contents(folder)


def test_entries_tell_type_size_and_hash(api, folder):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    weights, pictures = api.get_paths_info("user/model", ["model.safetensors", "pictures", "missing"])
    (readme,) = api.get_paths_info("user/model", "README.md", expand=True)
    assert (weights.size, weights.lfs["sha256"]) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    (config,) = api.get_paths_info("user/model", "config.json")
    assert config.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # as `git hash-object` has it
    assert type(pictures).__name__ == "RepoFolder"
    assert (readme.lfs, readme.last_commit["title"]) == (None, "Upload folder using huggingface_hub")
    top = {entry.path for entry in api.list_repo_tree("user/model")}
    assert top == {".gitattributes", "README.md", "config.json", "model.safetensors", "pictures"}
    inside = [entry.path for entry in api.list_repo_tree("user/model", "pictures", recursive=True)]
    assert inside == ["pictures/a.png"]
    with pytest.raises(EntryNotFoundError, match="Entry Not Found"):
        list(api.list_repo_tree("user/model", "nowhere"))
    info = api.model_info("user/model", files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings}["pictures/a.png"] == len(PICTURE)
    assert info.card_data["license"] == "apache-2.0"
    assert {"robust", "license:apache-2.0"} <= set(info.tags)


def test_long_listings_come_in_pages(api, loopback_hub):
    api.create_repo("user/rows", repo_type="dataset")
    repository = loopback_hub.hub.repositories["dataset", "user/rows"]
    files = {f"rows/{number:04}.json": loopback_hub.hub.store(b"{}") for number in range(1001)}
    repository.add_commit(repository.branches, "main", files, "user", "rows")
    listed = api.list_repo_tree("user/rows", "rows", repo_type="dataset")
    assert [entry.path for entry in listed] == list(files)
    assert statuses(loopback_hub, "GET", "/tree/") == [200, 200]


def test_ranges_of_bytes(api, folder, loopback_hub):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    files = HfFileSystem(endpoint=api.endpoint, token=api.token, skip_instance_cache=True)
    with files.open("user/model/model.safetensors", block_size=16) as file:
        assert [file.seek(5), file.read(7)] == [5, WEIGHTS[5:12]]
        assert [file.seek(-3, 2), file.read()] == [len(WEIGHTS) - 3, WEIGHTS[-3:]]
    assert 206 in statuses(loopback_hub, "GET", "/resolve/")


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

    assert {read(revision) for revision in (first, "v1", "1.0")} == {"{}"}
    assert {read(revision) for revision in (second, "main")} == {'{"version": 2}'}
    assert "pictures/a.png" in api.list_repo_files("user/model", revision="1.0")
    assert "pictures/a.png" not in api.list_repo_files("user/model")
    titles = [commit.title for commit in api.list_repo_commits("user/model")]
    assert titles == ["second", "first", "initial commit"]
    refs = api.list_repo_refs("user/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "v1": first}
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("1.0", "refs/tags/1.0")]
    api.delete_branch("user/model", branch="v1")
    api.delete_tag("user/model", tag="1.0")
    refs = api.list_repo_refs("user/model")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError):
        read("1.0")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("user/model", "nothing.json", cache_dir=tmp_path / "cache")


def test_a_branch_takes_commits_and_main_does_not_see_them(api):
    api.create_repo("user/model")
    api.create_branch("user/model", branch="next")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("user/model", branch="next")
    api.upload_file(
        repo_id="user/model", path_in_repo="a.txt", path_or_fileobj=b"a", revision="next", commit_message="a"
    )
    assert "a.txt" in api.list_repo_files("user/model", revision="next")
    assert "a.txt" not in api.list_repo_files("user/model")


def test_a_pull_request_by_somebody_else_is_opened_and_merged(api, guest):
    api.create_repo("user/rows", repo_type="dataset")
    rows = {"repo_id": "user/rows", "repo_type": "dataset"}
    commit = guest.upload_file(
        **rows, path_in_repo="rows/a.json", path_or_fileobj=b"{}", create_pr=True, commit_message="A row"
    )
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    guest.upload_file(**rows, path_in_repo="rows/b.json", path_or_fileobj=b"[]", revision="refs/pr/1")
    (found,) = api.get_repo_discussions("user/rows", repo_type="dataset")
    assert (found.num, found.title, found.author, found.status) == (1, "A row", "guest", "open")
    assert found.is_pull_request
    added = {"rows/a.json", "rows/b.json"}
    assert not added & set(api.list_repo_files("user/rows", repo_type="dataset"))
    assert added <= set(api.list_repo_files("user/rows", repo_type="dataset", revision="refs/pr/1"))
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.merge_pull_request("user/rows", 1, repo_type="dataset")
    api.comment_discussion("user/rows", 1, "Good", repo_type="dataset")
    api.merge_pull_request("user/rows", 1, repo_type="dataset")
    details = api.get_discussion_details("user/rows", 1, repo_type="dataset")
    assert (details.status, details.target_branch) == ("merged", "refs/heads/main")
    kinds = [event.type for event in details.events]
    assert kinds == ["comment", "commit", "commit", "comment", "status-change"]
    assert details.merge_commit_oid == api.dataset_info("user/rows").sha
    assert added <= set(api.list_repo_files("user/rows", repo_type="dataset"))
    assert not list(api.get_repo_discussions("user/rows", repo_type="dataset", discussion_status="open"))
    with pytest.raises(BadRequestError, match="open pull request"):
        guest.upload_file(**rows, path_in_repo="rows/c.json", path_or_fileobj=b"1", revision="refs/pr/1")


def test_a_pull_request_that_conflicts_is_not_merged(api, guest):
    api.create_repo("user/model")
    details = guest.create_pull_request("user/model", "Another text", description="Why")
    assert (details.num, details.status, details.events[0].content) == (1, "draft", "Why")
    for client, revision in ((guest, "refs/pr/1"), (api, "main")):
        client.upload_file(
            repo_id="user/model", path_in_repo="a.txt", path_or_fileobj=revision.encode(), revision=revision
        )
    with pytest.raises(HfHubHTTPError, match="no open pull request, but draft"):
        api.merge_pull_request("user/model", 1)
    guest.change_discussion_status("user/model", 1, "open")
    assert api.get_discussion_details("user/model", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts with main in a\.txt"):
        api.merge_pull_request("user/model", 1)
    api.change_discussion_status("user/model", 1, "closed")
    assert [found.status for found in api.get_repo_discussions("user/model")] == ["closed"]


# Who may do what


def test_tokens_and_namespaces(api, guest, loopback_hub):
    assert (api.whoami()["name"], guest.whoami()["name"]) == ("user", "guest")
    with pytest.raises(OSError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401") as refused:
        api.create_repo("user/model", token="hf_wrong")
    assert refused.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_repo("user/model", token=False)
    api.create_repo("user/model")
    for token in (guest.token, loopback_hub.token("user", "read")):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo("user/other", token=token)
        with pytest.raises(HfHubHTTPError, match="403"):
            api.upload_file(repo_id="user/model", path_in_repo="a.txt", path_or_fileobj=b"a", token=token)
    assert [repository.id for repository in api.list_models(author="user")] == ["user/model"]


def test_private_repositories_look_as_if_they_were_not_there(api, guest, folder, tmp_path):
    api.create_repo("user/model", private=True)
    api.upload_folder(repo_id="user/model", folder_path=folder)
    for token in (guest.token, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("user/model", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("user/model", "config.json", token=token, cache_dir=tmp_path / "cache")
    assert not list(guest.list_models(author="user"))
    assert [info.private for info in api.list_models(author="user")] == [True]
    assert downloaded(api, tmp_path) == contents(folder)


def test_repositories_are_made_once_and_deleted(api):
    api.create_repo("user/board", repo_type="space", space_sdk="gradio")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/board", repo_type="space", space_sdk="gradio")
    url = api.create_repo("user/board", repo_type="space", space_sdk="gradio", exist_ok=True)
    assert (url.repo_id, url.repo_type) == ("user/board", "space")
    assert api.space_info("user/board").sdk == "gradio"
    assert not api.repo_exists("user/board", repo_type="dataset")
    api.delete_repo("user/board", repo_type="space")
    assert not list(api.list_spaces(author="user"))
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("user/board", repo_type="space")


def test_a_commit_on_top_of_another_than_the_last_is_refused(api):
    api.create_repo("user/model")
    stale = api.model_info("user/model").sha
    file = {"repo_id": "user/model", "path_in_repo": "a.txt"}
    api.upload_file(**file, path_or_fileobj=b"1", parent_commit=stale)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(**file, path_or_fileobj=b"2", parent_commit=stale)


# Failures in the middle


def test_contents_are_uploaded_once(api, folder, loopback_hub):
    for name in ("user/model", "user/other"):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
    assert statuses(loopback_hub, "PUT", "/__lfs__/") == [200, 200]  # weights and picture
    sent = sum(entry["received"] for entry in loopback_hub.requests if entry["method"] == "PUT")
    assert sent == len(WEIGHTS) + len(PICTURE)


@pytest.mark.parametrize("kind", ["cut", "lost", 500, 503])
def test_an_upload_that_fails_once_is_repeated_by_the_client(api, folder, loopback_hub, tmp_path, kind):
    api.create_repo("user/model")
    loopback_hub.add_faults([{"method": "PUT", "path": "/__lfs__/", "skip": 1, "kind": kind}])
    api.upload_folder(repo_id="user/model", folder_path=folder)
    first, failed, repeated = statuses(loopback_hub, "PUT", "/__lfs__/")
    assert (first, repeated) == (200, 200)
    assert failed == (kind if isinstance(kind, int) else None)
    assert downloaded(api, tmp_path) == contents(folder)


@pytest.mark.parametrize("kind", ["cut", 403])
def test_after_a_failed_upload_a_second_try_sends_only_the_rest(api, folder, loopback_hub, tmp_path, kind):
    api.create_repo("user/model")
    loopback_hub.add_faults([{"method": "PUT", "path": "/__lfs__/", "skip": 1, "count": 9, "kind": kind}])
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_folder(repo_id="user/model", folder_path=folder)
    assert "model.safetensors" not in api.list_repo_files("user/model")
    loopback_hub.faults.clear()
    loopback_hub.requests.clear()
    api.upload_folder(repo_id="user/model", folder_path=folder)
    assert statuses(loopback_hub, "PUT", "/__lfs__/") == [200]
    assert downloaded(api, tmp_path) == contents(folder)


@pytest.mark.parametrize("status", [401, 409, 412, 500, 503])
def test_a_refused_commit_leaves_nothing_and_a_second_try_completes_it(
    api, folder, loopback_hub, tmp_path, status
):
    api.create_repo("user/model")
    loopback_hub.add_faults([{"method": "POST", "path": "/commit/", "kind": status}])
    with pytest.raises(HfHubHTTPError, match=str(status)) as refused:
        api.upload_folder(repo_id="user/model", folder_path=folder)
    assert refused.value.response.status_code == status
    assert not isinstance(refused.value, RepositoryNotFoundError)
    assert len(api.list_repo_commits("user/model")) == 1
    api.upload_folder(repo_id="user/model", folder_path=folder)
    assert statuses(loopback_hub, "PUT", "/__lfs__/") == [200, 200]
    assert len(api.list_repo_commits("user/model")) == 2
    assert downloaded(api, tmp_path) == contents(folder)


@pytest.mark.parametrize(("kind", "commits"), [("cut", 1), ("lost", 2)])
def test_a_commit_whose_connection_breaks(api, folder, loopback_hub, tmp_path, kind, commits):
    """Cut, it was not made; lost, it was, and the client cannot know: in the end it is there once."""
    api.create_repo("user/model")
    loopback_hub.add_faults([{"method": "POST", "path": "/commit/", "kind": kind}])
    with pytest.raises(Exception, match=r"(?i)disconnected|reset|aborted|broken pipe"):
        api.upload_folder(repo_id="user/model", folder_path=folder)
    assert len(api.list_repo_commits("user/model")) == commits
    api.upload_folder(repo_id="user/model", folder_path=folder)
    assert len(api.list_repo_commits("user/model")) == 2
    assert downloaded(api, tmp_path) == contents(folder)


def test_a_download_that_is_cut_is_completed(api, folder, loopback_hub, tmp_path):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    loopback_hub.add_faults([{"method": "GET", "path": "/resolve/.*safetensors", "kind": "cut"}])
    with contextlib.suppress(OSError):  # huggingface_hub 0.36 leaves repeating to the caller
        downloaded(api, tmp_path)
    assert downloaded(api, tmp_path) == contents(folder)
    first, *rest = statuses(loopback_hub, "GET", "model.safetensors")
    assert first is None
    assert rest
    assert loopback_hub.faults[0]["count"] == 0


# The program and the fixtures


def ask(url, method="GET", content=None):
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method)) as answer:
        return json.load(answer)


def test_the_program_serves_keeps_its_folder_and_fails_on_demand(tmp_path, loopback_hub_program):
    command = [
        sys.executable,
        loopback_hub_program.__file__,
        "--port",
        "0",
        "--folder",
        str(tmp_path),
        "--user",
        "ada",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        endpoint = process.stdout.readline().split()[1].removeprefix("HF_ENDPOINT=")
        token = process.stdout.readline().split()[1].removeprefix("HF_TOKEN=")
        faults = [{"path": "whoami", "kind": 503}]
        assert ask(endpoint + "/__faults__", "POST", faults)[0]["count"] == 1
        with pytest.raises(urllib.error.HTTPError, match="503"):
            ask(endpoint + "/api/whoami-v2")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(endpoint + "/__faults__", "POST", [{"kind": "slow"}])
        assert ask(endpoint + "/__faults__", "DELETE") == []
        assert [entry["status"] for entry in ask(endpoint + "/__requests__")] == [503]
        process.terminate()
    server = loopback_hub_program.LoopbackHub(folder=tmp_path)
    server.server_close()
    assert server.hub.users[token] == ("ada", "write")


def test_a_folder_keeps_commits_tags_and_contents(tmp_path, loopback_hub_program):
    hub = loopback_hub_program.Hub(tmp_path)
    repository = hub.create("dataset", "user/rows", private=True, sdk=None)
    files = hub.apply(
        repository.resolve("main").files, [{"key": "file", "value": {"path": "a", "content": b"1"}}]
    )
    commit = repository.add_commit(repository.branches, "main", files, "user", "a")
    repository.tags["1.0"] = commit.oid
    repository.open_discussion("guest", "A row", "Why", base=commit.oid)
    hub.save()
    again = loopback_hub_program.Hub(tmp_path)
    assert again.repositories == hub.repositories
    assert again.objects == hub.objects
    assert again.objects[again.repositories["dataset", "user/rows"].resolve("1.0").files["a"].oid] == b"1"


def test_processes_run_against_the_hub_and_reach_nothing_else(run_against_hub, loopback_hub):
    code = "import sys, huggingface_hub; print(huggingface_hub.whoami()['name'], sys.argv[1:])"
    assert run_against_hub(code, "a").stdout == "user ['a']\n"
    anonymous = run_against_hub(code, environment={"HF_TOKEN": None}, check=False)
    assert "Token is required" in anonymous.stderr or "LocalTokenNotFoundError" in anonymous.stderr
    assert run_against_hub(["--version"]).stdout.startswith("rmcl-hub ")
    for url in ("https://example.org/a", "http://example.org/a"):
        outside = run_against_hub(f"import urllib.request; urllib.request.urlopen('{url}')", check=False)
        assert "404" in outside.stderr
    refused = [(entry["path"], entry["status"]) for entry in loopback_hub.requests[-2:]]
    assert refused == [("example.org:443", 404), ("http://example.org/a", 404)]
