"""`rmcl-hub card`: write a saved model's card from the files that hold its measurements."""

import argparse
import logging
import sys
from pathlib import Path

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Write the card that the command line asks for; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from .model_card import write_card

    try:
        card = write_card(
            arguments.folder,
            results=arguments.results,
            model=arguments.arm,
            evaluations=arguments.evaluation,
            control=arguments.control,
            retrievals=arguments.retrieval,
            repo_id=arguments.repo_id,
        )
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub card: %s", error)
        return 2
    sys.stdout.write(f"{card}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmcl-hub card",
        description=f"{__doc__} Without such files the card is rendered again from those that it was "
        "rendered from before.",
    )
    parser.add_argument("folder", type=Path, help="folder of the saved model; the card is its README.md")
    parser.add_argument("--results", type=Path, help="results.json of an experiment, or its folder")
    parser.add_argument(
        "--arm", default="rmcl", help="which model of the experiment this is: rmcl (default) or control"
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="that `rmcl-hub evaluate` wrote about this model; repeatable",
    )
    parser.add_argument("--control", type=Path, metavar="FOLDER", help="the same evaluation of the control")
    parser.add_argument(
        "--retrieval",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="that `rmcl-hub retrieve` wrote about this model; repeatable",
    )
    parser.add_argument(
        "--repo-id",
        metavar="USER/NAME",
        help="where it will be on the Hub (default: as before, or the folder's name)",
    )
    return parser
