"""A push that fails in the middle says why; repeated, it completes with nothing lost or doubled."""

import logging
import re

import numpy as np
import pytest
from huggingface_hub import constants

from rmcl_hub.model_cards.hub_errors import HubError, clean, explained, filter_logs
from rmcl_hub.model_cards.push import main
from rmcl_hub.model_cards.staged_repository import MANIFEST, StagedRepository
from rmcl_hub.model_cards.uploads import compare, upload, verify

CARD = "---\nlicense: mit\n---\n# Toy\n"
COMMIT, LARGE, CREATE = "/commit/", "/__lfs__/", "/api/repos/create"


@pytest.fixture
def repositories(tmp_path):
    """A model and two datasets, each with three files that the Hub keeps as large ones."""
    staged = []
    for number, (name, repo_type) in enumerate(
        {"net": "model", "rows": "dataset", "board": "dataset"}.items()
    ):
        folder = tmp_path / "staged" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(CARD)
        (folder / "rows.json").write_text(f"[{number}]")
        for part in range(3):
            (folder / f"{part}.npy").write_bytes(np.random.default_rng(10 * number + part).bytes(4000))
        staged.append(StagedRepository.seal(name, repo_type, folder, accumulates=name == "board"))
    return staged


@pytest.fixture
def push(repositories, tmp_path):
    """A function that pushes all of them; returns the exit status."""

    def run(*options):
        folders = [str(staged.folder) for staged in repositories]
        return main([*folders, "--namespace", "user", "--output-dir", str(tmp_path / "push"), *options])

    return run


def assert_complete(user, repositories, hub):
    """The listing equals the manifest, one commit of each repository is ours, each large file came once."""
    for staged in repositories:
        repo_id = f"user/{staged.name}"
        held = user.list_repo_tree(repo_id, repo_type=staged.repo_type, recursive=True)
        sizes = {entry.path: entry.size for entry in held if entry.path != ".gitattributes"}
        manifest = (staged.folder / MANIFEST).stat().st_size
        assert sizes == {MANIFEST: manifest, **{path: entry["size"] for path, entry in staged.files.items()}}
        titles = [commit.title for commit in user.list_repo_commits(repo_id, repo_type=staged.repo_type)]
        assert [title.startswith("Push ") for title in titles] == [True, False]
    stored = [
        entry["path"].split("?")[0]
        for entry in hub.requests
        if entry["method"] == "PUT" and LARGE in entry["path"] and entry["status"] == 200
    ]
    assert len(stored) == len(set(stored)) == 9


FAULTS = {
    # name: what fails, what the message says; None where the library's own repetition helps
    "an upload is cut": (
        [{"method": "PUT", "path": LARGE, "skip": 4, "kind": "cut", "count": 99}],
        "could not send",
    ),
    "an upload is cut once": ([{"method": "PUT", "path": LARGE, "skip": 4, "kind": "cut"}], None),
    "an upload fails": (
        [{"method": "PUT", "path": LARGE, "skip": 1, "kind": 503, "count": 99}],
        r"could not send user/net: the Hub failed \(HTTP 503.*Repeat the command when it is back: what has "
        "arrived is not sent again",
    ),
    "the name is taken": (
        [{"path": CREATE, "skip": 1, "kind": 409}],
        "could not create user/rows: another repository or change is in the way; look at it on the Hub",
    ),
    "a commit fails": (
        [{"path": COMMIT, "skip": 1, "kind": 500, "count": 99}],
        r"could not send user/(rows|board): the Hub failed \(HTTP 500",
    ),
    "a commit is cut": (
        [{"path": COMMIT, "skip": 2, "kind": "cut", "count": 99}],
        r"could not send user/board: the connection to http://127.0.0.1:\d+ failed",
    ),
    "the answer to a commit is lost": (
        [{"path": COMMIT, "kind": "lost"}],
        "could not send user/net: the connection",
    ),
    "the branch moved": ([{"path": COMMIT, "kind": 412}], "somebody changed it meanwhile; repeat the push"),
    "the token is withdrawn": (
        [{"path": CREATE, "skip": 2, "kind": 401, "count": 99}],
        r"could not create user/board: the Hub does not accept the token; log in with `hf auth login`, or "
        r"set HF_TOKEN to a valid one. \(HTTP 401",
    ),
    "no right to write": (
        [{"path": CREATE, "kind": 403}],
        "the token may not write there; take a namespace that is yours",
    ),
    "too many requests": (
        [{"path": CREATE, "kind": 429, "count": 99}],
        "too many requests; wait some minutes",
    ),
    "the listing fails": (
        [{"path": "/tree/", "kind": 500, "count": 99}],
        r"could not list user/net: the Hub failed",
    ),
}


