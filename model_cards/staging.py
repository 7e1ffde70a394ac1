"""Everything that belongs to the sources of a push, as staged folders; no network is needed."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmcl_hub.evaluation.results import RESULTS_FILE
from rmcl_hub.evaluation.robustness_record import read_record

from .push_sources import ModelSource, PushSources
from .staged_repository import MANIFEST, StagedRepository

FOLDERS = {"model": "models", "dataset": "datasets", "space": "spaces"}


@dataclass
class Staging:
    """What `stage_sources` made.

    Attributes:
        repositories: In the order in which they go up: models before what points to them.
        notes: Sentences about what was left out, with the reason.
    """

    repositories: list[StagedRepository] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stage_sources(
    sources: PushSources,
    output_dir: str | Path,
    namespace: str,
    *,
    private: bool = False,
    without_pictures: bool = False,
) -> Staging:
    """Stage all repositories below `output_dir`, as `models/<name>`, `datasets/<name>`, `spaces/<name>`.

    Folders that an earlier push staged there are replaced, whole.

    Args:
        sources: What to publish.
        output_dir: Folder for the staged repositories.
        namespace: User or organisation on the Hub, for cards and for the rows of the leaderboard.
        private: Whether the repositories will be private, so that more may be in them.
        without_pictures: Stage of prepared corpora only what is not a picture.

    Raises:
        FileExistsError: If a folder that was not staged is in the way.
        ValueError: If a card lacks a number, a licence forbids publication, or a source is damaged.
    """
    from .metric_space import stage_metrics

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    staging = Staging(notes=list(sources.left_out))
    with tempfile.TemporaryDirectory(dir=output_dir, prefix="unfinished-") as folder:
        root = Path(folder)
        fresh = [
            *(_stage_model(model, sources, root, namespace) for model in sources.models),
            *_stage_training_states(sources, root, namespace, staging.notes),
            *_stage_datasets(sources, root, namespace, private, without_pictures),
            *(stage_metrics(root / "spaces", namespace=namespace) if "metrics" in sources.words else []),
            *_stage_leaderboard(sources, root, namespace, staging.notes),
        ]
        moved = [_move(staged, root, output_dir) for staged in fresh]
    # A leaderboard points to models and adversarial examples, and its Space to its rows.
    order = list(FOLDERS)
    staging.repositories = sorted(
        [*moved, *sources.staged],
        key=lambda staged: (order.index(staged.repo_type), staged.manifest["accumulates"]),
    )
    return staging


def _stage_model(model: ModelSource, sources: PushSources, root: Path, namespace: str) -> StagedRepository:
    from .model_card import check_card, write_card
    from .model_repository import stage_model

    folder = root / "models" / model.name
    staged = stage_model(model.folder, folder, name=model.name)
    evaluations = [path for path, owner in sources.evaluations.items() if owner == model]
    measurements: dict[str, Any] = {
        "results": model.results,
        "evaluations": evaluations,
        "control": _control_of(model, evaluations, sources),
        "retrievals": [path for path, owner in sources.retrievals.items() if owner == model],
    }
    earlier = folder / "results" / RESULTS_FILE  # of a card that was written before
    if any(measurements.values()) and model.results is None and earlier.is_file():
        measurements["results"] = earlier
    write_card(folder, model=model.key, repo_id=f"{namespace}/{model.name}", **measurements)
    check_card(folder)
    return StagedRepository.seal(model.name, "model", folder, staged.manifest["sources"])


def _stage_training_states(
    sources: PushSources, root: Path, namespace: str, notes: list[str]
) -> list[StagedRepository]:
    """Momentum encoder and queue of models that are checkpoints, each in a repository of its own."""
    from .training_state import STATE_FILE, stage_training_state

    staged = []
    for model in sources.models:
        name, repo_id = f"{model.name}-training-state", f"{namespace}/{model.name}"
        if (model.folder / STATE_FILE).is_file():
            try:
                folder = root / "models" / name
                staged.append(
                    stage_training_state(model.folder / STATE_FILE, folder, name=name, model_repo=repo_id)
                )
            except ValueError as error:  # Barlow Twins has none
                notes.append(str(error))
    return staged


def _control_of(model: ModelSource, evaluations: Sequence[Path], sources: PushSources) -> Path | None:
    """The same evaluation of the experiment's control: of the same task on the same examples."""
    if model.key == "control":
        return None
    mine = [read_record(folder) for folder in evaluations]
    for folder, owner in sources.evaluations.items():
        record = read_record(folder) if owner.key == "control" and owner.results == model.results else None
        if record and any(
            (record["task"], record["data"]["digest"]) == (other["task"], other["data"]["digest"])
            for other in mine
        ):
            return folder
    return None


def _stage_datasets(
    sources: PushSources, root: Path, namespace: str, private: bool, without_pictures: bool
) -> list[StagedRepository]:
    from .dataset_repository import (
        stage_adversarial_examples,
        stage_annotations,
        stage_openpairs,
        stage_shards,
    )

    folder, staged = root / "datasets", list[StagedRepository]()
    if "openpairs" in sources.words:
        staged.append(stage_openpairs(folder / "openpairs", namespace=namespace))
    for shards in sources.shards:
        name = shards.resolve().name
        if without_pictures:
            staged.append(stage_annotations(shards, folder / name, name=name))
        else:
            staged.append(stage_shards(shards, folder / name, name=name, private=private))
    for evaluation, model in sources.evaluations.items():
        name = sources.name_of_examples(evaluation)
        repo_id = f"{namespace}/{model.name}"
        staged.append(
            stage_adversarial_examples(
                evaluation, folder / name, name=name, model_repo=repo_id, private=private
            )
        )
    return staged


def _stage_leaderboard(
    sources: PushSources, root: Path, namespace: str, notes: list[str]
) -> list[StagedRepository]:
    """Rows of all evaluations, and the Space that shows them if it was asked for."""
    from .leaderboard_repository import stage_leaderboard
    from .leaderboard_rows import rows_of

    rows: list[dict[str, Any]] = []
    for evaluation, model in sources.evaluations.items():
        try:
            found = rows_of(evaluation, model_repo=f"{namespace}/{model.name}")
        except ValueError as error:
            notes.append(f"{evaluation} gets no row on the leaderboard: {error}")
            continue
        rows += found.accepted
        notes += [
            f"{evaluation}, {threat}: gets no row on the leaderboard: {reason}"
            for threat, reason in found.refused.items()
        ]
    if not rows and "leaderboard" not in sources.words:
        return []
    dataset, space = stage_leaderboard(rows, root, namespace=namespace)
    return [dataset, space] if "leaderboard" in sources.words else [dataset]


def _move(staged: StagedRepository, root: Path, output_dir: Path) -> StagedRepository:
    target = output_dir / staged.folder.relative_to(root)
    if (target / MANIFEST).is_file():
        shutil.rmtree(target)
    elif target.exists():
        raise FileExistsError(f"{target} was not staged by a push; move it, or choose another --output-dir.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.folder.rename(target)
    return StagedRepository.load(target)
