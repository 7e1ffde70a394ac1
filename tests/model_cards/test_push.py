"""`rmcl-hub push` against a Hub on loopback: what is there afterwards is what was staged, nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmcl_hub.model_cards import push as push_module
from rmcl_hub.model_cards import uploads
from rmcl_hub.model_cards.push import main
from rmcl_hub.model_cards.staged_repository import MANIFEST, StagedRepository
from rmcl_hub.model_cards.uploads import compare

CARD = "---\nlicense: mit\n---\n# Toy\n"


@pytest.fixture
def staged(tmp_path):
    """A function that stages a folder: a card, rows, and weights that the Hub keeps as a large file."""

    def build(name="toy", repo_type="dataset", files=None, **given):
        folder = tmp_path / "staged" / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.rglob("*"):
            path.unlink()
        weights = np.random.default_rng(0).bytes(3000)
        for path, content in {"README.md": CARD, "w.npy": weights, **(files or {"rows.json": "[1]"})}.items():
            (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
        return StagedRepository.seal(name, repo_type, folder, **given)

    return build


@pytest.fixture
def push(tmp_path):
    """A function that runs the command on staged repositories or words; returns its exit status."""

    def run(*sources, namespace="user"):
        words = [str(source.folder) if isinstance(source, StagedRepository) else source for source in sources]
        return main([*words, "--namespace", namespace, "--output-dir", str(tmp_path / "push")])

    return run


def contents(api, repo_id, repo_type="dataset", revision=None):
    """What the repository holds but for what the Hub puts there itself."""
    paths = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
    given = {"repo_type": repo_type, "revision": revision}
    paths = [path for path in paths if path != ".gitattributes"]
    return {path: Path(api.hf_hub_download(repo_id, path, **given)).read_bytes() for path in paths}


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def commits(api, repo_id, repo_type="dataset"):
    return [commit.title for commit in api.list_repo_commits(repo_id, repo_type=repo_type)]


def sent(hub):
    """Requests that change something on the Hub."""
    reading = ("/preupload/", "/validate-yaml", "/objects/batch", "/paths-info/")
    return [
        f"{entry['method']} {entry['path']}"
        for entry in hub.requests
        if entry["method"] not in ("GET", "HEAD") and not any(part in entry["path"] for part in reading)
    ]


def test_the_repository_holds_what_was_staged(user, staged, push, capsys):
    model, data = staged("net", "model"), staged("rows")
    assert push(data, model) == 0
    for repository in (model, data):
        held = contents(user, f"user/{repository.name}", repository.repo_type)
        assert held == files_in(repository.folder)
        assert len(commits(user, f"user/{repository.name}", repository.repo_type)) == 2, "the Hub's, and ours"
    shown = capsys.readouterr().out
    assert "user/net (model, licence mit): 4 files, " in shown
    assert shown.index("[1/2] " + user.endpoint + "/user/net: pushed") < shown.index(
        "/datasets/user/rows: pushed"
    )


def test_a_repeated_push_sends_nothing(user, staged, push, loopback_hub, capsys):
    assert push(staged()) == 0
    loopback_hub.requests.clear()
    capsys.readouterr()
    assert push(staged()) == 0
    assert sent(loopback_hub) == []
    assert len(commits(user, "user/toy")) == 2
    shown = capsys.readouterr().out
    assert "unchanged" in shown.splitlines()[0]
    assert "0 B of it to send" in shown
    assert shown.splitlines()[-1].startswith(f"[1/1] {user.endpoint}/datasets/user/toy: unchanged, commit ")


def test_only_what_differs_is_sent_and_only_our_own_files_are_deleted(
    user, staged, push, loopback_hub, capsys
):
    push(staged(files={"rows.json": "[1]", "old.json": "[0]"}))
    user.upload_file(
        path_or_fileobj=b"theirs", path_in_repo="notes.md", repo_id="user/toy", repo_type="dataset"
    )
    loopback_hub.requests.clear()
    capsys.readouterr()
    assert push(staged(files={"rows.json": "[1, 2]"})) == 0
    held = contents(user, "user/toy")
    assert held.pop("notes.md") == b"theirs"
    assert held == files_in(staged(files={"rows.json": "[1, 2]"}).folder)
    assert [request.split("/")[0] for request in sent(loopback_hub)] == ["POST "], "one commit, no large file"
    shown = capsys.readouterr().out
    states = {line.split()[-1]: line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert states == {
        "README.md": "unchanged",
        "w.npy": "unchanged",
        "rows.json": "changed",
        "old.json": "deleted",
        MANIFEST: "changed",
    }
    assert "2 changed, 1 deleted" in shown


def test_what_others_named_in_a_manifest_of_their_own_is_not_deleted(user, staged, push):
    user.create_repo("user/toy", repo_type="dataset")
    for path, content in {
        MANIFEST: b'{"format": "x", "files": {"theirs.md": {}}}',
        "theirs.md": b"1",
    }.items():
        user.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="user/toy", repo_type="dataset")
    assert push(staged()) == 0
    assert contents(user, "user/toy")["theirs.md"] == b"1"


def test_an_accumulating_repository_keeps_earlier_files(user, staged, push):
    def rows(**files):
        return staged("board", files={f"{name}.json": text for name, text in files.items()}, accumulates=True)

    push(rows(a="[1]", b="[2]"))
    assert push(rows(b="[3]", c="[4]")) == 0
    held = contents(user, "user/board")
    assert [held[f"{name}.json"] for name in "abc"] == [b"[1]", b"[3]", b"[4]"]
    named = json.loads(held[MANIFEST])["files"]
    assert set(named) == {"README.md", "w.npy", "a.json", "b.json", "c.json"}
    assert named["a.json"]["size"] == 3
    before = commits(user, "user/board")
    assert push(rows(b="[3]", c="[4]")) == 0
    assert commits(user, "user/board") == before, "the earlier rows are no difference"
    user.delete_file("a.json", "user/board", repo_type="dataset")  # by whoever keeps the board
    assert push(rows(c="[4]")) == 0
    assert set(json.loads(contents(user, "user/board")[MANIFEST])["files"]) == set(named) - {"a.json"}


def test_a_tag_pins_a_push_and_is_never_moved(user, staged, push, loopback_hub, capsys):
    assert push(staged(), "--tag", "v1") == 0
    first = contents(user, "user/toy", revision="v1")
    assert push(staged(), "--tag", "v1") == 0, "the same content may be pushed again"
    loopback_hub.requests.clear()
    assert push(staged(files={"rows.json": "[9]"}), "--tag", "v1") == 1
    assert sent(loopback_hub) == []
    assert "user/toy has a tag v1 already, for commit " in capsys.readouterr().err
    assert push(staged(files={"rows.json": "[9]"}), "--tag", "v2") == 0
    assert contents(user, "user/toy", revision="v1") == first
    assert contents(user, "user/toy", revision="v2")["rows.json"] == b"[9]"


def test_a_branch_leaves_main_alone(user, staged, push):
    push(staged())
    main_files = contents(user, "user/toy")
    assert push(staged(files={"rows.json": "[9]"}), "--revision", "next") == 0
    assert contents(user, "user/toy", revision="next")["rows.json"] == b"[9]"
    assert contents(user, "user/toy") == main_files
    assert push(staged(files={"rows.json": "[10]"}), "--revision", "next") == 0, "the branch is there now"


def test_private_repositories_are_made_and_public_ones_not_hidden(user, staged, push, capsys):
    assert push(staged("mine", "model"), "--private") == 0
    assert user.repo_info("user/mine").private
    assert push(staged("mine", "model")) == 0, "and stays so"
    assert user.repo_info("user/mine").private
    push(staged("open"))
    assert push(staged("open"), "--private") == 1
    assert "user/open is public already, so --private comes too late" in capsys.readouterr().err


def test_a_space_is_made_of_the_kind_that_its_card_names(user, staged, push):
    card = "---\ntitle: Toy\nsdk: gradio\nlicense: mit\n---\n"
    assert push(staged("app", "space", {"README.md": card, "app.py": "1"})) == 0
    assert user.space_info("user/app").sdk == "gradio"


# The dry run


def test_a_dry_run_says_what_would_go_where_and_sends_nothing(user, staged, push, loopback_hub, capsys):
    repositories = staged("net", "model"), staged("toy")
    assert push(*repositories, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "user/net (model, licence mit): 4 files, 3.5 kB, a new repository" in shown
    assert "datasets/user/toy (dataset, licence mit)" in shown
    assert "  new           3.0 kB  w.npy" in shown
    size = sum(len(content) for staged in repositories for content in files_in(staged.folder).values()) / 1000
    assert f"In all 2 repositories, {size:.1f} kB; {size:.1f} kB of it to send." in shown
    assert "Dry run: nothing was sent." in shown
    assert sent(loopback_hub) == []
    push(staged("toy"))
    capsys.readouterr()
    assert push(staged("toy", files={"rows.json": "[2]"}), "--dry-run") == 0
    assert "2 changed" in capsys.readouterr().out


def test_a_dry_run_needs_neither_network_nor_token(staged, push, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)  # and offline mode is on, as in all tests
    assert push(staged(), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "The Hub was not asked what it has: " in shown
    assert "offline mode is on (HF_HUB_OFFLINE)" in shown
    assert "not compared with the Hub" in shown
    assert "of it to send" not in shown


def test_an_interrupted_push_says_that_it_can_go_on(user, staged, push, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(uploads, "upload", interrupt)
    assert push(staged()) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_long_folders_are_listed_as_one_line(staged, push, monkeypatch, capsys):
    monkeypatch.setattr(push_module, "MAX_LISTED", 2)
    staged_folder = staged().folder
    (staged_folder / "data").mkdir()
    for number in range(3):
        (staged_folder / "data" / f"{number}.json").write_text("12345")
    StagedRepository.seal("toy", "dataset", staged_folder)
    assert push(str(staged_folder), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "15 B  data/ (3 files)" in shown
    assert "README.md" in shown


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7e12, "7000.0 GB")],
)
def test_sizes_are_read_at_a_glance(num_bytes, text):
    assert push_module._size(num_bytes) == text


# Refusals


def test_everything_is_checked_before_anything_is_sent(user, staged, push, loopback_hub, capsys):
    good, bad = staged("good", "model"), staged("bad", files={"a.pkl": "x", "b.txt": "/home/bob/x"})
    assert push(good, bad) == 1
    error = capsys.readouterr().err
    assert "rmcl-hub push: dataset bad is not fit to be published:\n- a.pkl: files that end in .pkl" in error
    assert "b.txt, line 1: the local path /home/bob/x" in error
    assert sent(loopback_hub) == []


def test_the_token_in_use_is_refused_in_files_and_not_shown(user, staged, push, loopback_hub, capsys):
    token = loopback_hub.token("user")
    assert push(staged(files={"notes.txt": f"x\n{token}"}), "--dry-run") == 1
    shown = capsys.readouterr()
    assert "notes.txt, line 2: " in shown.err
    assert token not in shown.err + shown.out


def test_paths_of_the_sources_are_refused(user, staged, push, tmp_path, capsys):
    repository = staged(files={"a.txt": f"made in {tmp_path}/staged/toy."})
    assert push(repository, "--dry-run") == 1
    assert f"a.txt, line 1: the local path {str(tmp_path)[:40]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "--namespace", "user"],
            "'nowhere' is nothing that can be pushed; these kinds are known:\n- an",
        ),
        (["openpairs", "--namespace", "no body"], "--namespace: 'no body' can be no name on the Hub"),
        (["openpairs"], "the following arguments are required: --namespace"),
        (["--namespace", "user"], "the following arguments are required: SOURCE"),
    ],
)
def test_arguments_that_cannot_be_meant_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_compare_tells_states_by_content(user, staged, push):
    repository = staged()
    changes = compare(user, repository, "user/toy")
    assert (changes.head, changes.is_private) == (None, None)
    assert changes.in_state("new") == [*repository.files, MANIFEST]
    push(repository)
    changes = compare(user, repository, "user/toy")
    assert changes.head == user.repo_info("user/toy", repo_type="dataset").sha
    assert changes.is_private is False
    assert changes.in_state("unchanged") == [*repository.files, MANIFEST]
    weights = bytearray((repository.folder / "w.npy").read_bytes())
    weights[-1] ^= 1  # the same size
    assert compare(user, staged(files={"w.npy": bytes(weights)}), "user/toy").states["w.npy"] == "changed"


# Sources, through the command itself


def test_a_model_with_its_evaluation_goes_up_by_one_command_and_loads_by_id(
    model_folder, model_record, evaluation_folder, run_against_hub
):
    code = """
import sys
from rmcl_hub import cli
assert cli.main(["push", *sys.argv[1:], "--namespace", "user", "--tag", "v1"]) == 0
from datasets import load_dataset
from rmcl_hub.evaluation.provenance import model_digest
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
for place, revision in ("user/model", "v1"), ("runs/push/models/model", "main"):
    model = AutoModelForVisualQuestionAnswering.from_pretrained(place, revision=revision)
    AutoProcessor.from_pretrained(place, revision=revision)
    print("digest", model_digest(model))
print("rows", load_dataset("user/rmcl-leaderboard")["rows"].num_rows)
"""
    shown = run_against_hub(
        code, model_folder.name, evaluation_folder.name, "leaderboard"
    ).stdout.splitlines()
    assert [line.split()[1].split("/", 3)[-1] for line in shown if line.startswith("[")] == [
        "user/model:",
        "datasets/user/model-evaluation:",
        "datasets/user/rmcl-leaderboard:",
        "spaces/user/rmcl-leaderboard:",
    ]
    assert shown[-3:] == [f"digest {model_record['model']['digest']}"] * 2 + ["rows 2"]
