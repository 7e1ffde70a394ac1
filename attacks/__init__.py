"""The inner maximisation: threat models, and attacks on pixels and words that take any objective."""

from .base import Attack, AttackResult, JointObjective, frozen, select_rows
from .geometry import GeometryAttack
from .invisible_characters import InvisibleCharacters
from .joint import AlternatingAttack, CoAttack, IndependentAttack, SetGuidedAttack
from .pgd import PGD
from .synonyms import SynonymTable
from .threat_model import ThreatModel
from .typos import Typos
from .word_swap import ExhaustiveWordSwap, WordSwapAttack

__all__ = [
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
    "SetGuidedAttack",
    "SynonymTable",
    "ThreatModel",
    "Typos",
    "WordSwapAttack",
    "frozen",
    "select_rows",
]
