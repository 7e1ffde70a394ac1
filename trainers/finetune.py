"""Fine-tune: `accelerate launch trainers/finetune.py recipes/<name>.yaml [--key value]`."""

import logging
import sys
from typing import Any

from rmcl_hub.trainers.pretrain import check_text_length, load_training_data, writable_folder
from rmcl_hub.trainers.recipe import FinetuneRecipe, recipe_from_command_line

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Fine-tune as a recipe says; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    description = "Train a task head on a pre-trained encoder."
    trainer = finetune(recipe_from_command_line(FinetuneRecipe, "rmcl-hub finetune", description, argv))
    logger.info("Saved to %s", trainer.args.output_dir)
    return 0


def finetune(recipe: FinetuneRecipe) -> Any:
    """Train a task head, alone (`freeze_encoder`) or with the encoder, and save it; returns the trainer.

    Raises:
        ValueError: If `init_from` is missing or the texts are longer than the encoder reads.
        PermissionError: If `output_dir` cannot be written.
    """
    from transformers import AutoProcessor, TrainingArguments, set_seed

    from rmcl_hub.trainers.arguments import training_arguments
    from rmcl_hub.trainers.guarded_trainer import GuardedTrainer

    if recipe.init_from is None:
        raise ValueError("init_from is missing: give the folder or hub id of a pre-trained encoder.")
    writable_folder(recipe.output_dir)
    args = training_arguments(TrainingArguments, recipe.output_dir, recipe.training)
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(recipe.init_from)
    model = _build_model(recipe)
    check_text_length(recipe.data, model.config)
    trainer = GuardedTrainer(
        model=model,
        args=args,
        train_dataset=load_training_data(recipe.data, args.seed),
        data_collator=task_collator(recipe, processor),
        processing_class=processor,
        optimizers=(_optimizer(model, recipe, args), None),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    return trainer


def task_collator(recipe: FinetuneRecipe, processor: Any) -> Any:
    """Collator of the recipe's task, with `text` and `labels`."""
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers
    from rmcl_hub.datasets_scripts.task_collators import QuestionCollator, StatementCollator

    settings: dict[str, Any] = {
        "max_text_length": recipe.data.max_text_length,
        "max_unreadable": recipe.data.max_unreadable,
    }
    if recipe.task == "vqa":
        return QuestionCollator(processor, vqa_answers(), **settings)
    return StatementCollator(processor, **settings)


def load_finetuned(task: str, folder: Any) -> tuple[Any, Any]:
    """Model and processor that `finetune` saved."""
    from transformers import AutoProcessor

    return _model_class(task).from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def _model_class(task: str) -> Any:
    from rmcl_hub.modeling_rmcl import RMCLViltForImagesAndTextClassification, RMCLViltForQuestionAnswering

    return {"vqa": RMCLViltForQuestionAnswering, "nlvr2": RMCLViltForImagesAndTextClassification}[task]


def _build_model(recipe: FinetuneRecipe) -> Any:
    from rmcl_hub.datasets_scripts.openpairs import vqa_answers

    model_class = _model_class(recipe.task)
    if recipe.task == "vqa":
        answers = dict(enumerate(vqa_answers()))
        ids = {name: index for index, name in answers.items()}
        model = model_class.from_pretrained(
            recipe.init_from, id2label=answers, label2id=ids, problem_type=recipe.problem_type
        )
    else:
        model = model_class.from_pretrained(
            recipe.init_from, num_images=2, modality_type_vocab_size=3, ignore_mismatched_sizes=True
        )
        _copy_modality_types(model, recipe.init_from)
    if recipe.freeze_encoder:
        model.vilt.requires_grad_(False)
    return model


def _copy_modality_types(model: Any, init_from: str | None) -> None:
    """The type of the second image starts as that of the first, as ViLT's authors do for NLVR2."""
    import torch

    from rmcl_hub.modeling_rmcl import RMCLViltModel

    types = RMCLViltModel.from_pretrained(init_from).embeddings.token_type_embeddings.weight
    if len(types) == 2:  # a checkpoint of this very task has its three types already
        with torch.no_grad():
            model.vilt.embeddings.token_type_embeddings.weight.copy_(types[[0, 1, 1]])


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
