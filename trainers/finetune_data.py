"""What a fine-tuning reads: the splits that its protocol names, and the collators of its task."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from .pretrain import load_data
from .recipe import FINETUNING_DATA, FinetuneRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneData:
    """Where the rows of a fine-tuning are.

    Attributes:
        corpus: A `PreparedCorpus`; None: the embedded set.
        train: Splits that the weights are fitted to.
        validation: Splits that choose the checkpoint.
        answers: Of VQA, in the order of the logits; empty for other tasks.
    """

    corpus: Any
    train: tuple[str, ...]
    validation: tuple[str, ...]
    answers: Sequence[str] = ()


def find_data(recipe: FinetuneRecipe) -> FinetuneData:
    """Find the rows of a recipe, and refuse early what does not fit its task.

    Raises:
        ValueError: If the corpus is of another task, has no such protocol, or lacks one of its splits.
        FileNotFoundError: If nothing is prepared at the location, or VQA's answers are missing.
    """
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers
    from rmcl_hub.datasets_scripts.protocols import find_protocol
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

    if not recipe.data.corpora:
        answers = vqa_answers() if recipe.task == "vqa" else []
        return FinetuneData(None, (recipe.data.split,), ("validation",), answers)
    (entry,) = recipe.data.corpora.values()
    corpus = PreparedCorpus(entry.location)
    name, task = corpus.manifest.corpus, corpus.manifest.task
    if task != (FINETUNING_DATA[recipe.task] or recipe.task):
        raise ValueError(
            f"Task {recipe.task!r} does not fit {entry.location}, which holds {name}, a corpus of {task!r} "
            "rows; give a corpus of the task, or another task."
        )
    protocol = find_protocol(str(recipe.protocol), name)
    for split in (*protocol.train, *protocol.validation):
        corpus.split(split)  # says which one is missing
    if protocol.contamination:
        logger.warning("Protocol %s of %s: %s.", protocol.name, name, protocol.contamination)
    answers = read_answers(corpus) if recipe.task == "vqa" else []
    return FinetuneData(corpus, protocol.train, protocol.validation, answers)


def read_answers(corpus: Any) -> list[str]:
    """The answers that VQA chooses among, a list beside the manifest of the prepared corpus.

    Raises:
        FileNotFoundError: If they are not there.
    """
    import fsspec

    from rmcl_hub.datasets_scripts.vqav2 import ANSWERS_FILE

    address = f"{corpus.location}/{ANSWERS_FILE}"
    try:
        with fsspec.open(address, "rt", encoding="utf-8") as stream:
            return json.load(cast(Any, stream))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{address} is missing: the answers that VQA chooses among. Run `rmcl-hub data prepare "
            "vqav2` again with the annotations of train and val; finished shards are kept."
        ) from error


def validation_rows(recipe: FinetuneRecipe, data: FinetuneData) -> Any:
    """Map-style rows that choose the checkpoint; a subset of them is the same for all seeds."""
    (split, *_) = data.validation
    wanted = replace(recipe.data, split=split, streaming=False, max_examples=recipe.max_validation_examples)
    return load_data(wanted, splits=data.validation)


def task_collators(recipe: FinetuneRecipe, data: FinetuneData, processor: Any, seed: int) -> tuple[Any, Any]:
    """Collators of training and of validation rows, which draw nothing."""
    from rmcl_hub.datasets_scripts.image_transforms import randaugment
    from rmcl_hub.datasets_scripts.retrieval_collator import RetrievalCollator
    from rmcl_hub.datasets_scripts.task_collators import (
        EntailmentCollator,
        QuestionCollator,
        StatementCollator,
    )

    training: dict[str, Any] = {
        "max_text_length": recipe.data.max_text_length,
        "max_unreadable": recipe.data.max_unreadable,
        "seed": seed,
        "transform": randaugment if recipe.data.augment else None,
    }
    validation = {**training, "draw_caption": False, "seed": 0, "transform": None}
    if recipe.task == "vqa":
        training["answers"] = validation["answers"] = data.answers
    if recipe.task == "retrieval":
        training["num_negatives"] = validation["num_negatives"] = recipe.num_negatives
        training["captions"] = _captions(data.train, data)
        validation["captions"] = _captions(data.validation, data)
    collator: Any = {
        "vqa": QuestionCollator,
        "nlvr2": StatementCollator,
        "snli_ve": EntailmentCollator,
        "retrieval": RetrievalCollator,
    }[recipe.task]
    return collator(processor, **training), collator(processor, **validation)


def _captions(splits: tuple[str, ...], data: FinetuneData) -> Any:
    """All captions of the splits, also of rows that `max_examples` leaves out."""
    from rmcl_hub.datasets_scripts.openpairs import load_openpairs
    from rmcl_hub.datasets_scripts.retrieval_collator import caption_table, read_captions

    if data.corpus is not None:
        return read_captions(data.corpus, splits)
    (split,) = splits
    rows = load_openpairs("captions", split).select_columns(["image_id", "captions"])
    return caption_table(rows.with_format("arrow")[:])
