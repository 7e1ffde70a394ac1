"""`rmcl-hub rescore`: score stored adversarial examples again, with this or another model."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Batch, frozen
from rmcl_hub.attacks.text_encoding import encode_texts
from rmcl_hub.attacks.threat_model import ThreatModel

from .adversarial_examples import read_adversarial
from .attack_loop import pixel_change
from .metrics import within_radius, words_changed
from .outcomes import Outcome
from .probes import right_answers_of
from .protocol_data import EMBEDDED, UNNAMED, check_same_protocol, load_protocol_data
from .provenance import model_digest
from .robustness import read_evaluation
from .robustness_record import read_record
from .tasks import Task, build_task
from .victims import Victim, as_victim

logger = logging.getLogger(__name__)

TOLERANCE = 0.005  # half a point, for arithmetic on another machine


@dataclass(frozen=True)
class Rescored:
    """What the stored examples of one threat model are worth.

    Attributes:
        threat: Its name.
        num_examples: Stored examples.
        reported: Robust accuracy in the record.
        rescored: The same, computed anew from the data set, the stored pixels and the stored texts.
        disagreements: Examples whose clean or attacked answer is right in one and wrong in the other.
        largest_change: Largest pixel change, recomputed in the norm of the threat model, of pixels in [0, 1].
        epsilon: What it allows.
        over_word_budget: Texts with more changed words than it allows.
    """

    threat: str
    num_examples: int
    reported: float
    rescored: float
    disagreements: int
    largest_change: float
    epsilon: float
    over_word_budget: int

    @property
    def holds(self) -> bool:
        """Whether the examples are within the threat model and the number is that of the record."""
        inside = within_radius(self.largest_change, self.epsilon) and self.over_word_budget == 0
        return inside and abs(self.rescored - self.reported) <= TOLERANCE


def rescore(
    folder: str | Path, model: Any, processor: Any, dataset: Any, task: Task | None = None
) -> list[Rescored]:
    """Score what `evaluate_robustness` stored in `folder`, trusting only pixels, texts and the data set.

    Args:
        folder: The `output_dir` of the evaluation.
        model: The evaluated model, or another one: then this measures transfer.
        processor: Its processor.
        dataset: Map-style rows that include the evaluated ones.
        task: A task of your own; the record's without one.

    Raises:
        FileNotFoundError: If the folder holds no evaluation or no adversarial examples.
        ValueError: If an evaluated example is not in the data set.
    """
    evaluation = read_evaluation(folder)
    record = evaluation.record
    task = task or build_task(record["task"], model, processor)
    victim = as_victim(model, processor, task.name)
    ids = {str(identity): index for index, identity in enumerate(dataset[task.columns.id])}
    found = []
    with frozen(victim.module):
        for name, entry in tqdm(record["threats"].items(), desc="rescore", unit="threat model"):
            rows = {row.id: row for row in evaluation.outcomes if row.attack == name}
            threat = ThreatModel.from_dict(entry["threat_model"])
            found.append(
                _rescore_threat(
                    name,
                    threat,
                    entry["numbers"]["overall"]["robust_accuracy"]["value"],
                    list(_batches(folder, name, rows, victim, task, dataset, ids)),
                    victim,
                )
            )
    return found


def _rescore_threat(
    name: str,
    threat: ThreatModel,
    reported: float,
    batches: Sequence[tuple[list[Outcome], Batch, Batch]],
    victim: Victim,
) -> Rescored:
    robust = disagreements = over_budget = total = 0
    largest = 0.0
    for rows, clean, attacked in batches:
        before, after = right_answers_of(victim, clean), right_answers_of(victim, attacked)
        robust += int((before & after).sum())
        total += len(rows)
        largest = max(largest, float(pixel_change(victim, clean, attacked, threat.norm or "linf").max()))
        for row, was_right, is_right in zip(rows, before.tolist(), after.tolist(), strict=True):
            disagreements += (row.clean_correct, row.adversarial_correct) != (was_right, is_right)
            over_budget += words_changed(row.text, row.adversarial_text) > threat.word_budget(row.text)
    epsilon = threat.epsilon or 0.0
    return Rescored(name, total, reported, robust / total, disagreements, largest, epsilon, over_budget)


def _batches(
    folder: str | Path,
    name: str,
    outcomes: dict[str, Outcome],
    victim: Victim,
    task: Task,
    dataset: Any,
    ids: dict[str, int],
) -> Iterator[tuple[list[Outcome], Batch, Batch]]:
    """Outcomes, clean batch (from the data set) and attacked batch (from the files) of every stored batch."""
    for stored_ids, pixels in read_adversarial(folder, name):
        missing = [identity for identity in stored_ids if identity not in ids or identity not in outcomes]
        if missing:
            raise ValueError(
                f"example {missing[0]!r} of {name!r} is not in the data set or the outcomes; pass the data "
                "set, and the split, that was evaluated."
            )
        rows = [outcomes[identity] for identity in stored_ids]
        clean = victim.on_device(task.collate([dataset[ids[identity]] for identity in stored_ids]))
        if clean["text"] != [row.text for row in rows] or clean["pixel_values"].shape != pixels.shape:
            raise ValueError(
                f"the data set's texts or pictures of {name!r} are not those that were evaluated; pass the "
                "same data set and processor."
            )
        attacked = {**clean, "pixel_values": pixels.to(victim.device)}
        if task.tokenizer is not None:
            texts = [row.adversarial_text for row in rows]
            attacked |= encode_texts(task.tokenizer, texts, task.max_text_length, clean)
        yield rows, clean, attacked


def _table(results: Sequence[Rescored]) -> Iterator[str]:
    yield "| threat model | examples | reported | rescored | disagreements | within the budget | holds |"
    yield "|---|---|---|---|---|---|---|"
    for row in results:
        yield (
            f"| {row.threat} | {row.num_examples} | {100 * row.reported:.1f} | {100 * row.rescored:.1f} | "
            f"{row.disagreements} | {255 * row.largest_change:.3f}/255 of {255 * row.epsilon:.3f}/255, "
            f"{row.over_word_budget} texts over the budget | {'yes' if row.holds else 'NO'} |"
        )


def _evaluated_rows(record: dict[str, Any], location: str | None) -> Any:
    """The rows that the record's protocol tests on.

    Raises:
        ValueError: If it names none, or the corpus at the location is another one.
    """
    entry = record["protocol"]
    if entry["name"] == UNNAMED["name"]:
        raise ValueError(
            "the record names no protocol, because a program passed the rows; call rescore() with them."
        )
    if entry["name"] == EMBEDDED:
        return load_protocol_data(record["task"], split=entry["splits"][0]).test
    data = load_protocol_data(record["task"], location or entry["location"], entry["name"])
    check_same_protocol(entry, data.entry)
    return data.test


def main(argv: list[str] | None = None) -> int:
    """Rescore as the command line says.

    Returns:
        0 if every number holds, 1 if one does not, 2 if it cannot be told.
    """
    parser = argparse.ArgumentParser(prog="rmcl-hub rescore", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of `rmcl-hub evaluate`")
    parser.add_argument("--model", required=True, help="folder or Hub id of the model")
    parser.add_argument("--data", help="where the evaluated corpus is now (default: where it was)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from .evaluate_model import load_model, task_rows

    try:
        record = read_record(arguments.folder)
        model, processor = load_model(arguments.model, record["task"])
        task = build_task(record["task"], model, processor)
        dataset = task_rows(task, _evaluated_rows(record, arguments.data))
        results = rescore(arguments.folder, model, processor, dataset, task)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub rescore: %s", error)
        return 2
    if model_digest(model) != record["model"]["digest"]:
        logger.warning("This is not the model that was evaluated: the figures below are transfer.")
    sys.stdout.write("\n".join(_table(results)) + "\n")
    return 0 if all(row.holds for row in results) else 1