@pytest.mark.parametrize(("faults", "message"), FAULTS.values(), ids=FAULTS)
def test_a_repeated_push_completes_what_a_failure_left(
    faults, message, user, repositories, push, loopback_hub, capsys
):
    loopback_hub.add_faults(faults)
    status = push()
    shown = capsys.readouterr()
    if message is None:
        assert status == 0
    else:
        assert status == 1
        assert re.search(f"rmcl-hub push: .*{message}", shown.err), shown.err
        assert shown.err.count("rmcl-hub push: ") == 1
        assert "Traceback" not in shown.err
    assert loopback_hub.token("user") not in shown.out + shown.err
    loopback_hub.faults.clear()
    assert push() == 0
    assert_complete(user, repositories, loopback_hub)
    assert "could not" not in capsys.readouterr().err


def test_what_is_done_is_told_before_the_failure(user, push, loopback_hub, capsys):
    loopback_hub.add_faults([{"path": CREATE, "skip": 1, "kind": 500, "count": 99}])
    assert push() == 1
    shown = capsys.readouterr()
    assert re.search(r"\[1/3\] http://127.0.0.1:\d+/user/net: pushed, commit [0-9a-f]{40}", shown.out)
    assert "[2/3]" not in shown.out
    loopback_hub.faults.clear()
    assert push() == 0
    assert "[1/3]" in (told := capsys.readouterr().out)
    assert "/user/net: unchanged" in told
    assert "/user/rows: pushed" in told


def test_a_push_that_was_committed_by_another_run_is_noticed(user, repositories, loopback_hub):
    staged = repositories[0]
    changes = compare(user, staged, "user/net")
    upload(user, changes)
    (staged.folder / "rows.json").write_text("[9]")
    changes = compare(user, StagedRepository.seal("net", "model", staged.folder), "user/net")
    user.upload_file(path_or_fileobj=b"x", path_in_repo="other.md", repo_id="user/net")
    with pytest.raises(HubError, match="could not send user/net: somebody changed it meanwhile"):
        upload(user, changes)


def test_verification_names_what_differs(user, repositories, loopback_hub):
    staged = repositories[0]
    changes = compare(user, staged, "user/net")
    commit = upload(user, changes)
    verify(user, changes, commit)
    (staged.folder / "rows.json").write_text("[9]")
    with pytest.raises(
        HubError, match=r"user/net does not hold what was sent: rows.json .*was the folder changed"
    ):
        verify(user, changes, commit)
    user.delete_file("0.npy", "user/net")
    with pytest.raises(HubError, match=r"what was sent: 0.npy, rows.json are missing or differ"):
        verify(user, changes, user.repo_info("user/net").sha)


# Before any work: login, namespace, offline mode


def test_without_a_token_nothing_is_tried(push, loopback_hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert push() == 1
    assert "there is no token, so nothing can be sent; log in with `hf auth login`, or set HF_TOKEN" in (
        capsys.readouterr().err
    )
    assert loopback_hub.requests == []


def test_a_wrong_token_is_told_and_not_shown(push, loopback_hub, monkeypatch, capsys):
    wrong = "hf_" + "Wrong1" * 6
    monkeypatch.setenv("HF_TOKEN", wrong)
    assert push() == 1
    error = capsys.readouterr().err
    assert "could not log in: the Hub does not accept the token" in error
    assert wrong not in error


@pytest.mark.usefixtures("user")
def test_somebody_elses_namespace_is_refused_at_once(repositories, loopback_hub, capsys):
    assert main([str(repositories[0].folder), "--namespace", "other"]) == 1
    assert "the token is user's, who may write to user, not to other; choose one" in capsys.readouterr().err
    assert [entry["path"] for entry in loopback_hub.requests] == ["/api/whoami-v2"]


def test_offline_mode_needs_a_dry_run(push, loopback_hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push() == 1
    assert (
        "offline mode is on (HF_HUB_OFFLINE); unset it, or stay here with --dry-run"
        in capsys.readouterr().err
    )
    assert push("--dry-run") == 0
    assert loopback_hub.requests == []


def test_a_hub_that_is_not_there(push, loopback_hub, user, monkeypatch, capsys):
    loopback_hub.shutdown()
    loopback_hub.server_close()
    assert push() == 1
    assert re.search(
        r"could not log in: the connection to http://127.0.0.1:\d+ failed", capsys.readouterr().err
    )
    assert push("--dry-run") == 0
    assert "The Hub was not asked what it has: could not look at user/net" in capsys.readouterr().out


# Messages


def test_errors_that_are_not_the_hubs_pass_through():
    with pytest.raises(ValueError, match="ours"), explained("do it"):
        raise ValueError("ours")
    with pytest.raises(HubError, match=r"could not do it: the connection to .* failed"), explained("do it"):
        raise RuntimeError("uploading") from ConnectionResetError(104)


def test_tokens_are_taken_out_of_messages_and_logs(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    assert clean("with an-odd-token and Bearer abcdefgh1234") == "with *** and Bearer ***"
    logger = logging.getLogger("huggingface_hub")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    try:
        filter_logs()
        logger.warning("retrying with %s", "an-odd-token")
    finally:
        logger.removeHandler(handler)
    error = capsys.readouterr().err
    assert "retrying with ***" in error
    assert "an-odd-token" not in error
