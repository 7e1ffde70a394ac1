import json

import pytest
from huggingface_hub import HfApi

from rmcl_hub.evaluation.provenance import model_digest
from rmcl_hub.model_cards.board_pull_request import (
    check_weights,
    compare_with_board,
    find_model,
    open_pull_request,
    who_submits,
)
from rmcl_hub.model_cards.hub_errors import HubError
from rmcl_hub.model_cards.leaderboard_rows import rows_of
from rmcl_hub.model_cards.row_checks import row_file, row_text
from rmcl_hub.model_cards.submit import main, submit
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

MODEL, BOARD = "user/rmcl-vilt", "owner/rmcl-leaderboard"


@pytest.fixture
def measured(evaluation_folder, tiny_config, tmp_path):
    """The evaluation folder, about the weights of a saved model, whose folder is the second."""
    model = RMCLViltForQuestionAnswering(tiny_config)
    model.save_pretrained(tmp_path / "model")
    path = evaluation_folder / "evaluation.json"
    record = json.loads(path.read_text())
    record["model"]["digest"] = model_digest(model)
    path.write_text(json.dumps(record))
    return evaluation_folder, tmp_path / "model"


@pytest.fixture
def api(loopback_hub, measured, monkeypatch):
    """The Hub with the model of "user", who is logged in, and an empty leaderboard of "owner"."""
    owner = HfApi(token=loopback_hub.token("owner"))
    owner.create_repo(BOARD, repo_type="dataset")
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token("user"))
    api = HfApi()
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=measured[1])
    return api


@pytest.fixture
def owner(api, loopback_hub):
    return HfApi(token=loopback_hub.token("owner"))


@pytest.fixture
def run(measured, capsys):
    """Run `rmcl-hub submit` on the evaluation; gives the exit code and what was said."""

    def run(*words):
        code = main([str(measured[0]), "--model", MODEL, "--board", BOARD, *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def requests_of(api):
    return list(api.get_repo_discussions(BOARD, repo_type="dataset"))


def rows_in(api, revision):
    paths = api.list_repo_files(BOARD, repo_type="dataset", revision=revision)
    return {path for path in paths if path.startswith("rows/")}


def test_one_pull_request_with_all_rows_and_a_repeat_says_so(api, owner, run, measured):
    code, said = run("--recipe", "rmcl-moco-coco")
    assert code == 0, said
    (request,) = requests_of(api)
    assert request.author == "user"
    assert request.url in said
    assert said.count(": new") == 2
    commit = api.model_info(MODEL).sha
    expected = rows_of(
        measured[0], model_repo=MODEL, revision=commit, recipe="rmcl-moco-coco", submitter="user"
    ).accepted
    assert rows_in(api, request.git_reference) == {row_file(row) for row in expected}
    for row in expected:
        path = api.hf_hub_download(BOARD, row_file(row), repo_type="dataset", revision=request.git_reference)
        with open(path) as file:  # noqa: PTH123
            assert json.load(file) == row

    code, said = run()
    assert code == 0, said
    assert said.count(f"it stands in the open pull request {request.url} already") == 2
    assert len(requests_of(api)) == 1
    assert len(api.list_repo_commits(BOARD, repo_type="dataset", revision=request.git_reference)) == 2

    owner.merge_pull_request(BOARD, request.num, repo_type="dataset")
    code, said = run()
    assert code == 0, said
    assert said.count(f"it stands on the leaderboard {BOARD} already") == 2
    assert len(requests_of(api)) == 1


def test_other_numbers_are_not_replaced(api, owner, run, measured):
    row = rows_of(measured[0], model_repo=MODEL).accepted[0]
    row["numbers"]["robust_accuracy"]["value"] += 1 / 64
    row["evaluation_sha256"] = "abc" + 61 * "0"
    owner.upload_file(
        path_or_fileobj=row_text(row).encode(),
        path_in_repo=row_file(row),
        repo_id=BOARD,
        repo_type="dataset",
    )
    code, said = run()
    assert code == 1
    assert f"refused: it stands on the leaderboard {BOARD} with other numbers" in said
    assert "SHA-256 abc000000000; a result is not replaced by another try" in said
    (request,) = requests_of(api)
    assert len(rows_in(api, request.git_reference) - {row_file(row)}) == 1


def test_new_rows_join_one_s_own_open_pull_request(api, run, measured):
    first, second = rows_of(measured[0], model_repo=MODEL).accepted
    address = open_pull_request(api, BOARD, [first], None)
    code, said = run()
    assert code == 0, said
    assert f"1 rows wait for the owner of {BOARD} in {address}" in said
    (request,) = requests_of(api)
    assert rows_in(api, request.git_reference) == {row_file(first), row_file(second)}


def test_an_answer_that_is_lost_doubles_nothing(api, run, loopback_hub):
    loopback_hub.add_faults([{"method": "POST", "path": "/commit/", "kind": "lost"}])
    code, said = run()
    assert code == 1
    assert f"could not open a pull request on {BOARD}: the connection to" in said
    code, said = run()
    assert code == 0, said
    assert said.count("it stands in the open pull request") == 2
    assert len(requests_of(api)) == 1


def test_a_dry_run_asks_the_hub_and_sends_nothing(api, run):
    code, said = run("--dry-run")
    assert code == 0, said
    assert said.count(": new") == 2
    assert "Dry run: nothing was sent.\n" in said
    assert requests_of(api) == []


def test_other_weights_on_the_hub_are_refused(api, run, measured, tiny_config):
    RMCLViltForQuestionAnswering(tiny_config).save_pretrained(measured[1])
    former = api.model_info(MODEL).sha
    api.upload_folder(repo_id=MODEL, folder_path=measured[1])
    code, said = run()
    assert code == 1
    assert f"the weights of {MODEL} at commit" in said
    assert f"name its revision as {MODEL}@REVISION" in said
    assert requests_of(api) == []
    code, said = run("--model", f"{MODEL}@{former}")
    assert code == 0, said


def test_a_changed_number_is_refused(api, run, measured):
    path = measured[0] / "evaluation.json"
    record = json.loads(path.read_text())
    record["threats"]["linf-4"]["numbers"]["overall"]["robust_accuracy"]["value"] = 0.9
    path.write_text(json.dumps(record))
    code, said = run()
    assert code == 1
    assert "evaluation: refused: evaluation.json says threats.linf-4.numbers.overall.robust_accuracy" in said
    assert requests_of(api) == []


def test_a_failed_gate_leaves_the_other_row(api, run, measured):
    path = measured[0] / "evaluation.json"
    record = json.loads(path.read_text())
    threat = record["threats"]["linf-4"]
    threat["checks"][17].update(status="fail", detail="3 test pictures are trained on")
    threat.update(verdict="unreliable", publishable=False, reasons=["rule 18"])
    path.write_text(json.dumps(record))
    code, said = run()
    assert code == 1
    assert "linf-4: refused: gate 18 of the audit, splits are apart, is not passed" in said
    (request,) = requests_of(api)
    assert len(rows_in(api, request.git_reference)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "user/nothing"], "could not find the model user/nothing"),
        (["--model", f"{MODEL}@nothing"], f"could not find the model {MODEL} at nothing"),
        (
            ["--board", "owner/nothing"],
            "there is no leaderboard owner/nothing; owner makes one by `rmcl-hub push leaderboard "
            "--namespace owner`, or name another with --board.",
        ),
    ],
)
def test_what_is_not_on_the_hub_is_named(api, run, words, message):
    code, said = run(*words)
    assert code == 1
    assert message in said
    assert "Traceback" not in said


