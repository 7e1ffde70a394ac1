"""The leaderboard on the Hub: what it says of some rows already, and a pull request with the others."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from .hub_errors import LOG_IN, HubError, explained
from .model_heads import digest_as
from .row_checks import Row, row_file, row_text

# Enough to load a model without running anything of its repository.
MODEL_FILES = ["*.json", "*.safetensors"]


@dataclass
class Standing:
    """What the board says of rows that are to be submitted.

    Attributes:
        new: Rows that it does not have.
        known: Id of a row to where it stands already, with the same numbers.
        refused: Id of a row to the reason why it may not be submitted.
        request: Number of one's own open pull request, which the new rows can join; None without one.
    """

    new: list[Row] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    request: int | None = None


def who_submits(api: HfApi) -> str:
    """Name of the user on the Hub.

    Raises:
        HubError: If nobody is logged in.
    """
    if not get_token():
        raise HubError(f"there is no token, so nothing can be sent; {LOG_IN}. --dry-run needs none.")
    with explained("log in"):
        return api.whoami()["name"]


def find_model(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Commit of a model on the Hub.

    Raises:
        HubError: If there is no such model or revision, or the Hub cannot be asked.
    """
    with explained(f"find the model {repo_id}{f' at {revision}' if revision else ''}"):
        return str(api.model_info(repo_id, revision=revision).sha)


def check_weights(api: HfApi, repo_id: str, commit: str, record: dict[str, Any]) -> None:
    """Compare the weights on the Hub with those that were evaluated; no code of the repository is run.

    Args:
        api: Of the Hub.
        repo_id: The model, whose weights are downloaded.
        commit: Its commit.
        record: The `evaluation.json`.

    Raises:
        HubError: If they cannot be downloaded.
        ValueError: If they are others.
    """
    with explained(f"download {repo_id}"):
        folder = api.snapshot_download(repo_id, revision=commit, allow_patterns=MODEL_FILES)
    measured = record["model"]
    found = digest_as(Path(folder), measured["class"])
    if found != measured["digest"]:
        raise ValueError(
            f"the weights of {repo_id} at commit {commit[:12]} have the digest {found}, but those that were "
            f"evaluated {measured['digest']}; push the evaluated model, or name its revision as "
            f"{repo_id}@REVISION."
        )


def compare_with_board(api: HfApi, board: str, rows: Sequence[Row], user: str | None) -> Standing:
    """Look for rows on the board and in its open pull requests.

    Args:
        api: Of the Hub.
        board: The dataset repository.
        rows: That are to be submitted.
        user: Whose pull request the rows can join; None: nobody's.

    Raises:
        HubError: If there is no such board, or it cannot be asked.
    """
    standing, left = Standing(), list(rows)
    with explained(f"look at the leaderboard {board}"):
        try:
            left = _look(api, board, None, f"on the leaderboard {board}", left, standing)
        except RepositoryNotFoundError:
            owner = board.split("/")[0]
            raise HubError(
                f"there is no leaderboard {board}; {owner} makes one by `rmcl-hub push leaderboard "
                f"--namespace {owner}`, or name another with --board."
            ) from None
        for request in _open_requests(api, board):
            where = f"in the open pull request {request.url}"
            left = _look(api, board, request.git_reference, where, left, standing)
            if request.author == user and request.title == _title(rows):
                standing.request = request.num
    standing.new = left
    return standing


def _open_requests(api: HfApi, board: str) -> Iterator[Any]:
    return api.get_repo_discussions(
        board, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
    )


def _look(
    api: HfApi, board: str, revision: str | None, where: str, rows: Sequence[Row], standing: Standing
) -> list[Row]:
    """The rows that are not there; the others get their place in `standing`."""
    by_file = {row_file(row): row for row in rows}
    if not by_file:
        return []
    there = api.get_paths_info(board, list(by_file), repo_type="dataset", revision=revision)
    for entry in there:
        row = by_file.pop(entry.path)
        path = api.hf_hub_download(board, entry.path, repo_type="dataset", revision=revision)
        theirs = json.loads(Path(path).read_text(encoding="utf-8"))
        if theirs.get("numbers") == row["numbers"]:
            standing.known[row["id"]] = where
        else:
            standing.refused[row["id"]] = (
                f"it stands {where} with other numbers, from the evaluation.json with SHA-256 "
                f"{str(theirs.get('evaluation_sha256'))[:12]}; a result is not replaced by another try, so "
                "talk with the owner of the board."
            )
    return list(by_file.values())


def open_pull_request(api: HfApi, board: str, rows: Sequence[Row], request: int | None) -> str:
    """Send rows to the board in one pull request.

    Args:
        api: Of the Hub.
        board: The dataset repository.
        rows: Of one model.
        request: An open pull request that the rows join; None opens one.

    Returns:
        Its address.

    Raises:
        HubError: If the Hub does not take it.
    """
    operations = [CommitOperationAdd(row_file(row), row_text(row).encode()) for row in rows]
    lines = [f"- {row['task']}, {row['threat']['name']}: {row['verdict']}" for row in rows]
    with explained(f"open a pull request on {board}"):
        commit = api.create_commit(
            board,
            operations,
            repo_type="dataset",
            commit_message=_title(rows),
            commit_description="Made by `rmcl-hub submit`:\n\n" + "\n".join(lines),
            revision=None if request is None else f"refs/pr/{request}",
            create_pr=request is None,
        )
        if request is None:
            return str(commit.pr_url)
        return api.get_discussion_details(board, request, repo_type="dataset").url


def _title(rows: Sequence[Row]) -> str:
    return f"Leaderboard rows of {rows[0]['model']['repo']}"
