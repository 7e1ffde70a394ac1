"""Recipes: one YAML file per run, checked key by key before anything is built."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

Recipe = TypeVar("Recipe")


@dataclass
class DataRecipe:
    """Which pairs or questions, and how they become tensors."""

    config: str = "captions"  # openpairs configuration: captions, noto, vqa, nlvr2
    split: str = "train"
    streaming: bool = False
    max_examples: int | None = None  # seeded random subset; None takes all
    max_text_length: int = 24  # word pieces, special tokens included
    max_unreadable: int = 10  # images that may be skipped before the run stops


@dataclass
class AttackRecipe:
    """The inner maximisation: keyword arguments of `PGD` and `GeometryAttack`."""

    image: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)


@dataclass
class PretrainRecipe:
    """One pre-training run: ViLT's own objectives (`stage: vilt`) or RMCL (`stage: rmcl`)."""

    stage: str = "rmcl"
    objectives: list[str] = field(default_factory=lambda: ["mlm", "itm"])  # ViLT's own, of stage vilt
    output_dir: str = "runs/pretrain"
    init_from: str | None = None  # folder or hub id; None starts from scratch
    image_size: int = 64  # shorter side in pixels, used when starting from scratch
    model: dict[str, Any] = field(default_factory=dict)  # fields of RMCLViltConfig
    data: DataRecipe = field(default_factory=DataRecipe)
    attack: AttackRecipe = field(default_factory=AttackRecipe)
    training: dict[str, Any] = field(default_factory=dict)  # fields of RMCLArguments


@dataclass
class FinetuneRecipe:
    """One supervised run from a pre-trained folder."""

    task: str = "vqa"  # vqa or nlvr2
    output_dir: str = "runs/finetune"
    init_from: str | None = None
    freeze_encoder: bool = False
    head_learning_rate: float | None = None  # None: the learning rate of the encoder
    data: DataRecipe = field(default_factory=lambda: DataRecipe(config="vqa"))
    training: dict[str, Any] = field(default_factory=dict)  # fields of TrainingArguments


@dataclass
class EvaluationRecipe:
    """What is measured on the models of an experiment."""

    split: str = "test"
    max_questions: int | None = None
    max_pairs: int | None = None  # gallery of the retention and retrieval measures
    batch_size: int = 64
    attacks: dict[str, AttackRecipe] = field(default_factory=dict)
    confidence: float = 0.95


@dataclass
class ExperimentRecipe:
    """Pre-train, then control and RMCL from the same checkpoint, then fine-tune and evaluate both, for every seed."""

    output_dir: str = "runs/quickstart"
    seeds: list[int] = field(default_factory=lambda: [0])
    pretrain: PretrainRecipe = field(default_factory=PretrainRecipe)
    control: PretrainRecipe = field(default_factory=PretrainRecipe)
    rmcl: PretrainRecipe = field(default_factory=PretrainRecipe)
    protocols: dict[str, FinetuneRecipe] = field(default_factory=dict)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)


def load_recipe(cls: type[Recipe], path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--section.key value` overrides.

    Args:
        cls: One of the recipe classes of this module.
        path: YAML file, or the bare name of a packaged recipe such as `quickstart`.
        overrides: Command-line words, dotted keys and YAML values in turns.

    Raises:
        FileNotFoundError: If there is no such recipe; the message lists the packaged ones.
        ValueError: If the YAML is broken, a key is unknown (the nearest known one is suggested) or has no value.
    """
    path = _find(path)
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping of recipe keys, got {type(raw).__name__}.")
    raw.pop("shared", None)  # a place for YAML anchors
    _apply_overrides(raw, overrides)
    return _build(cls, raw, where=str(path))


def _find(path: str | Path) -> Path:
    packaged = Path(__file__).parent.parent / "recipes"
    for candidate in (Path(path), packaged / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(recipe.stem for recipe in packaged.glob("*.yaml")))
    raise FileNotFoundError(
        f"No recipe {str(path)!r}: give a YAML file or one of the packaged recipes: {names}."
    )


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    if len(overrides) % 2:
        raise ValueError(
            f"Overrides come as '--key value' pairs, got {' '.join(overrides)!r}: a value is missing."
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if not key.startswith("--"):
            raise ValueError(f"Expected an override such as --training.seed 1, got {key!r}.")
        *sections, name = key[2:].split(".")
        target = raw
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"{key}: {section!r} is a value, not a section.")
        target[name] = yaml.safe_load(value)


def _build(cls: Any, raw: Mapping[str, Any], where: str) -> Any:
    known = {item.name: item for item in fields(cls)}
    hints = get_type_hints(cls)
    check_keys(raw, list(known), where)
    values = {}
    for name, value in raw.items():
        default = known[name].default_factory() if known[name].default_factory is not MISSING else None
        element = _dict_of_recipes(hints[name])
        if is_dataclass(default):
            values[name] = _build(type(default), _mapping(value, f"{where}: {name}"), f"{where}: {name}")
        elif element is not None:
            section = _mapping(value, f"{where}: {name}")
            values[name] = {
                key: _build(element, _mapping(item, f"{where}: {name}.{key}"), f"{where}: {name}.{key}")
                for key, item in section.items()
            }
        else:
            values[name] = _number(value)
    return cls(**values)


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a string; a recipe that says 1e-4 means the number."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _dict_of_recipes(hint: Any) -> Any:
    """Recipe class `R` of a `dict[str, R]` field, else None."""
    arguments = getattr(hint, "__args__", ())
    return arguments[1] if len(arguments) == 2 and is_dataclass(arguments[1]) else None


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a section with keys, got {value!r}.")
    return value


def check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse unknown keys and suggest the nearest known one.

    Raises:
        ValueError: For the first unknown key.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}."
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
