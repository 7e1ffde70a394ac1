"""`rmcl-hub retrieve`: Recall@K of a saved model both ways, over the galleries of a protocol."""

import argparse
import datetime
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmcl_hub.datasets_scripts.protocols import Gallery, Protocol

logger = logging.getLogger(__name__)

RETRIEVAL_FILE = "retrieval.json"
FORMAT = "rmcl-hub-retrieval/1"
PIXEL_ATTACK, WORD_ATTACK = "apgd-ce", "words-gradient"
"""What an attacker of one modality runs, by their names in `attack_suite`."""


def main(argv: list[str] | None = None) -> int:
    """Rank as the command line says; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        record = evaluate_protocol_retrieval(arguments)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub retrieve: %s", error)
        return 2
    sys.stdout.write("\n".join(table_lines(record)) + "\n")
    logger.info("Record: %s", arguments.output_dir / RETRIEVAL_FILE)
    return 0


def evaluate_protocol_retrieval(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank what the command line asks for, and write `retrieval.json`.

    Returns:
        JSON-ready: `protocol` (`protocol_data.ProtocolEntry`), `model`, `settings`, `numbers`
        (`galleries.GalleriesNumbers`), `attacked` (`robust_retrieval.RobustRetrievalNumbers`, None without a
        threat model), `seconds` in all, `code`.

    Raises:
        ValueError: If protocol, corpus, galleries, model or threat models do not fit.
        FileNotFoundError: If model or corpus are not there.
    """
    from .galleries import check_galleries, evaluate_galleries
    from .protocol_data import load_protocol_data
    from .provenance import code_revision, library_versions, model_digest
    from .results import write_atomically

    started = time.perf_counter()
    data = load_protocol_data("retrieval", arguments.data, arguments.protocol, arguments.split)
    galleries, name = choose_galleries(data.protocol, len(data.test), arguments.gallery)
    check_galleries(galleries, len(data.test))
    model, processor = load_retrieval_model(arguments.model, arguments.scorer)
    length = getattr(model.config, "max_position_embeddings", 40)
    attacks = _attacks(arguments, processor, length)
    numbers = evaluate_galleries(
        model,
        data.test,
        processor,
        galleries,
        scorer=arguments.scorer,
        batch_size=arguments.batch_size,
        max_text_length=length,
    )
    record = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "protocol": {
            **data.entry,
            "name": name,
            "galleries": [{"size": gallery.size, "count": gallery.count} for gallery in galleries],
        },
        "model": {
            "name": Path(arguments.model).name,
            "class": type(model).__name__,
            "digest": model_digest(model),
        },
        "settings": {
            "scorer": arguments.scorer,
            "batch_size": arguments.batch_size,
            "max_text_length": length,
            "effort": arguments.effort if attacks else None,
            "seed": arguments.seed,
        },
        "numbers": numbers,
        "attacked": _attacked(arguments, model, processor, data.test, galleries, attacks, length),
        "seconds": time.perf_counter() - started,
        "code": {"revision": code_revision(), "versions": library_versions()},
    }
    write_atomically(
        arguments.output_dir / RETRIEVAL_FILE, json.dumps(record, indent=1, allow_nan=False) + "\n"
    )
    return record


def choose_galleries(
    protocol: "Protocol", num_images: int, size: int | None
) -> tuple[tuple["Gallery", ...], str]:
    """The galleries to rank, and the name under which to record them.

    Args:
        protocol: Its own, or if it declares none all pictures.
        num_images: Pictures of its test splits.
        size: Only the one of that size; one that the protocol does not declare makes it `custom`.
    """
    from rmcl_hub.datasets_scripts.protocols import Gallery

    from .protocol_data import CUSTOM

    declared = protocol.galleries or (Gallery(num_images),)
    if size is None:
        return declared, protocol.name
    chosen = tuple(gallery for gallery in declared if gallery.size == size)
    return (chosen, protocol.name) if chosen else ((Gallery(size),), CUSTOM)


def load_retrieval_model(name: str, scorer: str) -> tuple[Any, Any]:
    """A model that scores pairs, with its processor, from a folder or the Hub, in eval mode.

    Raises:
        ValueError: If it was saved with another head, or has no embeddings of the single sides for `"dual"`.
        FileNotFoundError: If there is no such folder, and the name can be no Hub id.
    """
    from transformers import AutoConfig, AutoProcessor

    from rmcl_hub import modeling_rmcl

    from .evaluate_model import check_model_name, on_best_device

    check_model_name(name)
    config = AutoConfig.from_pretrained(name)
    heads = ("RMCLViltForImageAndTextRetrieval", "RMCLViltForPreTraining")
    saved = (config.architectures or ["no head"])[0]
    if saved not in heads:  # from_pretrained would give it a random head
        raise ValueError(
            f"{name} was saved as {saved}, which does not score pairs; give a model of {' or '.join(heads)}: "
            "`rmcl-hub finetune` makes one."
        )
    model = getattr(modeling_rmcl, saved).from_pretrained(name)
    if scorer == "dual" and not (saved == heads[1] and config.itc_weight > 0):
        raise ValueError(
            f"{name} embeds no single pictures and texts, so --scorer dual has nothing to compare; rank with "
            "--scorer cross, or pre-train with itc_weight above 0."
        )
    return on_best_device(model), AutoProcessor.from_pretrained(name)


