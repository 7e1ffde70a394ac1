"""The inner maximisation: threat models, and attacks on pixels and words that take any objective."""

from .apgd import APGD
from .base import Attack, AttackResult, JointObjective, frozen, select_rows
from .geometry import GeometryAttack
from .invisible_characters import InvisibleCharacters
from .joint import AlternatingAttack, CoAttack, IndependentAttack, SetGuidedAttack
from .noise import RandomNoise
from .pgd import PGD
from .square import SquareAttack
from .synonyms import SynonymTable
from .threat_model import ThreatModel
from .typos import Typos
from .universal import UniversalPerturbation
from .word_swap import ExhaustiveWordSwap, WordSwapAttack

__all__ = [
    "APGD",
    "PGD",
    "AlternatingAttack",
    "Attack",
    "AttackResult",
    "CoAttack",
    "ExhaustiveWordSwap",
    "GeometryAttack",
    "IndependentAttack",
    "InvisibleCharacters",
    "JointObjective",
    "RandomNoise",
    "SetGuidedAttack",
    "SquareAttack",
    "SynonymTable",
    "ThreatModel",
    "Typos",
    "UniversalPerturbation",
    "WordSwapAttack",
    "frozen",
    "select_rows",
]
