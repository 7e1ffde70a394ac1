"""The metrics as Spaces: `evaluate.load("<user>/robust_accuracy")` runs what lies there."""

import ast
import json
import re
from importlib.metadata import requires
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from jinja2 import Environment, StrictUndefined

from .dataset_repository import empty_folder
from .staged_repository import StagedRepository

METRICS = (
    "attack_success_rate",
    "flip_rate",
    "nlvr2_consistency",
    "perturbation_norm",
    "recall_at_k",
    "robust_accuracy",
    "vqa_accuracy",
    "word_change_rate",
)
LIBRARIES = ("datasets", "evaluate", "numpy", "torch")
"""What a metric imports besides `metrics.py`."""
OUR_FUNCTIONS = "from rmcl_hub.evaluation.metrics import "


def stage_metrics(output_dir: str | Path, *, namespace: str = "USER") -> list[StagedRepository]:
    """Every metric as a Space, in a folder of its own below `output_dir`; see `stage_metric`."""
    return [stage_metric(name, Path(output_dir) / name, namespace=namespace) for name in METRICS]


def stage_metric(name: str, output_dir: str | Path, *, namespace: str = "USER") -> StagedRepository:
    """One metric as a Space that needs no installed rmcl-hub.

    `evaluate` fetches `<name>.py` and what it imports by `from .`: the pure functions travel as `metrics.py`.

    Args:
        name: One of `METRICS`.
        output_dir: Folder of the repository, empty or not there yet.
        namespace: User or organisation on the Hub, for the card's example.

    Raises:
        ValueError: If there is no such metric.
        FileExistsError: If the folder holds anything.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; choose one of {', '.join(METRICS)}.")
    folder = empty_folder(output_dir)
    room = files("rmcl_hub.evaluation")
    module = room.joinpath(name, f"{name}.py").read_text(encoding="utf-8")
    card = room.joinpath(name, "README.md").read_text(encoding="utf-8")
    texts = {
        f"{name}.py": module.replace(OUR_FUNCTIONS, "from .metrics import "),
        "metrics.py": room.joinpath("metrics.py").read_text(encoding="utf-8"),
        "README.md": card_of_space(card, f"{namespace}/{name}"),
        "requirements.txt": "\n".join(_requirements()) + "\n",
        "app.py": _app(name, card),
    }
    for path, text in texts.items():
        (folder / path).write_text(text, encoding="utf-8")
    return StagedRepository.seal(name, "space", folder)


def card_of_space(card: str, repo_id: str) -> str:
    """The packaged card with an example that loads from the Space instead of the package."""
    card = card.replace("from importlib.resources import files\n", "")
    card = re.sub(r"evaluate\.load\(str\(files\(.*\)\)\)", f'evaluate.load("{repo_id}")', card)
    return card.replace("USER/", f"{repo_id.split('/')[0]}/")


def _requirements() -> list[str]:
    """Of this package's requirements those of the metrics, with their bounds."""
    return sorted(
        line
        for line in requires("rmcl-hub") or ()
        if re.split(r"[^\w-]", line)[0] in LIBRARIES and ";" not in line
    )


def _app(name: str, card: str) -> str:
    template = files("rmcl_hub.model_cards").joinpath("metric_space_app.txt").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    title = RepoCard(card).data.to_dict()["title"]
    return environment.from_string(template).render(
        name=name, title=title, example=json.dumps(_example(card))
    )


def _example(card: str) -> dict[str, Any]:
    """Arguments of the call of `compute` in the card's example."""
    (code, *_) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.keywords)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
