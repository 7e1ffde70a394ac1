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

from .card_sources import SOURCES_FILE
from .model_heads import HEADS, digest_as
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

    def name_of_examples(self, evaluation: Path) -> str:
        """Name on the Hub of the adversarial examples of an evaluation, after its model and its folder."""
        model, folder = self.evaluations[evaluation], evaluation.resolve()
        is_named_after_model = folder.name in (model.name, model.key, model.folder.name)
        return f"{model.name}-{'adversarial' if is_named_after_model else folder.name}"


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
    for source in dict.fromkeys(sources):
        folder = Path(source)
        if source in WORDS:
            found.words.append(source)
        elif (folder / MANIFEST).is_file():
            found.staged.append(StagedRepository.load(folder))
        elif (folder / RESULTS_FILE).is_file():
            found.models += _models_of_run(folder)
            below.append(folder)
        elif (folder / SHARDS_MANIFEST).is_file() and (folder / "data").is_dir():
            found.shards.append(folder)
        elif _is_model(folder):  # an evaluation may have been written into it
            found.models.append(ModelSource(folder.resolve().name, folder))
            below.append(folder)
        elif _is_evaluation(folder):
            named.append(folder)
        else:
            raise SourceError(f"{source!r} is nothing that can be pushed; these kinds are known:\n{KINDS}")
    _match_measurements(found, named, below)
    _check_names(found)
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


def _check_names(found: PushSources) -> None:
    places = [
        *(("model", model.name, model.folder) for model in found.models),
        *(("dataset", found.name_of_examples(folder), folder) for folder in found.evaluations),
        *(("dataset", folder.resolve().name, folder) for folder in found.shards),
        *((staged.repo_type, staged.name, staged.folder) for staged in found.staged),
        *(("dataset", word, Path(word)) for word in found.words if word == "openpairs"),
    ]
    folders: dict[tuple[str, str], Path] = {}
    for repo_type, name, folder in places:
        other = folders.setdefault((repo_type, name), folder)
        if other != folder:
            raise SourceError(
                f"{other} and {folder} would both be the {repo_type} {name!r}; rename a folder."
            )


def _match_measurements(found: PushSources, named: Sequence[Path], below: Sequence[Path]) -> None:
    """Give each measurement to its model, by the model's parameters: a path says nothing about them."""
    digests: dict[tuple[Path, str], str] = {}

    def model_of(record: dict[str, Any]) -> ModelSource | None:
        name, digest = record["model"]["class"], record["model"]["digest"]
        for model in found.models if name in HEADS else ():
            if (model.folder, name) not in digests:
                digests[model.folder, name] = digest_as(model.folder, name)
            if digests[model.folder, name] == digest:
                return model
        return None

    evaluations = {folder for folder in _folders_with(EVALUATION_FILE, below) if _is_evaluation(folder)}
    for folder in [*named, *sorted(evaluations - set(named))]:
        model = model_of(read_record(folder))
        if model is not None:
            found.evaluations[folder] = model
        elif folder in named:
            raise SourceError(f"{_nobodys(folder, found.models)} Give the model's folder as a SOURCE, too.")
        else:
            found.left_out.append(_nobodys(folder, found.models))
    for folder in sorted(_folders_with(RETRIEVAL_FILE, below)):
        model = model_of(json.loads((folder / RETRIEVAL_FILE).read_text(encoding="utf-8")))
        if model is not None:
            found.retrievals[folder] = model
        else:
            found.left_out.append(_nobodys(folder, found.models))


def _folders_with(file: str, below: Sequence[Path]) -> set[Path]:
    """Folders of a measurement, but for the copies beside a card and in staged repositories."""
    folders = {path.parent for folder in below for path in folder.rglob(file)}
    copies = (MANIFEST, Path(SOURCES_FILE).name)
    return {folder for folder in folders if not any((folder / name).is_file() for name in copies)}


def _nobodys(folder: Path, models: Sequence[ModelSource]) -> str:
    names = ", ".join(model.name for model in models)
    return f"{folder} measures the parameters of another model than {names or 'those given: there are none'}."
