"""One seed of an experiment: pre-train, control and RMCL from the same checkpoint, fine-tune, attack.

Every stage leaves its folder and a `stage.json`; a stage whose recipe and inputs did not change is not run
twice, so an interrupted experiment goes on where it stopped. Of several processes all train, and the first
one evaluates, decides what is done and writes.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rmcl_hub.evaluation.results import write_atomically

from .processes import on_first_process
from .recipe import AttackRecipe, EvaluationRecipe, ExperimentRecipe, FinetuneRecipe, PretrainRecipe

logger = logging.getLogger(__name__)

STAGE_FILE = "stage.json"
ARMS = ("control", "rmcl")
COMBINED_SUFFIX = "-combined"
PASSES_PER_PLAIN_EXAMPLE = (
    6  # masked words, matching, and the two modalities alone (half each): forward and backward
)


def run_seed(recipe: ExperimentRecipe, seed: int, folder: Path) -> None:
    """Run all stages of one seed into `folder`."""
    vilt = folder / "vilt"
    run_pretraining(recipe.pretrain, vilt, seed=seed)
    passes = run_pretraining(recipe.rmcl, folder / "rmcl", seed=seed, init_from=vilt)["encoder_passes"]
    itc_weight, processes = recipe.pretrain.model.get("itc_weight", 0), PartialState().num_processes
    control = with_equal_passes(recipe.control, passes, itc_weight, processes)
    run_pretraining(control, folder / "control", seed=seed, init_from=vilt)
    for arm in ARMS:
        measure_representation(recipe, folder / arm)
        for protocol, finetuning in recipe.protocols.items():
            target = folder / f"{arm}-{protocol}"
            run_finetuning(finetuning, target, seed=seed, init_from=folder / arm)
            measure_robustness(recipe.evaluation, finetuning, target)


def with_equal_passes(
    control: PretrainRecipe, passes: int, itc_weight: float, processes: int = 1
) -> PretrainRecipe:
    """The control continues ViLT's own objectives for the encoder passes that RMCL spent on all."""
    training = control.training
    batch = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    batch *= processes
    steps = max(1, round(passes / (batch * passes_per_plain_example(control, itc_weight))))
    return replace(control, training={**training, "max_steps": steps})


def passes_per_plain_example(recipe: PretrainRecipe, itc_weight: float) -> int:
    """Encoder passes, forward and backward, of ViLT's objectives; the two modalities alone count as one."""
    return 2 * (len(recipe.objectives) + bool(itc_weight))


def run_pretraining(
    recipe: PretrainRecipe, folder: Path, seed: int, init_from: Path | None = None
) -> dict[str, Any]:
    """Pre-train into `folder`; returns the stage's record with `curves` and `encoder_passes`."""
    from .pretrain import pretrain
    from .rmcl_trainer import RMCLTrainer

    recipe = replace(
        recipe,
        output_dir=str(folder),
        init_from=str(init_from) if init_from else recipe.init_from,
        training={**recipe.training, "seed": seed},
    )

    def run() -> dict[str, Any]:
        trainer = pretrain(recipe)
        curves = trainer.state.log_history
        if isinstance(trainer, RMCLTrainer):
            return {"curves": curves, "encoder_passes": trainer.total_encoder_passes()}
        batch = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
        examples = trainer.state.global_step * batch * trainer.args.world_size
        passes = examples * passes_per_plain_example(recipe, trainer.model.config.itc_weight)
        return {"curves": curves, "encoder_passes": passes}

    return _stage(folder, "stage", recipe, init_from, run)


def run_finetuning(recipe: FinetuneRecipe, folder: Path, seed: int, init_from: Path) -> dict[str, Any]:
    """Fine-tune into `folder`; returns the stage's record with `curves`."""
    from .finetune import finetune

    recipe = replace(
        recipe, output_dir=str(folder), init_from=str(init_from), training={**recipe.training, "seed": seed}
    )
    return _stage(folder, "stage", recipe, init_from, lambda: {"curves": finetune(recipe).state.log_history})


def measure_robustness(recipe: EvaluationRecipe, finetuning: FinetuneRecipe, folder: Path) -> dict[str, Any]:
    """Attack the fine-tuned model of `folder`; writes `outcomes.parquet` beside it."""
    from rmcl_hub.evaluation.outcomes import save_outcomes
    from rmcl_hub.evaluation.task_attack import attack_task
    from rmcl_hub.evaluation.tasks import build_task

    from .finetune import load_finetuned
    from .pretrain import load_data

    def run() -> dict[str, Any]:
        model, processor = load_finetuned(finetuning.task, folder)
        attacks, unions = named_attacks(recipe.attacks, processor, finetuning.data.max_text_length)
        data = replace(finetuning.data, split=recipe.split, max_examples=recipe.max_questions)
        result = attack_task(
            model,
            load_data(data),
            build_task(finetuning.task, model, processor, data.max_text_length),
            attacks,
            batch_size=recipe.batch_size,
            unions=unions,
            num_pairs=3,
        )
        save_outcomes(result.outcomes, folder / "outcomes.parquet")
        return {
            "cost": {name: asdict(cost) for name, cost in result.cost.items()},
            "pairs": result.pairs,
            "threat_models": {name: str(attack.threat_model) for name, attack in attacks.items()},
        }

    return _stage(folder, "robustness", (recipe, finetuning), folder, lambda: on_first_process(run))


