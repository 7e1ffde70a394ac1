"""`rmcl-hub data`: prepare corpora as shards, and check what is in them."""

import argparse
import logging
import sys

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run `prepare` or `check`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        lines = arguments.run(arguments)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub data %s: %s", arguments.command, error)
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _prepare(arguments: argparse.Namespace) -> list[str]:
    from .corpora import corpus_class
    from .prepare import prepare

    corpus = corpus_class(arguments.corpus)
    manifest = prepare(
        corpus,
        arguments.source,
        arguments.output_dir,
        arguments.splits,
        arguments.rows_per_shard,
        arguments.num_workers,
        arguments.unofficial,
    )
    lines = [
        "| split | rows | pictures | texts | documented (pictures, texts) | left out |",
        "|---|---|---|---|---|---|",
    ]
    for name, split in manifest.splits.items():
        size = corpus.documented.get(name)
        documented = f"{size.images:,}, {size.texts:,}" if size else "-"
        dropped = ", ".join(f"{count} {reason}" for reason, count in split.dropped.items()) or "none"
        lines.append(
            f"| {name} | {split.rows:,} | {split.images:,} | {split.texts:,} | {documented} | {dropped} |"
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmcl-hub data", description="Prepare corpora as shards, and check them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="turn the files that a corpus publishes into shards")
    prepare.add_argument("corpus", help="such as coco_captions")
    prepare.add_argument(
        "--source", required=True, help="folder of the published files, archives packed or unpacked"
    )
    prepare.add_argument(
        "--output-dir", required=True, help="where the shards go; an interrupted run goes on there"
    )
    prepare.add_argument("--splits", nargs="+", help="default: all whose annotations are there")
    prepare.add_argument("--rows-per-shard", type=int, default=1000)
    prepare.add_argument("--num-workers", type=int, help="processes (default: one per processor)")
    prepare.add_argument(
        "--unofficial", action="store_true", help="accept archives of another size or checksum than published"
    )
    prepare.set_defaults(run=_prepare)
    return parser
