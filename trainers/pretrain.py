"""Pre-train: `accelerate launch trainers/pretrain.py recipes/<name>.yaml [--key value]`."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from rmcl_hub.trainers.recipe import AttackRecipe, DataRecipe, PretrainRecipe, load_recipe

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse a recipe, build, train, save; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rmcl-hub pretrain", description="Pre-train ViLT, or make it robust by RMCL."
    )
    parser.add_argument("recipe", help="YAML file, or the name of a packaged recipe")
    known, overrides = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trainer = pretrain(load_recipe(PretrainRecipe, known.recipe, overrides))
    logger.info("Saved to %s", trainer.args.output_dir)
    return 0


def pretrain(recipe: PretrainRecipe) -> Any:
    """Run one pre-training stage and save model and processor into `recipe.output_dir`; returns the trainer.

    Raises:
        ValueError: If the stage or a setting is not valid.
    """
    from transformers import set_seed

    from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
    from rmcl_hub.trainers.arguments import RMCLArguments, training_arguments
    from rmcl_hub.trainers.processing import build_processor, start_from_pretrained_words

    if recipe.stage not in ("vilt", "rmcl"):
        raise ValueError(f"stage must be 'vilt' or 'rmcl', got {recipe.stage!r}.")
    writable_folder(recipe.output_dir)
    args = training_arguments(RMCLArguments, recipe.output_dir, recipe.training)
    set_seed(args.seed)
    processor = build_processor(recipe.init_from, recipe.image_size, recipe.model.get("patch_size", 32))
    if recipe.init_from is None:
        config = RMCLViltConfig(
            **{
                "vocab_size": len(processor.tokenizer),
                "cls_token_id": processor.tokenizer.cls_token_id,
                "image_size": recipe.image_size,
                **recipe.model,
            }
        )
        model = RMCLViltForPreTraining(config)
        start_from_pretrained_words(model.get_input_embeddings(), processor.tokenizer)
    else:
        model = RMCLViltForPreTraining.from_pretrained(
            recipe.init_from, ignore_mismatched_sizes=True, **recipe.model
        )  # a projector of another kind starts anew
    trainer = _trainer(recipe, args, model, processor)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    processor.save_pretrained(recipe.output_dir)
    return trainer


def _trainer(recipe: PretrainRecipe, args: Any, model: Any, processor: Any) -> Any:
    from rmcl_hub.trainers.data_collators import PairCollator, PretrainingCollator, without_text
    from rmcl_hub.trainers.guarded_trainer import GuardedTrainer
    from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

    settings = {"max_text_length": recipe.data.max_text_length, "max_unreadable": recipe.data.max_unreadable}
    dataset = load_data(recipe.data, seed=args.seed)
    if recipe.stage == "vilt":
        collator = without_text(PretrainingCollator(processor, recipe.objectives, **settings))
        return GuardedTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
    if args.pretraining_weight:
        collator = PretrainingCollator(processor, recipe.objectives, **settings)
    else:
        collator = PairCollator(processor, **settings)
    image_attack, text_attack = build_attacks(recipe.attack, processor.tokenizer, recipe.data.max_text_length)
    return RMCLTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collator,
        image_attack=image_attack,
        text_attack=text_attack,
    )


def build_attacks(recipe: AttackRecipe, tokenizer: Any, max_text_length: int) -> tuple[Any, Any]:
    """Image and text attack of a recipe; an empty section gives None for its modality."""
    from rmcl_hub.attacks.geometry import GeometryAttack
    from rmcl_hub.attacks.pgd import PGD
    from rmcl_hub.attacks.synonyms import SynonymTable

    image = text = None
    if recipe.image:
        settings = dict(recipe.image)
        preset = settings.pop("preset", None)
        image = PGD.preset(preset, **settings) if preset else PGD(**settings)
    if recipe.text:
        settings = dict(recipe.text)
        vectors = settings.pop("vectors", None)
        synonyms = SynonymTable.from_vectors(vectors) if vectors else SynonymTable.load()
        text = GeometryAttack(tokenizer, synonyms, max_length=max_text_length, **settings)
    return image, text


def load_data(recipe: DataRecipe, seed: int = 0) -> Any:
    """Dataset of a recipe; with `max_examples`, a seeded random subset."""
    from datasets import Image

    from rmcl_hub.datasets_scripts.openpairs import load_openpairs

    dataset = load_openpairs(recipe.config, recipe.split, streaming=recipe.streaming)
    # the collator decodes, so that one broken picture does not end the run
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    if recipe.max_examples is None:
        return dataset
    if recipe.streaming:
        return dataset.take(recipe.max_examples)
    return dataset.shuffle(seed=seed).select(range(min(recipe.max_examples, len(dataset))))


def writable_folder(folder: str | Path) -> Path:
    """Create the folder and prove that it can be written, before hours of work end in an error.

    Raises:
        PermissionError: If it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(
            f"Cannot write to output_dir {folder}: {error}. Choose another with --output_dir."
        ) from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
