"""Pre-train: `accelerate launch trainers/pretrain.py recipes/<name>.yaml [--key value]`."""

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rmcl_hub.trainers.recipe import AttackRecipe, DataRecipe, PretrainRecipe, recipe_from_command_line

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Pre-train as a recipe says; returns the exit code, 2 if a setting or path cannot work."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    description = "Pre-train ViLT, or make it robust by RMCL; MCL is the control."
    words = sys.argv[1:] if argv is None else argv
    if "--dry-run" in words:
        from rmcl_hub.trainers.dry_run import dry_run

        return dry_run(PretrainRecipe, "rmcl-hub pretrain", description, words)
    try:
        recipe = recipe_from_command_line(PretrainRecipe, "rmcl-hub pretrain", description, argv)
        from rmcl_hub.trainers.processes import ending_together, on_first_process

        with ending_together():
            pretrain(recipe)
            on_first_process(lambda: logger.info("Saved to %s", recipe.output_dir))
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub pretrain: %s", error)
        return 2
    return 0


def pretrain(recipe: PretrainRecipe) -> Any:
    """Run one pre-training stage and save model and processor into `recipe.output_dir`; returns the trainer.

    Raises:
        ValueError: If a setting does not fit the others.
        PermissionError: If `output_dir` cannot be written.
    """
    from transformers import set_seed

    from rmcl_hub.trainers.arguments import RMCLArguments, training_arguments
    from rmcl_hub.trainers.processing import build_processor

    writable_folder(recipe.output_dir)
    args = training_arguments(RMCLArguments, recipe.output_dir, recipe.training)
    set_seed(args.seed)
    processor = build_processor(recipe.init_from, recipe.image_size, recipe.model.get("patch_size", 32))
    model = _build_model(recipe, processor)
    check_text_length(recipe.data, model.config)
    trainer = _build_trainer(recipe, args, model, processor)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    return trainer


def _build_model(recipe: PretrainRecipe, processor: Any) -> Any:
    from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
    from rmcl_hub.trainers.processing import start_from_pretrained_words

    if recipe.init_from is not None:
        # ignore_mismatched_sizes: a projector of another kind or width starts anew
        return RMCLViltForPreTraining.from_pretrained(
            recipe.init_from, ignore_mismatched_sizes=True, **recipe.model
        )
    defaults = {
        "vocab_size": len(processor.tokenizer),
        "cls_token_id": processor.tokenizer.cls_token_id,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "image_size": recipe.image_size,
    }
    model = RMCLViltForPreTraining(RMCLViltConfig(**{**defaults, **recipe.model}))
    start_from_pretrained_words(cast(Any, model.get_input_embeddings()), processor.tokenizer)
    return model


def _build_trainer(recipe: PretrainRecipe, args: Any, model: Any, processor: Any) -> Any:
    from rmcl_hub.trainers.clean_views import PreparedView
    from rmcl_hub.trainers.guarded_trainer import GuardedTrainer
    from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

    common = {
        "model": model,
        "args": args,
        "recipe": recipe,
        "train_dataset": load_training_data(recipe.data, args),
        "data_collator": _build_collator(recipe, args, processor),
        "processing_class": processor,
    }
    if recipe.stage == "vilt":
        return GuardedTrainer(**common)
    attacks: Any = (PreparedView("image"), PreparedView("text"))
    if recipe.stage == "rmcl":
        attacks = build_attacks(recipe.attack, processor.tokenizer, recipe.data.max_text_length)
    return RMCLTrainer(**common, image_attack=attacks[0], text_attack=attacks[1])


def _build_collator(recipe: PretrainRecipe, args: Any, processor: Any) -> Any:
    from rmcl_hub.attacks.synonyms import SynonymTable
    from rmcl_hub.datasets_scripts.image_transforms import randaugment
    from rmcl_hub.datasets_scripts.task_collators import PairCollator
    from rmcl_hub.trainers.clean_views import CleanViewCollator
    from rmcl_hub.trainers.pretraining_collator import PretrainingCollator

    settings: dict[str, Any] = {
        "max_text_length": recipe.data.max_text_length,
        "max_unreadable": recipe.data.max_unreadable,
        "seed": args.seed,
        "transform": randaugment if recipe.data.augment else None,
    }
    objectives = recipe.objectives if recipe.stage == "vilt" or args.pretraining_weight else []
    if recipe.stage == "mcl":
        return CleanViewCollator(processor, SynonymTable.load(), args.views, objectives, **settings)
    if objectives:
        return PretrainingCollator(processor, objectives, **settings)
    return PairCollator(processor, **settings)


