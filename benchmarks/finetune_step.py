"""What a step of fine-tuning costs, clean and adversarial, beside the encoder passes that it is made of.

    OMP_NUM_THREADS=1 python benchmarks/finetune_step.py --json finetune_step.json

`FinetuneTrainer` on question answering with the 3,129 answers of VQA v2: clean, with PGD on pixels, and with
the geometry attack on words. Rows through the encoder are counted at it, and the lower bound is these counts
times the units F, B_in and B, measured in the same process in turns with everything else; see `passes.py`.
The optimiser's step is not in it.
"""

import argparse
import sys
import tempfile
from typing import Any

import torch
from pairs import (
    add_size_options,
    build_batch,
    build_config,
    build_synonyms,
    build_tokenizer,
    thesis_pgd,
    write_texts,
)
from passes import against_bound, bound_table, unit_runs
from timing import argument_parser, circumstances, show
from transformers import TrainingArguments

from rmcl_hub.attacks import GeometryAttack
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering
from rmcl_hub.trainers.arguments import training_arguments
from rmcl_hub.trainers.finetune_trainer import FinetuneTrainer

NUM_ANSWERS = 3129


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    arguments = parser.parse_args(argv)
    names = ("batch", "words", "image_size", "layers", "repetitions")
    record = {
        **circumstances(),
        "setting": {name: getattr(arguments, name) for name in names},
        "steps": measure(arguments),
    }
    show(record, bound_table("fine-tuning", record["steps"]), arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    torch.manual_seed(0)
    model = RMCLViltForQuestionAnswering(build_config(arguments, num_labels=NUM_ANSWERS))
    tokenizer = build_tokenizer()
    texts = write_texts(tokenizer, arguments.batch, arguments.words)
    batch = build_batch(tokenizer, texts, arguments.image_size)
    batch["labels"] = torch.zeros(arguments.batch, NUM_ANSWERS)
    batch["labels"][:, 0] = 1
    attacks: dict[str, dict[str, Any]] = {
        "clean": {},
        "PGD-5": {"image_attack": thesis_pgd()},
        "geometry": {"text_attack": GeometryAttack(tokenizer, build_synonyms(tokenizer, texts))},
    }
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(model, folder, **given) for name, given in attacks.items()}
        runs = {name: lambda trainer=trainer: step(trainer, batch) for name, trainer in trainers.items()}
        return against_bound(model, unit_runs(model, batch), runs, arguments.repetitions)


def step(trainer: FinetuneTrainer, batch: dict[str, Any]) -> None:
    """One step without the optimiser's."""
    model: Any = trainer.model
    model.zero_grad(set_to_none=True)
    trainer.training_step(model, batch)


def _trainer(model: Any, folder: str, **attack: Any) -> FinetuneTrainer:
    args = training_arguments(TrainingArguments, folder, {"use_cpu": True, "disable_tqdm": True})
    trainer = FinetuneTrainer(model=model, args=args, **attack)
    trainer.current_gradient_accumulation_steps = 1  # `Trainer.train` sets it
    return trainer


if __name__ == "__main__":
    sys.exit(main())
