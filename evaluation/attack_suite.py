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

from rmcl_hub.attacks.apgd import APGD
from rmcl_hub.attacks.base import Attack
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.invisible_characters import InvisibleCharacters
from rmcl_hub.attacks.joint import AlternatingAttack, CoAttack, IndependentAttack, SetGuidedAttack
from rmcl_hub.attacks.noise import RandomNoise
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.square import SquareAttack
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.attacks.typos import Typos
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack

Loss: TypeAlias = Literal["cross-entropy", "margin", "distance"]


@dataclass(frozen=True)
class LossAttack:
    """An attack and what it maximises, see `task_attack.task_objective`."""

    attack: Attack
    loss: Loss = "cross-entropy"


Suite: TypeAlias = dict[str, LossAttack]


@dataclass(frozen=True)
class Effort:
    """How long the attacks of a suite search; `word_candidates` are tried per word."""

    apgd_steps: int
    square_queries: int
    word_candidates: int

    def doubled(self) -> "Effort":
        """Twice as long, to see whether the numbers have converged."""
        return Effort(2 * self.apgd_steps, 2 * self.square_queries, 2 * self.word_candidates)


# "full" is AutoAttack's; the others are for laptops.
EFFORTS = {
    "quick": Effort(apgd_steps=20, square_queries=200, word_candidates=5),
    "standard": Effort(apgd_steps=50, square_queries=1000, word_candidates=20),
    "full": Effort(apgd_steps=100, square_queries=5000, word_candidates=50),
}
SANITY = ("noise", "fgsm")
"""Attacks of a suite that are there to be beaten."""
EXHAUSTIVE = "words-exhaustive"
"""Every substitute of every word, one at a time: what a greedy search of more words must be joined with."""
ALL = 10_000  # more substitutes than any word has


@dataclass(frozen=True)
class SuiteInputs:
    """What the attacks of a suite need to know of the model.

    Attributes:
        tokenizer: The one behind `input_ids`; None for a model that reads no text.
        max_text_length: Its truncation length, special tokens included.
        image_mean: What `pixel_values` were normalised with.
        image_std: The same for the deviation.
        seed: Of the random attacks.
    """

    tokenizer: Any = None
    max_text_length: int = 40
    image_mean: float | Sequence[float] = 0.5
    image_std: float | Sequence[float] = 0.5
    seed: int = 0


def build_suite(threat_model: ThreatModel, effort: Effort, inputs: SuiteInputs) -> Suite:
    """The attacks of a threat model by name; that on both modalities holds the attacks on each alone.

    Raises:
        ValueError: If the threat model needs words and there is no tokenizer.
    """
    if threat_model.modality == "image":
        return _image_suite(threat_model, effort, inputs)
    if inputs.tokenizer is None:
        raise ValueError(
            f"the threat model is on {threat_model.modality}, but this model reads no text; choose one on "
            "pixels, such as linf-4."
        )
    if threat_model.modality == "text":
        return _text_suite(threat_model, effort, inputs)
    image = _image_suite(threat_model.part("image"), effort, inputs)
    text = _text_suite(threat_model.part("text"), effort, inputs)
    return {**image, **text, **_joint_suite(image, text)}


def _image_suite(threat_model: ThreatModel, effort: Effort, inputs: SuiteInputs) -> Suite:
    epsilon, norm = threat_model.epsilon, threat_model.norm
    assert epsilon is not None  # the threat model has checked
    assert norm is not None
    pixels: dict[str, Any] = {"norm": norm, "image_mean": inputs.image_mean, "image_std": inputs.image_std}

    def seeded(number: int) -> dict[str, Any]:
        return {**pixels, "generator": torch.Generator().manual_seed(1000 * inputs.seed + number)}

    return {
        "noise": LossAttack(RandomNoise(epsilon, **seeded(1))),
        "fgsm": LossAttack(PGD.preset("fgsm", epsilon, **pixels)),
        "pgd": LossAttack(PGD.preset("standard", epsilon, **seeded(2))),
        "pgd-distance": LossAttack(PGD.preset("standard", epsilon, **seeded(3)), "distance"),
        "apgd-ce": LossAttack(APGD(epsilon, effort.apgd_steps, **seeded(4))),
        "apgd-margin": LossAttack(APGD(epsilon, effort.apgd_steps, **seeded(5)), "margin"),
        "square": LossAttack(
            # The query that shows a wrong answer is the last one that an attacker needs.
            SquareAttack(epsilon, effort.square_queries, stop_at=0.0, **seeded(6)),
            "margin",
        ),
    }


def _text_suite(threat_model: ThreatModel, effort: Effort, inputs: SuiteInputs) -> Suite:
    sources = {"synonyms": SynonymTable.load, "typos": Typos, "invisible": InvisibleCharacters}
    substitutes: Any = sources[threat_model.word_edits or "synonyms"]()
    search: dict[str, Any] = {
        "max_change_share": threat_model.max_change_share,
        "max_changed_words": threat_model.max_changed_words,
        "max_candidates": threat_model.max_candidates or effort.word_candidates,
        "min_cosine": 0.5 if threat_model.min_cosine is None else threat_model.min_cosine,
        "max_length": inputs.max_text_length,
    }
    random = torch.Generator().manual_seed(inputs.seed)
    one_word = {**search, "max_changed_words": 1, "max_candidates": threat_model.max_candidates or ALL}
    return {
        "geometry": LossAttack(GeometryAttack(inputs.tokenizer, substitutes, **search)),
        "words-gradient": LossAttack(WordSwapAttack(inputs.tokenizer, substitutes, **search), "margin"),
        "words-random": LossAttack(
            WordSwapAttack(inputs.tokenizer, substitutes, order="random", generator=random, **search),
            "margin",
        ),
        EXHAUSTIVE: LossAttack(ExhaustiveWordSwap(inputs.tokenizer, substitutes, **one_word), "margin"),
    }


def _joint_suite(image: Suite, text: Suite) -> Suite:
    pgd, geometry, words = image["pgd"].attack, text["geometry"].attack, text["words-gradient"].attack
    return {
        "independent": LossAttack(IndependentAttack(pgd, geometry)),
        "co-attack": LossAttack(CoAttack(pgd, words)),
        "set-guided": LossAttack(SetGuidedAttack(pgd, words)),
        "alternating": LossAttack(AlternatingAttack(image["apgd-margin"].attack, words), "margin"),
    }
