"""From the stages that an experiment left on disk to `results.json`, and the table for the command line."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rmcl_hub.datasets_scripts.openpairs import load_openpairs, vqa_answers
from rmcl_hub.evaluation.compare import RETENTION, compare_models, count_conclusions
from rmcl_hub.evaluation.outcomes import OVERALL, Outcome, load_outcomes, summarise
from rmcl_hub.evaluation.provenance import code_revision, library_versions
from rmcl_hub.evaluation.results import Comparison, Curve, Example, ModelEntry, Results
from rmcl_hub.model_cards.staged_repository import describe_file

from .experiment import ARMS, COMBINED_SUFFIX, STAGE_FILE
from .recipe import ExperimentRecipe

CURVES = {
    "Contrastive loss": ("loss_image", "loss_text", "loss_both"),
    "Cosine to the own clean key": ("positive_cosine_image", "positive_cosine_text"),
    "Cosine to the negatives": ("negative_cosine_image", "negative_cosine_text"),
    "Distance to the own clean key (L2)": ("positive_l2_image", "positive_l2_text"),
    "Distance to the negatives (L2)": ("negative_l2_image", "negative_l2_text"),
    "What the attacks gain (nats)": ("attack_gain_image", "attack_gain_text"),
    "Share of words changed": ("word_change_rate",),
    "Norm of the pixel perturbation": ("delta_norm",),
    "Spread of the keys (0 collapsed, 1 uniform)": ("embedding_std",),
}
NOTES = [
    "The data are drawings (emojis, clip art), not photographs; figures do not compare with VQAv2 or COCO.",
    "The visual side starts from scratch; word embeddings start from a sentence encoder's.",
    "Synonyms come from WordNet and GloVe, a substitute for the thesis's counter-fitted vectors.",
    "Retrieval uses the encoder on each modality alone (an addition to the thesis).",
    "The evaluation attacks are those of training with more steps; no adaptive or black-box attack was run.",
]


def collect_results(recipe: ExperimentRecipe, folder: Path) -> Results:
    """Put together what the stages of all seeds left in `folder`.

    Raises:
        FileNotFoundError: If a stage of a seed is missing.
    """
    seeds = {seed: folder / f"seed-{seed}" for seed in recipe.seeds}
    comparisons = list(_comparisons(recipe, seeds))
    first = seeds[recipe.seeds[0]]
    robustness = _read(first / f"{ARMS[1]}-{next(iter(recipe.protocols))}" / "robustness.json")
    return Results(
        title=f"RMCL against plain continued pre-training: {folder.name}",
        summary=[count_conclusions(comparisons)],
        config=_settings(asdict(recipe)),
        seeds=recipe.seeds,
        versions=library_versions(),
        revision={"git": code_revision(), "data": _data_digest()},
        data=_counts(recipe),
        baselines=_baselines(recipe),
        threat_models=robustness["threat_models"],
        cost=robustness["cost"],
        seconds=_seconds(first),
        models={arm: _model_entry(recipe, seeds, arm) for arm in ARMS},
        comparisons=comparisons,
        curves=_curves(first),
        examples=list(_examples(recipe, first)),
        notes=NOTES,
    )


def _settings(config: Any) -> Any:
    """A recipe without folders of this machine: results are published, and those mean nothing elsewhere."""
    if not isinstance(config, dict):
        return config
    settings = {key: _settings(value) for key, value in config.items() if key != "output_dir"}
    start = settings.get("init_from")
    if start and Path(start).is_absolute():
        settings["init_from"] = Path(start).name
    return settings


def result_table(results: Results) -> str:
    """Markdown table: control and RMCL per protocol and attack, in percent, with the paired difference."""
    lines = [
        "| task, protocol | attack | measure | control | RMCL | difference [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    shown_clean = set()
    for row in results["comparisons"]:
        place = ", ".join(filter(None, [row["task"], row["protocol"]]))
        measures = ["robust_accuracy", "attack_success_rate"]
        if place not in shown_clean:
            measures.insert(0, "clean_accuracy")
            shown_clean.add(place)
        lines += [_table_line(results["models"], row, place, measure) for measure in measures]
    return "\n".join(lines)


def _table_line(models: Mapping[str, ModelEntry], row: Comparison, place: str, measure: str) -> str:
    def share(arm: str) -> str:
        entry = models[arm]
        if row["task"] == RETENTION:
            attacks = entry.get("retention", {})
        else:
            attacks = entry["tasks"][row["task"]][row["protocol"]]
        value = attacks[row["attack"]][OVERALL][measure]["value"]
        return "-" if value is None else f"{100 * value:.1f}"

    difference = row["differences"][measure]
    interval = "-"
    if difference is not None:
        value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
        interval = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    attack = "none" if measure == "clean_accuracy" else row["attack"]
    names = {
        "clean_accuracy": "accuracy",
        "robust_accuracy": "robust accuracy",
        "attack_success_rate": "attack success",
    }
    return f"| {place} | {attack} | {names[measure]} | {share('control')} | {share('rmcl')} | {interval} |"


def _comparisons(recipe: ExperimentRecipe, seeds: Mapping[int, Path]) -> Iterator[Comparison]:
    for protocol, finetuning in recipe.protocols.items():
        control, treated = (_outcomes(seeds, f"{arm}-{protocol}") for arm in ARMS)
        yield from compare_models(control, treated, task=finetuning.task, protocol=protocol)
    control, treated = (_outcomes(seeds, arm) for arm in ARMS)
    yield from compare_models(control, treated, task=RETENTION, protocol="")


def _outcomes(seeds: Mapping[int, Path], stage: str) -> dict[int, list[Outcome]]:
    """Outcomes by seed, without those that count only as a part of a joint attack."""
    return {
        seed: [
            row
            for row in load_outcomes(folder / stage / "outcomes.parquet")
            if not row.attack.endswith(COMBINED_SUFFIX)
        ]
        for seed, folder in seeds.items()
    }


def _model_entry(recipe: ExperimentRecipe, seeds: Mapping[int, Path], arm: str) -> ModelEntry:
    stages = [_read(folder / arm / STAGE_FILE) for folder in seeds.values()]
    passes = sum(stage["encoder_passes"] for stage in stages) // len(stages)
    steps = stages[0]["curves"][-1]["step"]
    names = {"control": "Control", "rmcl": "RMCL"}
    views = " and ".join(recipe.rmcl.training.get("views", ["image", "text"]))
    trained = {
        "control": "continued with ViLT's own objectives",
        "rmcl": f"continued with RMCL (attacked views: {views})",
    }
    tasks: dict[str, Any] = {}
    for protocol, finetuning in recipe.protocols.items():
        tasks.setdefault(finetuning.task, {})[protocol] = summarise(_outcomes(seeds, f"{arm}-{protocol}"))
    return ModelEntry(
        name=names[arm],
        description=f"Pre-trained ViLT, {trained[arm]}: {steps} steps, {passes:,} encoder passes.",
        tasks=tasks,
        retention=summarise(_outcomes(seeds, arm)),
        retrieval=_read(next(iter(seeds.values())) / arm / "representation.json")["retrieval"],
        weights=[
            describe_file(path)["sha256"]
            for folder in seeds.values()
            for stage in (arm, *(f"{arm}-{protocol}" for protocol in recipe.protocols))
            for path in sorted((folder / stage).glob("*.safetensors"))
        ],
    )


def _curves(seed_folder: Path) -> list[Curve]:
    history = _read(seed_folder / "rmcl" / STAGE_FILE)["curves"]
    curves = []
    for title, names in CURVES.items():
        series = {
            name: [[row["step"], row[name]] for row in history if name in row]
            for name in names
            if any(name in row for row in history)
        }
        if series:
            curves.append(Curve(title=title, x_label="step of RMCL", y_label="", series=series))
    for stage, title in (("vilt", "Loss of ViLT pre-training"), ("control", "Loss of the control")):
        points = [
            [row["step"], row["loss"]]
            for row in _read(seed_folder / stage / STAGE_FILE)["curves"]
            if "loss" in row
        ]
        curves.append(Curve(title=title, x_label="step", y_label="", series={"loss": points}))
    return curves


def _examples(recipe: ExperimentRecipe, seed_folder: Path) -> Iterator[Example]:
    answers = vqa_answers()
    for arm in ARMS:
        for protocol, finetuning in recipe.protocols.items():
            pairs = _read(seed_folder / f"{arm}-{protocol}" / "robustness.json")["pairs"]
            words = answers if finetuning.task == "vqa" else ["false", "true"]
            yield from (
                Example(**pair, model=arm, task=finetuning.task, protocol=protocol, answers=words)
                for pair in pairs
            )


def _counts(recipe: ExperimentRecipe) -> dict[str, dict[str, int]]:
    split, tested = recipe.evaluation.split, {}
    for finetuning in recipe.protocols.values():
        tested[finetuning.task] = len(load_openpairs(finetuning.data.config, split))
    return {
        "pre-training": {
            "image-caption pairs": len(
                load_openpairs(recipe.pretrain.data.config, recipe.pretrain.data.split)
            )
        },
        split: {f"{task} examples available": count for task, count in tested.items()},
    }


def _baselines(recipe: ExperimentRecipe) -> dict[str, dict[str, float]]:
    """Accuracy without pictures: the most frequent training answer of each question type."""
    baselines = {}
    for finetuning in recipe.protocols.values():
        if finetuning.task != "vqa":
            baselines[finetuning.task] = {"majority": 0.5}  # balanced by construction
            continue
        train, test = (
            cast(Any, load_openpairs("vqa", split)).select_columns(["question_type", "answers"])
            for split in ("train", recipe.evaluation.split)
        )
        frequent: dict[str, Counter[str]] = {}
        for row in train:
            frequent.setdefault(row["question_type"], Counter())[row["answers"][0]] += 1
        hits = sum(frequent[row["question_type"]].most_common(1)[0][0] == row["answers"][0] for row in test)
        baselines["vqa"] = {"majority by question type": hits / len(test)}
    return baselines


def _seconds(seed_folder: Path) -> dict[str, float]:
    return {
        f"{path.parent.name}: {path.stem}": _read(path)["seconds"]
        for path in sorted(seed_folder.glob("*/*.json"))
        if path.name in (STAGE_FILE, "robustness.json", "representation.json")
    }


def _data_digest() -> str:
    folder = Path(__file__).parent.parent / "datasets_scripts" / "openpairs"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.parquet")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
