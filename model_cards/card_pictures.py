"""Attacked pairs of the results files as picture files that a card shows."""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from .card_sources import CardSources, ResultsFile

MAX_PAIRS = 4
PICTURES = {"clean": "clean_picture", "perturbation": "perturbation", "attacked": "attacked_picture"}
_PREFIX = "data:image/png;base64,"


@dataclass(frozen=True)
class AttackedPairFiles:
    """One attacked pair.

    Attributes:
        threat: The threat model, or the attack of an experiment.
        pictures: "clean", "perturbation" and "attacked" to the file's path in the repository; none where only
            words changed.
        contents: Path to the PNG file.
        text: The text.
        adversarial_text: The attacked text.
        answers: The right answer, the one before and the one under attack, in words.
        change: Largest change of a pixel, of pixels in [0, 1].
    """

    threat: str
    pictures: dict[str, str]
    contents: dict[str, bytes]
    text: str
    adversarial_text: str
    answers: tuple[str, str, str]
    change: float


def attacked_pairs(sources: CardSources) -> list[AttackedPairFiles]:
    """The first pair of every threat model of the evaluations, or if there are none of every attack of the
    experiment.

    The first ones are the first initially right examples, fooled or not: none is picked for its effect.
    """
    audited = [pair for file in sources.of("evaluation") for pair in _of_evaluation(file)]
    shown = audited or [
        pair for file in sources.of("results") for pair in _of_experiment(file, sources.model)
    ]
    return shown[:MAX_PAIRS]


def _of_evaluation(file: ResultsFile) -> Iterator[AttackedPairFiles]:
    for name, threat in file.get("threats").items():
        for index, pair in enumerate(threat["pairs"][:1]):
            change = file.get("threats", name, "pairs", index, "delta_linf")
            yield _pair_files(file, pair, name, file.get("answers"), change)


def _of_experiment(file: ResultsFile, model: str) -> Iterator[AttackedPairFiles]:
    """Of the last protocol, which is that of the published head; attacks that count on their own."""
    compared = {row["attack"] for row in file.get("comparisons")}
    examples = [
        (index, example)
        for index, example in enumerate(file.get("examples"))
        if example["model"] == model and example["attack"] in compared
    ]
    last = {(example["task"], example["protocol"]) for _, example in examples[-1:]}
    shown = set()
    for index, example in examples:
        if (example["task"], example["protocol"]) in last and example["attack"] not in shown:
            shown.add(example["attack"])
            change = file.get("examples", index, "delta_linf")
            yield _pair_files(file, example, example["attack"], example["answers"], change)


def _pair_files(
    file: ResultsFile, pair: Mapping[str, Any], threat: str, answers: Sequence[str], change: float
) -> AttackedPairFiles:
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{PurePosixPath(file.name).stem}-{threat}")
    paths = {kind: f"assets/{stem}-{kind}.png" for kind in PICTURES} if change else {}
    indices: list[int] = [pair[key] for key in ("label", "clean_prediction", "adversarial_prediction")]
    right, before, after = (answers[index] if index < len(answers) else f"no. {index}" for index in indices)
    return AttackedPairFiles(
        threat=threat,
        pictures=paths,
        contents={
            path: b64decode(pair[PICTURES[kind]].removeprefix(_PREFIX), validate=True)
            for kind, path in paths.items()
        },
        text=pair["text"],
        adversarial_text=pair["adversarial_text"],
        answers=(right, before, after),
        change=change,
    )
