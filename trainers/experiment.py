"""One seed of an experiment: pre-train, control and RMCL from the same checkpoint, fine-tune, attack.

Every stage leaves its folder and a `stage.json`; a stage whose recipe and inputs did not change is not run twice, so an
interrupted experiment goes on where it stopped.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .recipe import DataRecipe, EvaluationRecipe, ExperimentRecipe, FinetuneRecipe, PretrainRecipe

logger = logging.getLogger(__name__)

ARMS = ("control", "rmcl")
PASSES_PER_PLAIN_EXAMPLE = 6  # masked words, matching, and the two modalities alone (half each): forward and backward


def run_seed(recipe: ExperimentRecipe, seed: int, folder: Path) -> None:
    """Run all stages of one seed into `folder`."""
    vilt = folder / "vilt"
    run_pretraining(recipe.pretrain, vilt, seed=seed)
    passes = run_pretraining(recipe.rmcl, folder / "rmcl", seed=seed, init_from=vilt)["encoder_passes"]
    control = with_equal_passes(recipe.control, passes)
    run_pretraining(control, folder / "control", seed=seed, init_from=vilt)
    for arm in ARMS:
        measure_representation(recipe, folder / arm)
        for protocol, finetuning in recipe.protocols.items():
            target = folder / f"{arm}-{protocol}"
            run_finetuning(finetuning, target, seed=seed, init_from=folder / arm)
            measure_robustness(recipe.evaluation, finetuning, target)


def with_equal_passes(control: PretrainRecipe, passes: int) -> PretrainRecipe:
    """The control continues ViLT's own objectives for as many encoder passes as RMCL spent, attacks included."""
    batch = control.training["per_device_train_batch_size"] * control.training.get("gradient_accumulation_steps", 1)
    steps = max(1, round(passes / (PASSES_PER_PLAIN_EXAMPLE * batch)))
    return replace(control, training={**control.training, "max_steps": steps})


def run_pretraining(recipe: PretrainRecipe, folder: Path, seed: int, init_from: Path | None = None) -> dict[str, Any]:
    """Pre-train into `folder`; returns the stage's record with `curves` and `encoder_passes`."""
    from .pretrain import pretrain

    recipe = replace(
        recipe,
        output_dir=str(folder),
        init_from=str(init_from) if init_from else recipe.init_from,
        training={**recipe.training, "seed": seed},
    )

    def run() -> dict[str, Any]:
        trainer = pretrain(recipe)
        curves = trainer.state.log_history
        batch = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
        plain = trainer.state.global_step * batch * PASSES_PER_PLAIN_EXAMPLE
        return {"curves": curves, "encoder_passes": getattr(trainer, "encoder_passes", plain)}

    return _stage(folder, "stage", recipe, init_from, run)


def run_finetuning(recipe: FinetuneRecipe, folder: Path, seed: int, init_from: Path) -> dict[str, Any]:
    """Fine-tune into `folder`; returns the stage's record with `curves`."""
    from .finetune import finetune

    recipe = replace(
        recipe, output_dir=str(folder), init_from=str(init_from), training={**recipe.training, "seed": seed}
    )
    return _stage(
        folder, "stage", recipe, init_from, lambda: {"curves": finetune(recipe).state.log_history}
    )


def measure_robustness(recipe: EvaluationRecipe, finetuning: FinetuneRecipe, folder: Path) -> dict[str, Any]:
    """Attack the fine-tuned model of `folder`; writes `outcomes.parquet` beside it."""
    from rmcl_hub.attacks.joint import IndependentAttack
    from rmcl_hub.evaluation.outcomes import save_outcomes
    from rmcl_hub.evaluation.robustness import evaluate_robustness
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

    from .finetune import task_collator
    from .pretrain import build_attacks, load_data

    def run() -> dict[str, Any]:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForVisualQuestionAnswering.from_pretrained(folder)
        attacks: dict[str, Any] = {}
        unions: dict[str, list[str]] = {}
        for name, attack in recipe.attacks.items():
            image, text = build_attacks(attack, processor.tokenizer, finetuning.data.max_text_length)
            if image and text:  # worst case per example of the two and their combination, so never weaker than its parts
                attacks.update({f"{name}-image": image, f"{name}-text": text})
                attacks[f"{name}-combined"] = IndependentAttack(image, text)
                unions[name] = [f"{name}-image", f"{name}-text", f"{name}-combined"]
            else:
                attacks[name] = image or text
        data = replace(finetuning.data, split=recipe.split, max_examples=recipe.max_questions)
        result = evaluate_robustness(
            model,
            load_data(data),
            task_collator(finetuning, processor),
            attacks,
            batch_size=recipe.batch_size,
            unions=unions,
            num_pairs=3,
        )
        save_outcomes(result.outcomes, folder / "outcomes.parquet")
        return {"cost": {name: asdict(cost) for name, cost in result.cost.items()}, "pairs": result.pairs}

    return _stage(folder, "robustness", recipe, folder, run)


def measure_representation(recipe: ExperimentRecipe, folder: Path) -> dict[str, Any]:
    """Label-free: does an attacked pair still find its own clean embedding, and retrieval in and out of style."""
    raise NotImplementedError


def _stage(folder: Path, name: str, recipe: Any, depends_on: Path | None, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage unless its record says that it was run with this recipe on this input."""
    path = folder / f"{name}.json"
    recipes = json.loads(json.dumps(asdict(recipe)))
    before = (depends_on / "stage.json").stat().st_mtime_ns if depends_on and (depends_on / "stage.json").is_file() else 0
    if path.is_file():
        record = json.loads(path.read_text())
        if record["recipe"] == recipes and record["depends_on"] == before:
            logger.info("%s: done before, unchanged", path)
            return record
    record = {"recipe": recipes, "depends_on": before, **run()}
    path.write_text(json.dumps(record))
    return record
