"""`rmcl-hub vqa-answers`: a model's answers in the file that the evaluation server of VQA takes."""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

logger = logging.getLogger(__name__)


class AnswerEntry(TypedDict):
    """What the server reads about one question (visualqa.org/evaluation)."""

    question_id: int
    answer: str


def main(argv: list[str] | None = None) -> int:
    """Answer as the command line says; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from .evaluate_model import load_model

    try:
        questions = load_questions(arguments.data, arguments.split)
        model, processor = load_model(arguments.model, "vqa")
        entries = list(answer_questions(model, processor, questions, arguments.batch_size))
        write_answer_file(entries, questions["question_id"], arguments.output)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub vqa-answers: %s", error)
        return 2
    sys.stdout.write(f"{len(entries):,} answers: {arguments.output}\n")
    return 0


def load_questions(location: str, splits: Sequence[str]) -> Any:
    """All questions of some splits of a prepared VQA corpus, as one `datasets.Dataset`.

    Raises:
        ValueError: If the corpus is of another task, a split does not exist, questions come twice or were
            left out when it was prepared, or `test` is asked for without `test_dev`.
        FileNotFoundError: If nothing is prepared at the location.
    """
    import datasets

    from rmcl_hub.datasets_scripts.corpora import load_corpus
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

    prepared = PreparedCorpus(location)
    if prepared.manifest.task != "vqa":
        raise ValueError(
            f"{location} holds {prepared.manifest.corpus}, which has no questions; give a folder of vqav2."
        )
    if "test" in splits and "test_dev" not in splits:
        raise ValueError(
            "the server takes test-dev alone or the whole test; our split test is only the rest, so give "
            "--split test test_dev."
        )
    for split in splits:
        # Of a duplicated id, the question itself is there.
        dropped = prepared.split(split).dropped
        if lost := {reason: count for reason, count in dropped.items() if reason != "duplicate id"}:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
            raise ValueError(
                f"{location} lacks questions of {split} ({reasons}), and the server refuses a file without "
                "an answer to each; repair the published files and prepare the split again."
            )
    rows: Any = [load_corpus(location, split) for split in splits]
    questions = datasets.concatenate_datasets(rows)
    numbers = [_number(question_id) for question_id in questions["question_id"]]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"questions come twice in {', '.join(splits)} of {location}; name each split once.")
    return questions


def answer_questions(
    model: Any, processor: Any, questions: Any, batch_size: int = 32
) -> Iterator[AnswerEntry]:
    """The answer with the highest logit to each question; among equal ones the first.

    Args:
        model: A VQA head whose `config.id2label` names the answers; put into eval mode.
        processor: Its processor.
        questions: Rows with `image`, `question`, `question_id`, `answers` and `scores`, which may be empty.
        batch_size: Questions per forward.

    Raises:
        ValueError: If the model's answers have no names, or an id is no number.
        RuntimeError: If a picture cannot be read.
    """
    import torch
    from tqdm.auto import tqdm

    from .attack_loop import batches
    from .tasks import build_task
    from .victims import as_victim

    task = build_task("vqa", model, processor)
    victim = as_victim(model, processor)
    victim.module.eval()
    with tqdm(total=len(questions), desc="answer", unit="question") as progress:
        for rows, batch in batches(victim, questions, task.collate, batch_size):
            with torch.no_grad():
                best = victim.logits(batch["clean_embedding"], batch).argmax(dim=1).tolist()
            for row, index in zip(rows, best, strict=True):
                yield AnswerEntry(question_id=_number(row["question_id"]), answer=task.answers[int(index)])
            progress.update(len(rows))


def write_answer_file(entries: Sequence[AnswerEntry], question_ids: Iterable[str], path: Path) -> None:
    """Write the list of answers as JSON, at once or not at all.

    Args:
        entries: The answers.
        question_ids: All questions that need one.
        path: The file; an older one is replaced.

    Raises:
        ValueError: If a question has no answer or two, or an answer no question; nothing is written then.
        OSError: If the file cannot be written.
    """
    from .results import write_atomically

    answered = Counter(entry["question_id"] for entry in entries)
    asked = set(map(_number, question_ids))
    for what, numbers in (
        ("have two answers", {number for number, count in answered.items() if count > 1}),
        ("have no answer", asked - set(answered)),
        ("are not asked", set(answered) - asked),
    ):
        if numbers:
            raise ValueError(
                f"{len(numbers):,} questions {what}, such as {min(numbers)}; the server wants one "
                "answer to each question of its file."
            )
    write_atomically(path, json.dumps(list(entries), ensure_ascii=False))


def _number(question_id: str) -> int:
    if not question_id.isdecimal():
        raise ValueError(
            f"question id {question_id!r} is no number, so it is not one of VQAv2; give a corpus that "
            "`rmcl-hub data prepare vqav2` wrote."
        )
    return int(question_id)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmcl-hub vqa-answers", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of a VQA model with its processor")
    parser.add_argument(
        "--data",
        required=True,
        metavar="LOCATION",
        help="folder that `rmcl-hub data prepare vqav2` wrote, or hf://datasets/USER/NAME@COMMIT",
    )
    parser.add_argument(
        "--split", required=True, nargs="+", help="test_dev, or test test_dev for the whole test"
    )
    parser.add_argument("--output", required=True, type=Path, help="JSON file to upload")
    parser.add_argument("--batch-size", type=int, default=32)
    return parser
