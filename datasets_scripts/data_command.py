"""`rmcl-hub data`: prepare corpora as shards, and check what is in them."""

import argparse
import logging
import sys

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run `prepare` or `check`.

    Args:
        argv: The words after `rmcl-hub data`; those of the process if None.

    Returns:
        0; 1 if `check` found something wrong; 2 if the command could not run; 130 if it was interrupted.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        lines, status = arguments.run(arguments)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub data %s: %s", arguments.command, error)
        return 2
    except KeyboardInterrupt:
        logger.error("Interrupted. The same command goes on where it was: finished shards are kept.")
        return 130
    sys.stdout.write("\n".join(lines) + "\n")
    return status


def _prepare(arguments: argparse.Namespace) -> tuple[list[str], int]:
    from .dataset_card import split_table
    from .prepare import prepare

    manifest = prepare(
        arguments.corpus,
        arguments.source,
        arguments.output_dir,
        arguments.splits,
        arguments.rows_per_shard,
        arguments.num_workers,
        arguments.unofficial,
        arguments.format,
    )
    return split_table(arguments.corpus, manifest), 0


def _check(arguments: argparse.Namespace) -> tuple[list[str], int]:
    from .check import check, describe_check

    report = check(arguments.locations, arguments.tokenizer, arguments.num_workers)
    return describe_check(report), 0 if report.passed else 1


def _corpus(name: str) -> type:
    from .corpora import corpus_class

    try:
        return corpus_class(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmcl-hub data", description="Prepare corpora as shards, and check them."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    prepare = commands.add_parser("prepare", help="turn the files that a corpus publishes into shards")
    prepare.add_argument("corpus", type=_corpus, help="such as coco_captions")
    prepare.add_argument(
        "--source", required=True, help="folder of the published files, archives packed or unpacked"
    )
    prepare.add_argument(
        "--output-dir", required=True, help="where the shards go; an interrupted run goes on there"
    )
    prepare.add_argument("--splits", nargs="+", help="default: all whose annotations and pictures are there")
    prepare.add_argument("--format", choices=("parquet", "webdataset"), default="parquet")
    prepare.add_argument("--rows-per-shard", type=_positive, default=1000)
    prepare.add_argument(
        "--unofficial", action="store_true", help="accept archives of another size or checksum than published"
    )
    prepare.set_defaults(run=_prepare)
    check = commands.add_parser("check", help="count, decode and compare what prepared corpora hold")
    check.add_argument(
        "locations", nargs="+", metavar="LOCATION", help="folder, or hf://datasets/<user>/<name>@<commit>"
    )
    check.add_argument(
        "--tokenizer", help="folder of one for the lengths of texts (default: our own word pieces)"
    )
    check.set_defaults(run=_check)
    for command in (prepare, check):
        command.add_argument("--num-workers", type=_positive, help="processes (default: one per processor)")
    return parser
