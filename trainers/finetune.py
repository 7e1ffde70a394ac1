"""Fine-tune: `accelerate launch trainers/finetune.py recipes/<name>.yaml [--key value]`."""

import logging
import sys
from functools import partial
from typing import Any

from rmcl_hub.trainers.pretrain import build_attacks, check_text_length, load_training_data, writable_folder
from rmcl_hub.trainers.recipe import FinetuneRecipe, recipe_from_command_line

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Fine-tune as a recipe says; returns the exit code, 2 if a setting or path cannot work."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    description = "Train a task head on a pre-trained encoder."
    words = sys.argv[1:] if argv is None else argv
    if "--dry-run" in words:
        from rmcl_hub.trainers.dry_run import dry_run

        return dry_run(FinetuneRecipe, "rmcl-hub finetune", description, words)
    try:
        recipe = recipe_from_command_line(FinetuneRecipe, "rmcl-hub finetune", description, argv)
        from rmcl_hub.trainers.processes import ending_together, on_first_process

        with ending_together():
            finetune(recipe)
            on_first_process(lambda: logger.info("Saved to %s", recipe.output_dir))
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub finetune: %s", error)
        return 2
    return 0


def finetune(recipe: FinetuneRecipe) -> Any:
    """Train a task head, alone (`freeze_encoder`) or with the encoder, and save it; returns the trainer.

    Of prepared corpora the checkpoint with the best validation accuracy is saved, otherwise the last one,
    unless `training.eval_strategy` says when to validate.

    Raises:
        ValueError: If `init_from` is missing, the texts are longer than the encoder reads, or the data does
            not fit the task.
        FileNotFoundError: If the data is not there.
        PermissionError: If `output_dir` cannot be written.
    """
    from transformers import set_seed

    from rmcl_hub.trainers.arguments import GuardedArguments, training_arguments
    from rmcl_hub.trainers.finetune_data import find_data, task_collators, validation_rows
    from rmcl_hub.trainers.finetune_trainer import FinetuneTrainer
    from rmcl_hub.trainers.processing import load_processor
    from rmcl_hub.trainers.task_metrics import TaskAccuracy

    if recipe.init_from is None:
        raise ValueError("init_from is missing: give the folder or hub id of a pre-trained encoder.")
    writable_folder(recipe.output_dir)
    args = training_arguments(GuardedArguments, recipe.output_dir, with_selection(recipe))
    set_seed(args.seed)
    data = find_data(recipe)
    processor = load_processor(recipe.init_from)
    model = _build_model(recipe, data.answers)
    check_text_length(recipe.data, model.config)
    collator, eval_collator = task_collators(recipe, data, processor, args.seed)
    image_attack, text_attack = build_attacks(recipe.attack, processor.tokenizer, recipe.data.max_text_length)
    trainer = FinetuneTrainer(
        model=model,
        args=args,
        recipe=recipe,
        train_dataset=load_training_data(recipe.data, args, data.train),
        eval_dataset=None if args.eval_strategy == "no" else validation_rows(recipe, data),
        data_collator=collator,
        eval_collator=eval_collator,
        compute_metrics=TaskAccuracy(),
        processing_class=processor,
        optimizers=(_optimizer(model, recipe, args), None),
        image_attack=image_attack,
        text_attack=text_attack,
        adversarial_weight=recipe.adversarial_weight,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    return trainer


def with_selection(recipe: FinetuneRecipe) -> dict[str, Any]:
    """The recipe's training section over the defaults that keep the best checkpoint by validation."""
    given = {**recipe.training, "batch_eval_metrics": True}  # accuracy adds up; no logits are kept
    strategy = given.setdefault("eval_strategy", "epoch" if recipe.data.corpora else "no")
    if strategy == "no":
        return given
    selection = {
        "save_strategy": strategy,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "save_total_limit": 1,  # the best, and during training the last
        "per_device_eval_batch_size": given.get("per_device_train_batch_size", 8),
    }
    if "eval_steps" in given:
        selection["save_steps"] = given["eval_steps"]
    return {**selection, **given}


def load_finetuned(task: str, folder: Any) -> tuple[Any, Any]:
    """Model and processor that `finetune` saved."""
    from rmcl_hub.trainers.processing import load_processor

    return model_class(task).from_pretrained(folder), load_processor(folder)


def model_class(task: str) -> Any:
    """The model with a task's head."""
    from rmcl_hub.modeling_rmcl import (
        RMCLViltForImageAndTextRetrieval,
        RMCLViltForImagesAndTextClassification,
        RMCLViltForQuestionAnswering,
    )

    return {
        "vqa": RMCLViltForQuestionAnswering,
        "nlvr2": RMCLViltForImagesAndTextClassification,
        "snli_ve": RMCLViltForImagesAndTextClassification,
        "retrieval": RMCLViltForImageAndTextRetrieval,
    }[task]


def _build_model(recipe: FinetuneRecipe, answers: Any) -> Any:
    from rmcl_hub.datasets_scripts.schema import ENTAILMENT_LABELS

    load = partial(model_class(recipe.task).from_pretrained, **recipe.model)
    if recipe.task == "vqa":
        model = load(recipe.init_from, **_class_names(answers), problem_type=recipe.problem_type)
    elif recipe.task == "snli_ve":
        model = load(recipe.init_from, **_class_names(ENTAILMENT_LABELS), num_images=1)
    elif recipe.task == "nlvr2":
        model = load(recipe.init_from, num_images=2, modality_type_vocab_size=3, ignore_mismatched_sizes=True)
        _copy_modality_types(model, recipe.init_from)
    else:
        model, info = load(recipe.init_from, output_loading_info=True)
        if "rank_output.weight" in info["missing_keys"]:
            _start_from_matching_head(model, recipe.init_from)
    if recipe.freeze_encoder:
        model.vilt.requires_grad_(False)
    return model


def _class_names(names: Any) -> dict[str, Any]:
    labels = dict(enumerate(names))
    return {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}


def _start_from_matching_head(model: Any, init_from: str | None) -> None:
    """Rank by the true-pair logit of image-text matching, if the checkpoint has learned one."""
    from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

    pretrained, info = RMCLViltForPreTraining.from_pretrained(init_from, output_loading_info=True)
    if "itm_score.weight" in info["missing_keys"]:
        logger.warning(
            "%s has no image-text matching head (itm_score), so the ranking starts anew and needs longer; "
            "pre-train with the objective itm to have one.",
            init_from,
        )
    else:
        model.copy_itm_head(pretrained.itm_score)


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
