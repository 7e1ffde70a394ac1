"""What `rmcl-hub push` was given: each source is recognised by what it holds."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmcl_hub.datasets_scripts.shards import MANIFEST as SHARDS_MANIFEST
from rmcl_hub.evaluation.results import RESULTS_FILE, read_results
from rmcl_hub.evaluation.retrieval_command import RETRIEVAL_FILE
from rmcl_hub.evaluation.robustness import OUTCOMES_FILE
from rmcl_hub.evaluation.robustness_record import EVALUATION_FILE, read_record

from .model_heads import digest_as
from .staged_repository import MANIFEST, StagedRepository, check_name

WORDS = ("openpairs", "metrics", "leaderboard")
KINDS = f"""\
- an experiment's run folder: {RESULTS_FILE}
- a trained model: config.json and *.safetensors
- an evaluation: {EVALUATION_FILE} and {OUTCOMES_FILE}
- prepared shards: {SHARDS_MANIFEST} and data/
- a folder that was staged before: {MANIFEST}
- or one of the words {", ".join(WORDS)}"""


class SourceError(ValueError):
    """A source is nothing that can be published; the message says what was looked for."""


@dataclass(frozen=True)
class ModelSource:
    """A trained model.

    Attributes:
        name: Of its repository.
        folder: As the training left it.
        results: Of the experiment that it is from, if it is from one.
        key: Its key in the `models` of these results.
    """

    name: str
    folder: Path
    results: Path | None = None
    key: str = "rmcl"

    def is_measured_by(self, record: dict[str, Any]) -> bool:
        """Whether an `evaluation.json` or `retrieval.json` is about the parameters of this model."""
        architectures = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        measured = record["model"]
        return (
            measured["class"] in architectures
            and digest_as(self.folder, measured["class"]) == measured["digest"]
        )


@dataclass
class PushSources:
    """All sources of one push.

    Attributes:
        models: Trained models.
        evaluations: Folder of an evaluation to the model that it is about.
        retrievals: Folder of a retrieval to the model that it is about.
        shards: Folders of prepared corpora.
        staged: Repositories that were staged before.
        words: Those of `WORDS` that were given.
        left_out: Sentences about measurements that lie in a source but are about none of the models.
    """

    models: list[ModelSource] = field(default_factory=list)
    evaluations: dict[Path, ModelSource] = field(default_factory=dict)
    retrievals: dict[Path, ModelSource] = field(default_factory=dict)
    shards: list[Path] = field(default_factory=list)
    staged: list[StagedRepository] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def check_namespace(namespace: str) -> None:
    """Refuse what can be no user or organisation.

    Raises:
        SourceError: With the rule.
    """
    try:
        check_name(namespace)
    except ValueError as error:
        raise SourceError(f"--namespace: {error}") from error


def recognise_sources(sources: Sequence[str]) -> PushSources:
    """Find out what was given, and which measurement is about which model.

    Args:
        sources: Folders, or words of `WORDS`.

    Raises:
        SourceError: If one is none of the kinds, two models would have the same name, or an evaluation that
            was named is about none of the models.
    """
    found, named, below = PushSources(), list[Path](), list[Path]()
    for source in sources:
        folder = Path(source)
        if source in WORDS:
            found.words.append(source)
        elif (folder / MANIFEST).is_file():
            found.staged.append(StagedRepository.load(folder))
        elif (folder / RESULTS_FILE).is_file():
            found.models += _models_of_run(folder)
            below.append(folder)
        elif _is_evaluation(folder):
            named.append(folder)
        elif (folder / SHARDS_MANIFEST).is_file() and (folder / "data").is_dir():
            found.shards.append(folder)
        elif _is_model(folder):
            found.models.append(ModelSource(folder.resolve().name, folder))
            below.append(folder)
        else:
            raise SourceError(f"{source!r} is nothing that can be pushed; these kinds are known:\n{KINDS}")
    _check_names(found.models)
    _match_measurements(found, named, below)
    return found


def _models_of_run(folder: Path) -> Iterator[ModelSource]:
    """The models that an experiment compares: of its first seed, with the last of its protocols."""
    results = read_results(folder)
    protocol = list(results["config"]["protocols"])[-1]
    for key in results["models"]:
        model = folder / f"seed-{results['seeds'][0]}" / f"{key}-{protocol}"
        if not _is_model(model):
            raise SourceError(
                f"{folder} compares a model in {model.relative_to(folder)}, which holds none; run the "
                "experiment again: what is there is not trained twice."
            )
        yield ModelSource(f"{folder.resolve().name}-{key}", model, folder / RESULTS_FILE, key)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _is_evaluation(folder: Path) -> bool:
    return (folder / EVALUATION_FILE).is_file() and (folder / OUTCOMES_FILE).is_file()


def _check_names(models: Sequence[ModelSource]) -> None:
    folders: dict[str, Path] = {}
    for model in models:
        other = folders.setdefault(model.name, model.folder)
        if other != model.folder:
            raise SourceError(
                f"{other} and {model.folder} would both be {model.name!r} on the Hub; rename a folder."
            )


def _match_measurements(found: PushSources, named: Sequence[Path], below: Sequence[Path]) -> None:
    evaluations = {path.parent for folder in below for path in folder.rglob(EVALUATION_FILE)}
    evaluations = {
        folder for folder in evaluations if _is_evaluation(folder) and not (folder / MANIFEST).is_file()
    }
    retrievals = {path.parent for folder in below for path in folder.rglob(RETRIEVAL_FILE)}
    retrievals = {folder for folder in retrievals if folder.name != "results"}  # a card's copies
    for folder in [*named, *sorted(evaluations - set(named))]:
        model = _model_of(read_record(folder), found.models)
        if model is not None:
            found.evaluations[folder] = model
        elif folder in named:
            raise SourceError(f"{_nobodys(folder, found.models)} Give the model's folder as a SOURCE, too.")
        else:
            found.left_out.append(_nobodys(folder, found.models))
    for folder in sorted(retrievals):
        model = _model_of(json.loads((folder / RETRIEVAL_FILE).read_text(encoding="utf-8")), found.models)
        if model is not None:
            found.retrievals[folder] = model
        else:
            found.left_out.append(_nobodys(folder, found.models))


def _model_of(record: dict[str, Any], models: Sequence[ModelSource]) -> ModelSource | None:
    return next((model for model in models if model.is_measured_by(record)), None)


def _nobodys(folder: Path, models: Sequence[ModelSource]) -> str:
    names = ", ".join(model.name for model in models)
    return f"{folder} measures the parameters of another model than {names or 'those given: there are none'}."
