"""The inner maximisation: threat models, and attacks on pixels and words that take any objective."""

from .base import Attack, AttackResult, JointObjective, frozen, select_rows
from .geometry import GeometryAttack
from .joint import IndependentAttack
from .pgd import PGD
from .synonyms import SynonymTable
from .threat_model import ThreatModel

__all__ = [
    "PGD",
    "Attack",
    "AttackResult",
    "GeometryAttack",
    "IndependentAttack",
    "JointObjective",
    "SynonymTable",
    "ThreatModel",
    "frozen",
    "select_rows",
]
