"""The card of an adversarial example set, from its evaluation record and nothing else."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from rmcl_hub.evaluation.outcomes import OVERALL, Rate
from rmcl_hub.evaluation.protocol_data import describe_protocol

from .adversarial_rows import MAX_NAMES
from .redistribution import terms_of, why_private

TEMPLATE = "adversarial_examples.md"


def render_adversarial_card(
    record: dict[str, Any],
    name: str,
    split: str,
    picture_columns: Sequence[str],
    model_repo: str | None,
    image_mean: float | Sequence[float],
    image_std: float | Sequence[float],
) -> str:
    """Text of the card, without front matter.

    Args:
        record: The evaluation's.
        name: Of the repository, without the namespace.
        split: Of its configurations.
        picture_columns: Their columns of pictures.
        model_repo: The attacked model on the Hub, or None if it is not there.
        image_mean: What the stored pixels were normalised with.
        image_std: The same for the deviation.
    """
    protocol, answers = record["protocol"], record["answers"]
    template = files("rmcl_hub.model_cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        name=name,
        repo_id=f"{(model_repo or 'USER/').split('/')[0]}/{name}",
        model_repo=model_repo,
        record=record,
        data=describe_protocol(protocol) or "rows without a protocol",
        threats=[_threat(threat, entry) for threat, entry in record["threats"].items()],
        split=split,
        pictures=", ".join(f"`{column}`" for column in picture_columns),
        answers=answers if len(answers) <= MAX_NAMES else [],
        image_mean=image_mean,
        image_std=image_std,
        why_private=why_private(protocol["corpus"]),
        licence=terms_of(protocol["corpus"]).pictures,
        is_embedded=protocol["corpus"] == "openpairs",
    )


def _threat(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    overall = entry["numbers"][OVERALL]
    return {
        **{key: entry[key] for key in ("sentence", "verdict", "reasons")},
        "name": name,
        "num_examples": overall["robust_accuracy"]["n"],
        "clean": _share(overall["clean_accuracy"]),
        "robust": _share(overall["robust_accuracy"]),
    }


def _share(rate: Rate) -> str:
    if rate["value"] is None:
        return "n/a"
    return f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