def _attacks(arguments: argparse.Namespace, processor: Any, max_text_length: int) -> dict[str, Any]:
    """Threat model to the one attack that stands for it.

    Raises:
        ValueError: If a threat model is unknown or on both modalities, or the scorer is no cross-encoder.
    """
    from rmcl_hub.attacks.threat_model import ThreatModel

    from .attack_suite import EFFORTS, SuiteInputs, build_suite

    if arguments.threat and arguments.scorer != "cross":
        raise ValueError("--threat attacks scores of pairs; rank with --scorer cross.")
    if arguments.effort not in EFFORTS:
        raise ValueError(f"effort is {arguments.effort!r}; expected one of {', '.join(EFFORTS)}.")
    images = processor.image_processor
    inputs = SuiteInputs(
        processor.tokenizer, max_text_length, images.image_mean, images.image_std, arguments.seed
    )
    attacks = {}
    for name in arguments.threat:
        threat = ThreatModel.load(name)
        if threat.modality == "both":
            raise ValueError(
                f"threat model {name!r} is on both modalities, but one side of a pair is attacked; give its "
                "image and its text part as two --threat."
            )
        chosen = PIXEL_ATTACK if threat.modality == "image" else WORD_ATTACK
        attacks[name] = build_suite(threat, EFFORTS[arguments.effort], inputs)[chosen].attack
    return attacks


def _attacked(
    arguments: argparse.Namespace,
    model: Any,
    processor: Any,
    dataset: Any,
    galleries: "tuple[Gallery, ...]",
    attacks: dict[str, Any],
    max_text_length: int,
) -> Any:
    """Robust recall in the smallest gallery, of several equal ones in the first; None without attacks."""
    from .galleries import fixed_order
    from .robust_retrieval import evaluate_robust_retrieval

    if not attacks:
        return None
    size = min(gallery.size for gallery in galleries)
    return evaluate_robust_retrieval(
        model,
        dataset.select(fixed_order(dataset["image_id"])[:size]),
        processor,
        attacks,
        side=arguments.side,
        batch_size=arguments.batch_size,
        max_text_length=max_text_length,
        num_queries=arguments.max_queries,
        seed=arguments.seed,
    )


def table_lines(record: dict[str, Any]) -> Iterator[str]:
    """The protocol, and Markdown tables of clean and attacked recall, every one beside its gallery's size."""
    from .protocol_data import protocol_lines

    numbers = record["numbers"]
    yield from protocol_lines("retrieval", record["protocol"])
    yield f"{numbers['scorer']} scorer, {numbers['forwards']:,} forwards, {record['seconds']:.0f} s in all"
    yield ""
    yield "| direction | gallery | queries | R@1 [95 %] | R@5 | R@10 | R@1 by chance |"
    yield "|---|---|---|---|---|---|---|"
    for gallery in numbers["galleries"]:
        times = f"{gallery['count']} x " if gallery["count"] > 1 else ""
        for direction, items in (("text_to_image", "pictures"), ("image_to_text", "texts")):
            found = gallery[direction]
            yield (
                f"| {direction.replace('_', ' ')} | {times}{found['gallery_size']:,} {items} | "
                f"{found['num_queries']:,} | {_recalls(found['recall'])} | "
                f"{100 * found['recall']['1']['chance']:.2f} |"
            )
    if record["attacked"] is not None:
        yield from _attacked_lines(record["attacked"])


def _attacked_lines(attacked: dict[str, Any]) -> Iterator[str]:
    size = f"{attacked['gallery']['num_images']:,} pictures and {attacked['gallery']['num_texts']:,} texts"
    yield f"\n{attacked['side']} attacked, gallery of {size}"
    yield "\n| direction | threat model | gallery | queries | R@1 [95 %] | R@5 | R@10 |"
    yield "|---|---|---|---|---|---|---|"
    for direction, numbers in attacked["directions"].items():
        where = f"{numbers['gallery_size']:,} | {numbers['num_queries']:,}"
        name = direction.replace("_", " ")
        yield f"| {name} | none | {where} | {_recalls(numbers['recall'])} |"
        for threat, found in numbers["attacks"].items():
            yield f"| {name} | {threat} | {where} | {_recalls(found['recall'])} |"


def _recalls(recall: dict[str, Any]) -> str:
    """Three cells; a cut-off that the gallery does not have is left out."""
    first = recall["1"]
    cells = [f"{100 * first['value']:.1f} [{100 * first['low']:.1f}, {100 * first['high']:.1f}]"]
    cells += [f"{100 * recall[k]['value']:.1f}" if k in recall else "n/a" for k in ("5", "10")]
    return " | ".join(cells)


def _parser() -> argparse.ArgumentParser:
    from .evaluate_model import add_data_arguments

    parser = argparse.ArgumentParser(prog="rmcl-hub retrieve", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model with its processor")
    add_data_arguments(parser)
    parser.add_argument(
        "--gallery",
        type=int,
        metavar="N",
        help="rank N pictures only; a size that the protocol does not declare is recorded as custom",
    )
    parser.add_argument(
        "--scorer",
        choices=("cross", "dual"),
        default="cross",
        help="cross (default) sends every pair through",
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--threat", action="append", default=[], help="also attack, on pixels or words; repeatable"
    )
    parser.add_argument("--side", choices=("query", "gallery"), default="query", help="what is attacked")
    parser.add_argument("--max-queries", type=int, help="attack this many random queries (default: all)")
    parser.add_argument(
        "--effort", default="standard", help="quick, standard (default) or full, which is AutoAttack's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/retrieval"))
    return parser
