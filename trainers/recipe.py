"""Recipes: one YAML file per run, checked key by key before anything is built."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

Recipe = TypeVar("Recipe")
FINETUNING_DATA = {"vqa": "vqa", "nlvr2": "nlvr2", "retrieval": "captions", "snli_ve": None}
"""Tasks of `FinetuneRecipe`, and the openpairs configuration of each, if there is one."""


@dataclass
class CorpusRecipe:
    """One prepared corpus of a mixture."""

    location: str = ""  # folder of shards, or hf://datasets/<user>/<name>@<revision>
    splits: list[str] = field(default_factory=list)  # empty: the protocol's, or `train` in pre-training
    weight: float | None = None  # share of the draws; None for all corpora: every row once an epoch

    def __post_init__(self) -> None:
        """Refuse corpora without a place, and weights that draw nothing."""
        if not self.location:
            raise ValueError("location is missing: give the folder that `rmcl-hub data prepare` wrote.")
        if self.weight is not None and self.weight <= 0:
            raise ValueError(f"weight must be positive, got {self.weight}.")


@dataclass
class DataRecipe:
    """Which pairs or questions, and how they become tensors."""

    config: str = "captions"  # openpairs configuration: captions, noto, vqa, nlvr2
    split: str = "train"  # of openpairs
    corpora: dict[str, CorpusRecipe] = field(default_factory=dict)  # by name, instead of openpairs
    streaming: bool = False
    buffer_size: int = 1000  # rows that a stream is shuffled within
    max_examples: int | None = None  # seeded random subset; None takes all
    max_text_length: int = 24  # word pieces, special tokens included
    max_unreadable: int = 10  # images that each loader worker may skip, counted anew when a run is resumed
    augment: str | None = None  # randaugment: of training pictures, as ViLT fine-tunes

    def __post_init__(self) -> None:
        """Refuse unknown augmentations."""
        if self.augment not in (None, "randaugment"):
            raise ValueError(f"augment must be 'randaugment' or left out, got {self.augment!r}.")


@dataclass
class AttackRecipe:
    """The inner maximisation: keyword arguments of `PGD` and `GeometryAttack`."""

    image: dict[str, Any] = field(default_factory=dict)  # or `preset` and `epsilon` of `PGD.preset`
    text: dict[str, Any] = field(default_factory=dict)  # and `vectors`, a file of word vectors

    def __post_init__(self) -> None:
        """Refuse what the attacks do not take, such as an epsilon outside [0, 1]."""
        self.image_attack()
        if self.text:
            from rmcl_hub.attacks.geometry import GeometryAttack

            given_elsewhere = {"tokenizer", "synonyms", "max_length"}
            known = set(inspect.signature(GeometryAttack).parameters) - given_elsewhere
            check_keys(self.text, sorted(known | {"vectors"}), "text")

    def image_attack(self) -> Any:
        """The `PGD` that the image section describes, None if it is empty."""
        if not self.image:
            return None
        from rmcl_hub.attacks.pgd import PGD

        if "preset" in self.image:
            check_keys(self.image, ["preset", "epsilon"], "image (a preset fixes all but epsilon)")
            return PGD.preset(self.image["preset"], self.image.get("epsilon"))
        known = inspect.signature(PGD).parameters
        check_keys(self.image, [*known, "preset"], "image")
        required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
        if missing := sorted(required - set(self.image)):
            raise ValueError(f"image: {', '.join(missing)} missing; give them, or a preset.")
        return PGD(**self.image)


@dataclass
class PretrainRecipe:
    """One pre-training run: ViLT's own objectives (`stage: vilt`), RMCL (`rmcl`) or its control, MCL (`mcl`).

    MCL is RMCL whose `training.views` are ordinary augmentations instead of attacks.
    """

    stage: str = "rmcl"
    objectives: list[str] = field(default_factory=lambda: ["mlm", "itm"])  # ViLT's own
    output_dir: str = "runs/pretrain"
    init_from: str | None = None  # folder or hub id; None starts from scratch
    image_size: int = 64  # shorter side in pixels, used when starting from scratch
    model: dict[str, Any] = field(default_factory=dict)  # fields of RMCLViltConfig
    data: DataRecipe = field(default_factory=DataRecipe)
    attack: AttackRecipe = field(default_factory=AttackRecipe)
    training: dict[str, Any] = field(default_factory=dict)  # fields of RMCLArguments

    def __post_init__(self) -> None:
        """Refuse unknown stages, attacks where there are none, and unknown keys of the free sections."""
        if self.stage not in ("vilt", "rmcl", "mcl"):
            raise ValueError(f"stage must be 'vilt', 'rmcl' or 'mcl', got {self.stage!r}.")
        if self.stage == "mcl" and self.attack != AttackRecipe():
            raise ValueError("stage 'mcl' has clean views instead of attacks: remove the section attack.")
        if not self.objectives or set(self.objectives) - {"mlm", "itm"}:
            raise ValueError(
                f"objectives must be a non-empty subset of ['mlm', 'itm'], got {self.objectives}."
            )
        if self.data.config not in ("captions", "noto"):
            raise ValueError(f"Pre-training needs pairs: data.config 'captions', got {self.data.config!r}.")
        if self.model:
            from rmcl_hub.modeling_rmcl import RMCLViltConfig

            check_keys(self.model, sorted(RMCLViltConfig().to_dict()), "model")
        if self.training:
            from .arguments import RMCLArguments

            check_keys(self.training, _settable(RMCLArguments), "training")


@dataclass
class FinetuneRecipe:
    """One supervised run from a pre-trained folder."""

    task: str = "vqa"  # vqa, nlvr2, retrieval or snli_ve
    protocol: str | None = None  # clean or thesis: which splits of `data.corpora` train and select
    output_dir: str = "runs/finetune"
    init_from: str | None = None
    freeze_encoder: bool = False
    head_learning_rate: float | None = None  # ViLT: ten times learning_rate; None: that of the encoder
    problem_type: str | None = None  # single_label_classification: softmax; None: VQA's binary cross-entropy
    num_negatives: int = 15  # retrieval: texts of other pictures that a picture's own text competes with
    max_validation_examples: int | None = None  # seeded random subset; None takes all
    model: dict[str, Any] = field(default_factory=dict)  # fields of RMCLViltConfig to change, such as dropout
    data: DataRecipe = field(default_factory=lambda: DataRecipe(config="vqa"))
    attack: AttackRecipe = field(default_factory=AttackRecipe)  # empty: no adversarial training
    adversarial_weight: float = 1.0  # w in (clean loss + w * adversarial loss) / (1 + w)
    training: dict[str, Any] = field(default_factory=dict)  # fields of GuardedArguments

    def __post_init__(self) -> None:
        """Refuse unknown tasks, data of another task, settings that cannot go together."""
        if self.task not in FINETUNING_DATA:
            raise ValueError(f"task must be one of {', '.join(FINETUNING_DATA)}, got {self.task!r}.")
        self._check_data()
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {self.num_negatives}.")
        if self.adversarial_weight <= 0:
            raise ValueError(
                f"adversarial_weight must be positive, got {self.adversarial_weight}; leave the attack "
                "section empty for clean training."
            )
        if self.task == "retrieval" and self.attack.text:
            raise ValueError(
                "Retrieval attacks pictures only: a changed word could make one of the other texts true. "
                "Remove attack.text."
            )
        if self.model:
            from rmcl_hub.modeling_rmcl import RMCLViltConfig

            check_keys(self.model, sorted(RMCLViltConfig().to_dict()), "model")
        if self.training:
            from .arguments import GuardedArguments

            check_keys(self.training, _settable(GuardedArguments), "training")

    def _check_data(self) -> None:
        if self.data.corpora:
            if len(self.data.corpora) > 1:
                raise ValueError(
                    f"Fine-tuning takes one of data.corpora, got {', '.join(self.data.corpora)}."
                )
            if self.protocol is None:
                raise ValueError("protocol is missing: 'clean', or 'thesis' to compare with its tables.")
            for name, corpus in self.data.corpora.items():
                if corpus.splits:
                    raise ValueError(f"data.corpora.{name}.splits come from the protocol; remove them.")
            return
        if self.protocol is not None:
            raise ValueError("protocol names splits of data.corpora, but there are none; remove it.")
        config = FINETUNING_DATA[self.task]
        if config is None:
            raise ValueError(f"Task {self.task!r} needs data.corpora: the embedded set has no such rows.")
        if self.data.config != config:
            raise ValueError(f"Task {self.task!r} needs data.config {config!r}, got {self.data.config!r}.")


@dataclass
class EvaluationRecipe:
    """What is measured on the models of an experiment."""

    split: str = "test"
    max_questions: int | None = None
    max_pairs: int | None = None  # gallery of the retention and retrieval measures
    batch_size: int = 64
    attacks: dict[str, AttackRecipe] = field(default_factory=dict)


@dataclass
class ExperimentRecipe:
    """Pre-train, then control and RMCL from one checkpoint, then fine-tune and evaluate both; all seeds."""

    output_dir: str = "runs/quickstart"
    seeds: list[int] = field(default_factory=lambda: [0])
    pretrain: PretrainRecipe = field(default_factory=PretrainRecipe)
    control: PretrainRecipe = field(default_factory=PretrainRecipe)
    rmcl: PretrainRecipe = field(default_factory=PretrainRecipe)
    protocols: dict[str, FinetuneRecipe] = field(default_factory=dict)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)


def recipe_from_command_line(
    cls: type[Recipe], command: str, description: str, argv: list[str] | None, default: str | None = None
) -> Recipe:
    """Recipe that `command [recipe] [--section.key value ...]` asks for.

    Args:
        cls: One of the recipe classes of this module.
        command: Shown in the help, with `description`. Its `main` handles `--dry-run`.
        description: One sentence.
        argv: The words after the command; those of the process if None.
        default: Recipe to take when none is named; None makes the name obligatory.

    Raises:
        SystemExit: After `--help`, or with status 2 without a recipe.
        FileNotFoundError, ValueError: As `load_recipe`.
    """
    words = sys.argv[1:] if argv is None else argv
    is_override = [word.startswith("--") and word != "--help" for word in words]
    first = is_override.index(True) if any(is_override) else len(words)
    name, dry_run = ("[recipe]", "") if default else ("recipe", " [--dry-run [--processes N]]")
    parser = argparse.ArgumentParser(
        prog=command,
        description=description,
        usage=f"{command} {name} [--section.key value ...]{dry_run}",
        epilog=None if default else "--dry-run checks fields and paths, and tells steps, work and memory.",
    )
    parser.add_argument(
        "recipe", nargs="?" if default else None, default=default, help="YAML file or packaged recipe"
    )
    return load_recipe(cls, parser.parse_args(words[:first]).recipe, words[first:])


def load_recipe(cls: type[Recipe], path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--section.key value` overrides.

    Args:
        cls: One of the recipe classes of this module.
        path: YAML file, or the bare name of a packaged recipe such as `quickstart`.
        overrides: Command-line words, dotted keys and YAML values in turns, or `--key=value`.

    Raises:
        FileNotFoundError: If there is no such recipe; the message lists the packaged ones.
        ValueError: If the YAML is broken, a key is unknown (the nearest known one is suggested) or has no
            value, or a value is not allowed.
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
    words = [part for word in overrides for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    if len(words) % 2:
        raise ValueError(
            f"Overrides come as '--key value' pairs, got {' '.join(words)!r}: a value is missing."
        )
    for key, value in zip(words[::2], words[1::2], strict=True):
        if not key.startswith("--"):
            raise ValueError(f"Expected an override such as --training.seed 1, got {key!r}.")
        *sections, name = key[2:].split(".")
        target = raw
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"{key}: {section!r} is a value, not a section.")
        try:
            target[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: {value!r} is not valid YAML: {error}") from error


def _build(cls: Any, raw: Mapping[str, Any], where: str) -> Any:
    """Fill a recipe class from a section, and the recipes that it holds from the sections inside."""
    hints = get_type_hints(cls)
    check_keys(raw, [item.name for item in fields(cls)], where)
    values = {}
    for name, value in raw.items():
        inside, hint = f"{where}: {name}", hints[name]
        if is_dataclass(hint):
            values[name] = _build(hint, _mapping(value, inside), inside)
        elif element := _recipe_in_dict(hint):
            values[name] = {
                key: _build(element, _mapping(item, f"{inside}.{key}"), f"{inside}.{key}")
                for key, item in _mapping(value, inside).items()
            }
        else:
            values[name] = _numbers(_mapping(value, inside) if get_origin(hint) is dict else value)
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a string; a recipe that says 1e-4 means the number."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _recipe_in_dict(hint: Any) -> Any:
    """Recipe class `R` of a `dict[str, R]` field, else None."""
    arguments = getattr(hint, "__args__", ())
    return arguments[1] if len(arguments) == 2 and is_dataclass(arguments[1]) else None


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a section with keys, got {value!r}.")
    return value


def _settable(arguments: Any) -> list[str]:
    """Arguments of a run that a recipe may give; the output folder is a key of its own."""
    return [item.name for item in fields(arguments) if item.init and item.name != "output_dir"]


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