def measure_representation(recipe: ExperimentRecipe, folder: Path) -> dict[str, Any]:
    """Without labels: do attacked pairs find their own clean embedding; retrieval in both styles."""
    from transformers import AutoProcessor

    from rmcl_hub.datasets_scripts.openpairs import load_openpairs
    from rmcl_hub.datasets_scripts.task_collators import PairCollator
    from rmcl_hub.evaluation.attack_loop import CAPTION_COLUMNS
    from rmcl_hub.evaluation.outcomes import save_outcomes
    from rmcl_hub.evaluation.retention import embedding_retention
    from rmcl_hub.evaluation.retrieval import evaluate_retrieval
    from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

    from .pretrain import load_data

    evaluation, data = recipe.evaluation, recipe.pretrain.data

    def run() -> dict[str, Any]:
        processor = AutoProcessor.from_pretrained(folder)
        model = RMCLViltForPreTraining.from_pretrained(folder)
        attacks, unions = named_attacks(evaluation.attacks, processor, data.max_text_length)
        result = embedding_retention(
            model,
            load_data(replace(data, split=evaluation.split, max_examples=evaluation.max_pairs)),
            PairCollator(processor, data.max_text_length, max_unreadable=0, draw_caption=False),
            attacks,
            batch_size=evaluation.batch_size,
            unions=unions,
            columns=CAPTION_COLUMNS,
        )
        save_outcomes(result.outcomes, folder / "outcomes.parquet")
        retrieval = {}
        if model.config.itc_weight > 0:
            for name, gallery in {"OpenMoji": "captions", "Noto (other style)": "noto"}.items():
                retrieval[name] = evaluate_retrieval(
                    model,
                    load_openpairs(gallery, evaluation.split),
                    processor,
                    scorer="dual",
                    batch_size=evaluation.batch_size,
                    max_text_length=data.max_text_length,
                )
        return {"retrieval": retrieval}

    return _stage(folder, "representation", (evaluation, data), folder, lambda: on_first_process(run))


def named_attacks(
    recipes: dict[str, AttackRecipe], processor: Any, max_text_length: int
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Attacks by name, and for every recipe of both modalities the attacks whose worst outcome it means.

    A joint attack counts as the worst, example by example, of its image part, its text part and their
    combination, so it is never weaker than its parts. A part that another recipe names is not run twice.
    """
    from rmcl_hub.attacks.joint import IndependentAttack

    from .pretrain import build_attacks

    attacks: dict[str, Any] = {}
    parts: dict[str, str] = {}  # recipe of one modality -> name of its attack
    unions: dict[str, list[str]] = {}

    def name_of(part: AttackRecipe, name: str) -> str:
        key = json.dumps(asdict(part))
        if key not in parts:
            image, text = build_attacks(part, processor.tokenizer, max_text_length)
            parts[key], attacks[name] = name, _Once(image or text)
        return parts[key]

    joint = {name: recipe for name, recipe in recipes.items() if recipe.image and recipe.text}
    for name, recipe in recipes.items():
        if name not in joint:
            name_of(recipe, name)
    for name, recipe in joint.items():
        image = name_of(AttackRecipe(image=recipe.image), f"{name}-image")
        text = name_of(AttackRecipe(text=recipe.text), f"{name}-text")
        attacks[name + COMBINED_SUFFIX] = IndependentAttack(attacks[image], attacks[text])
        unions[name] = [image, text, name + COMBINED_SUFFIX]
    return attacks, unions


class _Once:
    """An attack that answers from memory when asked again about the batch it has just attacked."""

    def __init__(self, attack: Any) -> None:
        self.attack = attack
        self.batch: Any = None
        self.result: Any = None

    @property
    def threat_model(self) -> Any:
        return self.attack.threat_model

    def __call__(self, batch: Any, objective: Any) -> Any:
        if batch is not self.batch:
            self.batch, self.result = batch, self.attack(batch, objective)
        return self.result


def _stage(
    folder: Path, name: str, recipe: Any, depends_on: Path | None, run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run a stage unless its record says that it was run with this recipe on this input."""
    path = folder / f"{name}.json"
    recipes = [asdict(part) for part in recipe] if isinstance(recipe, tuple) else asdict(recipe)

    def already() -> tuple[int, dict[str, Any] | None]:
        before = (depends_on / STAGE_FILE).stat().st_mtime_ns if depends_on else 0
        record = json.loads(path.read_text()) if path.is_file() else None
        done = record is not None and record["recipe"] == recipes and record["depends_on"] == before
        logger.info("%s%s", path, ": done before, unchanged" if done else "")
        return before, record if done else None

    before, record = on_first_process(already)
    if record is None:
        started = time.perf_counter()
        results = run()
        seconds = time.perf_counter() - started
        record = {"recipe": recipes, "depends_on": before, **results, "seconds": seconds}
        on_first_process(lambda: write_atomically(path, json.dumps(record)))
    return record