def build_attacks(recipe: AttackRecipe, tokenizer: Any, max_text_length: int) -> tuple[Any, Any]:
    """Image and text attack of a recipe; an empty section gives None for its modality."""
    from rmcl_hub.attacks.geometry import GeometryAttack
    from rmcl_hub.attacks.synonyms import SynonymTable

    text = None
    if recipe.text:
        settings = dict(recipe.text)
        vectors = settings.pop("vectors", None)
        synonyms = SynonymTable.from_vectors(vectors) if vectors else SynonymTable.load()
        text = GeometryAttack(tokenizer, synonyms, max_length=max_text_length, **settings)
    return recipe.image_attack(), text


def load_training_data(recipe: DataRecipe, args: Any, splits: Sequence[str] = ("train",)) -> Any:
    """As `load_data`, but prepared corpora come as a `MixtureStream` if the recipe streams.

    A stream of the embedded data is shuffled within a buffer, which `Trainer` does for other data.

    Raises:
        ValueError: If the last batches of the processes would differ in size.
    """
    if recipe.corpora and recipe.streaming:
        from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
        from rmcl_hub.datasets_scripts.shards import PreparedCorpus

        return MixtureStream(
            [
                MixturePart(PreparedCorpus(corpus.location), corpus.splits or splits, corpus.weight)
                for corpus in recipe.corpora.values()
            ],
            batch_size=args.train_batch_size,
            seed=args.seed,
            buffer_size=recipe.buffer_size,
            rank=args.process_index,
            world_size=args.world_size,
        )
    if recipe.streaming and args.world_size > 1 and not args.dataloader_drop_last:
        raise ValueError(
            "Streamed, the embedded data give processes different numbers of rows, so that their last "
            "batches cannot be gathered; set training.dataloader_drop_last true, or data.streaming false."
        )
    dataset = load_data(recipe, args.seed, splits)
    return dataset.shuffle(seed=args.seed, buffer_size=recipe.buffer_size) if recipe.streaming else dataset


def load_data(recipe: DataRecipe, seed: int = 0, splits: Sequence[str] = ("train",)) -> Any:
    """Dataset of a recipe; `max_examples` takes a seeded random subset, of a stream the first ones.

    Args:
        recipe: Prepared corpora, one after the other, or the embedded data.
        seed: Of the subset.
        splits: Of corpora for which the recipe names none; the embedded data has its `recipe.split`.
    """
    from datasets import Image, concatenate_datasets

    from rmcl_hub.datasets_scripts.corpora import load_corpus
    from rmcl_hub.datasets_scripts.openpairs import load_openpairs

    if recipe.corpora:
        dataset = concatenate_datasets(
            [
                cast(Any, load_corpus(corpus.location, split))
                for corpus in recipe.corpora.values()
                for split in corpus.splits or splits
            ]
        )
    else:
        dataset = cast(Any, load_openpairs(recipe.config, recipe.split, streaming=recipe.streaming))
    # the collator decodes, so that one broken picture does not end the run
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    if recipe.max_examples is None:
        return dataset
    if recipe.streaming:
        return dataset.take(recipe.max_examples)
    return dataset.shuffle(seed=seed).select(range(min(recipe.max_examples, len(dataset))))


def check_text_length(recipe: DataRecipe, config: Any) -> None:
    """Refuse texts longer than the encoder has positions for.

    Raises:
        ValueError: If they are.
    """
    if recipe.max_text_length > config.max_position_embeddings:
        raise ValueError(
            f"data.max_text_length is {recipe.max_text_length}, but the encoder has "
            f"{config.max_position_embeddings} text positions (max_position_embeddings); lower it."
        )


def writable_folder(folder: str | Path) -> Path:
    """Create the folder and prove that it can be written, before hours of work end in an error.

    Raises:
        PermissionError: If it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name of its own: other processes try at the same time
            pass
    except OSError as error:
        raise PermissionError(
            f"Cannot write to output_dir {folder}: {error}. Choose another with --output_dir."
        ) from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
