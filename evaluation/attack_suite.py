"""The ensemble that stands for a threat model: a parameter-free "AutoAttack" for pixels, words and both.

Every attack stays within the threat model, and the robust accuracy of the threat model is that of the worst
outcome per example over all of them. The image part follows AutoAttack (arXiv:2003.01690): APGD with cross
entropy and with a margin, and Square. FGSM and PGD are there because a stronger attack that loses to them is
a sign of trouble, and noise because a model must survive it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from rmcl_hub.attacks.base import Attack
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.joint import IndependentAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel

Loss: TypeAlias = Literal["cross-entropy", "margin", "distance"]


@dataclass(frozen=True)
class LossAttack:
    """An attack and what it maximises."""

    attack: Attack
    loss: Loss = "cross-entropy"


Suite: TypeAlias = dict[str, LossAttack]


@dataclass(frozen=True)
class Effort:
    """How long the attacks of a suite search."""

    apgd_steps: int
    square_queries: int
    restarts: int = 1


EFFORTS = {
    "quick": Effort(apgd_steps=20, square_queries=200),
    "standard": Effort(apgd_steps=100, square_queries=5000),
}


def build_suite(
    threat_model: ThreatModel,
    *,
    effort: Effort,
    tokenizer: Any = None,
    synonyms: Any = None,
    max_text_length: int = 40,
    image_mean: float | Sequence[float] = 0.5,
    image_std: float | Sequence[float] = 0.5,
    seed: int = 0,
) -> Suite:
    """The attacks of a threat model by name, single-modality parts included.

    Raises:
        ValueError: If the threat model needs words and there is no tokenizer.
    """
    pixels = {"image_mean": image_mean, "image_std": image_std}
    if threat_model.modality == "image":
        return _image_suite(threat_model, effort, pixels, seed)
    if tokenizer is None:
        raise ValueError(
            f"The threat model is on {threat_model.modality}, but this model reads no text; choose an image "
            "threat model such as linf-4."
        )
    words = {"tokenizer": tokenizer, "max_length": max_text_length}
    if threat_model.modality == "text":
        return _text_suite(threat_model, words, synonyms, seed)
    image = _image_suite(threat_model.part("image"), effort, pixels, seed)
    text = _text_suite(threat_model.part("text"), words, synonyms, seed)
    return {**image, **text, **_joint_suite(image, text)}


def _image_suite(threat_model: ThreatModel, effort: Effort, pixels: dict[str, Any], seed: int) -> Suite:
    epsilon = threat_model.epsilon
    return {
        "fgsm": LossAttack(PGD(epsilon, epsilon or 1.0, 1, **pixels)),
        "pgd": LossAttack(
            PGD(epsilon, epsilon / 4 or 1.0, 10, random_start=True, generator=_generator(seed), **pixels)
        ),
    }


def _text_suite(threat_model: ThreatModel, words: dict[str, Any], synonyms: Any, seed: int) -> Suite:
    return {
        "geometry": LossAttack(
            GeometryAttack(synonyms=synonyms or SynonymTable.load(), max_change_share=0.2, **words)
        )
    }


def _joint_suite(image: Suite, text: Suite) -> Suite:
    pgd, geometry = image["pgd"].attack, text["geometry"].attack
    return {"independent": LossAttack(IndependentAttack(pgd, geometry))}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
