"""Fine-tune: `accelerate launch trainers/finetune.py recipes/<name>.yaml [--key value]`."""

import argparse
import logging
import sys
from typing import Any

from rmcl_hub.trainers.pretrain import load_data, writable_folder
from rmcl_hub.trainers.recipe import FinetuneRecipe, load_recipe

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse a recipe, build, train, save; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rmcl-hub finetune", description="Fine-tune a pre-trained encoder on a task."
    )
    parser.add_argument("recipe", help="YAML file, or the name of a packaged recipe")
    known, overrides = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trainer = finetune(load_recipe(FinetuneRecipe, known.recipe, overrides))
    logger.info("Saved to %s", trainer.args.output_dir)
    return 0


def finetune(recipe: FinetuneRecipe) -> Any:
    """Train a task head, alone (`freeze_encoder`) or with the encoder, and save it; returns the trainer.

    Raises:
        ValueError: If the task or a setting is not valid, or `init_from` is missing.
    """
    from transformers import AutoProcessor, TrainingArguments, set_seed

    from rmcl_hub.trainers.arguments import training_arguments
    from rmcl_hub.trainers.data_collators import without_text
    from rmcl_hub.trainers.guarded_trainer import GuardedTrainer

    if recipe.init_from is None:
        raise ValueError("init_from is missing: give the folder or hub id of a pre-trained encoder.")
    writable_folder(recipe.output_dir)
    args = training_arguments(TrainingArguments, recipe.output_dir, recipe.training)
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(recipe.init_from)
    collate = task_collator(recipe, processor)
    model = _build_model(recipe)
    dataset = load_data(recipe.data, seed=args.seed)
    trainer = GuardedTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=without_text(collate),
        optimizers=(_optimizer(model, recipe, args), None),
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a batch mean
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    processor.save_pretrained(recipe.output_dir)
    return trainer


def task_collator(recipe: FinetuneRecipe, processor: Any) -> Any:
    """Collator of the recipe's task, with `text` and `labels`."""
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers
    from rmcl_hub.trainers.data_collators import QuestionCollator, StatementCollator

    settings = {"max_text_length": recipe.data.max_text_length, "max_unreadable": recipe.data.max_unreadable}
    if recipe.task == "vqa":
        return QuestionCollator(processor, vqa_answers(), **settings)
    if recipe.task == "nlvr2":
        return StatementCollator(processor, **settings)
    raise ValueError(f"task must be 'vqa' or 'nlvr2', got {recipe.task!r}.")


def _build_model(recipe: FinetuneRecipe) -> Any:
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers
    from rmcl_hub.modeling_rmcl import RMCLViltForImagesAndTextClassification, RMCLViltForQuestionAnswering

    if recipe.task == "vqa":
        answers = vqa_answers()
        labels = {
            "id2label": dict(enumerate(answers)),
            "label2id": {name: i for i, name in enumerate(answers)},
        }
        model = RMCLViltForQuestionAnswering.from_pretrained(recipe.init_from, **labels)
    else:
        model = RMCLViltForImagesAndTextClassification.from_pretrained(
            recipe.init_from, num_images=2, modality_type_vocab_size=3, ignore_mismatched_sizes=True
        )
        _copy_modality_types(model, recipe.init_from)
    if recipe.freeze_encoder:
        model.vilt.requires_grad_(False)
    return model


def _copy_modality_types(model: Any, init_from: str) -> None:
    """The type of the second image starts as that of the first, as ViLT's authors do for NLVR2."""
    import torch

    from rmcl_hub.modeling_rmcl import RMCLViltModel

    pretrained = RMCLViltModel.from_pretrained(init_from).embeddings.token_type_embeddings.weight
    with torch.no_grad():
        model.vilt.embeddings.token_type_embeddings.weight.copy_(pretrained[[0, 1, 1]])


def load_finetuned(task: str, folder: Any) -> tuple[Any, Any]:
    """Model and processor that `finetune` saved."""
    from transformers import AutoProcessor

    from rmcl_hub.modeling_rmcl import RMCLViltForImagesAndTextClassification, RMCLViltForQuestionAnswering

    model_class = {"vqa": RMCLViltForQuestionAnswering, "nlvr2": RMCLViltForImagesAndTextClassification}[task]
    return model_class.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def _optimizer(model: Any, recipe: FinetuneRecipe, args: Any) -> Any:
    """AdamW with the head's own learning rate (ViLT's `lr_mult`); no weight decay on biases and norms."""
    import torch

    head_rate = recipe.head_learning_rate or args.learning_rate
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("vilt."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": args.learning_rate if encoder else head_rate,
                "weight_decay": args.weight_decay if decayed else 0.0,
            }
            for (encoder, decayed), parameters in groups.items()
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


if __name__ == "__main__":
    sys.exit(main())