def test_nobody_is_logged_in(api, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, said = run()
    assert code == 1
    assert "there is no token, so nothing can be sent; log in with `hf auth login`, or set HF_TOKEN" in said


def test_the_token_is_not_told(api, run, loopback_hub, monkeypatch):
    token = "hf_" + "a" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    code, said = run()
    assert code == 1
    assert "could not log in: the Hub does not accept the token" in said
    assert token not in said


def test_offline_only_a_dry_run_works(run, monkeypatch):
    code, said = run("--dry-run")
    assert code == 0, said
    assert "The Hub was not asked for the model and the board: could not find the model" in said
    assert said.count("it would be a row") == 2
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    code, said = run()
    assert code == 1
    assert "offline mode is on (HF_HUB_OFFLINE)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--model", MODEL], "there is no folder nowhere; give the output folder of"),
        (["FOLDER", "--model", "no-user"], "--model is 'no-user'; expected USER/MODEL or"),
        (["FOLDER"], "the following arguments are required: --model"),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path) if word == "FOLDER" else word for word in words])
    assert message in capsys.readouterr().err


def test_the_parts_one_by_one(api, measured):
    commit = find_model(api, MODEL, None)
    assert who_submits(api) == "user"
    record = json.loads((measured[0] / "evaluation.json").read_text())
    check_weights(api, MODEL, commit, record)
    record["model"]["digest"] = "0" * 16
    with pytest.raises(ValueError, match="those that were evaluated 0000000000000000"):
        check_weights(api, MODEL, commit, record)
    rows = rows_of(measured[0], model_repo=MODEL).accepted
    standing = compare_with_board(api, BOARD, rows, "user")
    assert (standing.new, standing.known, standing.refused, standing.request) == (rows, {}, {}, None)
    with pytest.raises(HubError, match="could not find the model"):
        find_model(api, "user/nothing", None)
    assert submit([measured[0]], MODEL, board=BOARD, dry_run=True) == 0
