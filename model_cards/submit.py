"""`rmcl-hub submit`: check the rows of an evaluation, and open a pull request on the leaderboard."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .board_pull_request import Standing
    from .row_checks import Row

MODEL = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")


def main(argv: list[str] | None = None) -> int:
    """Submit as the command line says.

    Returns:
        0 if every row is or now stands in a pull request or on the board; 1 if one was refused, or the Hub
        failed.

    Raises:
        SystemExit: With status 2 for arguments that cannot be meant.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    model = MODEL.fullmatch(arguments.model)
    if model is None:
        parser.error(f"--model is {arguments.model!r}; expected USER/MODEL or USER/MODEL@REVISION.")
    for folder in arguments.folders:
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}; give the output folder of `rmcl-hub evaluate`.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from .hub_errors import HubError, clean, filter_logs

    filter_logs()
    try:
        refused = submit(
            arguments.folders,
            model["repo"],
            model["revision"],
            board=arguments.board or f"{model['repo'].split('/')[0]}/rmcl-leaderboard",
            recipe=arguments.recipe,
            dry_run=arguments.dry_run,
        )
    except (HubError, OSError, ValueError) as error:
        sys.stderr.write(clean(f"rmcl-hub submit: {error}\n"))
        return 1
    return 1 if refused else 0


def submit(
    folders: Sequence[str | Path],
    model_repo: str,
    revision: str | None = None,
    *,
    board: str,
    recipe: str | None = None,
    dry_run: bool = False,
) -> int:
    """Check the rows of evaluations, say what becomes of each, and send the new ones in one pull request.

    Args:
        folders: Of evaluations of the model, as `rmcl-hub evaluate` wrote them.
        model_repo: The model on the Hub.
        revision: Of the model; None: its newest.
        board: The dataset repository of the leaderboard.
        recipe: How the model was trained, in words.
        dry_run: Send nothing; what only the Hub knows is left out where it cannot be reached.

    Returns:
        How many rows and folders were refused.

    Raises:
        HubError: If the Hub does not do what is asked.
    """
    from huggingface_hub import HfApi

    from .board_pull_request import compare_with_board, find_model, open_pull_request, who_submits
    from .hub_errors import HubError

    api, user, commit = HfApi(), None, None
    try:
        user = None if dry_run else who_submits(api)
        commit = find_model(api, model_repo, revision)
    except HubError as error:
        if not dry_run:
            raise
        _say(f"The Hub was not asked for the model and the board: {error}")
    told = {"model_repo": model_repo, "revision": commit, "recipe": recipe, "submitter": user}
    rows, refused = _rows_of_folders(api, folders, told)
    if commit is None or not rows:
        _say_accepted(rows)
        standing = None
    else:
        standing = compare_with_board(api, board, rows, user)
        refused += _say_standing(rows, standing)
    if dry_run:
        _say("Dry run: nothing was sent.")
    elif standing is not None and standing.new:
        address = open_pull_request(api, board, standing.new, standing.request)
        _say(f"{len(standing.new)} rows wait for the owner of {board} in {address}")
    return refused


def _rows_of_folders(
    api: "HfApi", folders: Sequence[str | Path], told: dict[str, Any]
) -> "tuple[list[Row], int]":
    """The rows that hold, and how many did not; the reasons are said."""
    from rmcl_hub.evaluation.robustness_record import read_record

    from .board_pull_request import check_weights
    from .leaderboard_rows import rows_of

    rows: dict[str, Row] = {}
    refused = 0
    for folder in folders:
        try:
            found = rows_of(folder, **told)
            if told["revision"] is not None:
                check_weights(api, told["model_repo"], told["revision"], read_record(folder))
        except (OSError, ValueError) as error:
            _say(f"{folder}: refused: {error}")
            refused += 1
            continue
        for name, reason in found.refused.items():
            _say(f"{folder}, {name}: refused: {reason}")
        refused += len(found.refused)
        for row in found.accepted:
            other = rows.setdefault(row["id"], row)
            if other["numbers"] != row["numbers"]:
                _say(f"{folder}, {row['threat']['name']}: refused: another folder gives it other numbers")
                refused += 1
    return list(rows.values()), refused


def _say_accepted(rows: "Sequence[Row]") -> None:
    for row in rows:
        _say(f"{_line(row)}: it would be a row")


def _say_standing(rows: "Sequence[Row]", standing: "Standing") -> int:
    """One line for each row; returns how many are refused."""
    for row in rows:
        if row["id"] in standing.refused:
            _say(f"{_line(row)}: refused: {standing.refused[row['id']]}")
        elif row["id"] in standing.known:
            _say(f"{_line(row)}: it stands {standing.known[row['id']]} already")
        else:
            _say(f"{_line(row)}: new")
    return len(standing.refused)


def _line(row: "Row") -> str:
    clean, robust = (row["numbers"][name]["value"] for name in ("clean_accuracy", "robust_accuracy"))
    return (
        f"row {row['id']} ({row['task']}, {row['threat']['name']}): clean {100 * clean:.1f} %, robust "
        f"{100 * robust:.1f} %, {row['verdict']}"
    )


def _say(line: str) -> None:
    from .hub_errors import clean

    sys.stdout.write(clean(line) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmcl-hub submit",
        description="Check an evaluation number by number, and open a pull request with its rows on a "
        "leaderboard, with the token of HF_TOKEN or of `hf auth login`.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="output folder of `rmcl-hub evaluate`"
    )
    parser.add_argument(
        "--model", required=True, metavar="USER/MODEL[@REVISION]", help="the evaluated model on the Hub"
    )
    parser.add_argument(
        "--board",
        metavar="USER/NAME",
        help="dataset repository of the leaderboard (default: rmcl-leaderboard of the model's user)",
    )
    parser.add_argument("--recipe", help="how the model was trained, in words")
    parser.add_argument("--dry-run", action="store_true", help="check and send nothing; needs no network")
    return parser
