"""The random draws of attacks within training."""

import random
from typing import Any

import torch


def seed_attack(attack: Any, seed: int, place: tuple[int, ...]) -> None:
    """Make an attack's draws a function of seed and place, so that a resumed run repeats them.

    Args:
        attack: Seeded if it has a `generator`.
        seed: Of the run.
        place: Step, micro-batch and process.
    """
    generator: torch.Generator | None = getattr(attack, "generator", None)
    if generator is not None:
        generator.manual_seed(random.Random(f"{seed} {place}").getrandbits(63))
