"""Where the word attack's substitutes come from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_WORDS = frozenset(
    """a about above across after again against all also am an and another any anybody anyone anything are around as at
    be because been before behind being below beneath beside besides between beyond both but by can cannot could did do
    does doing done down during each either else enough ever every everybody everyone everything few for from further
    had has have having he her here hers herself him himself his how however i if in inside into is it its itself just
    least less many may me might mine more most much must my myself near neither never no nobody none nor not nothing
    now of off often on once one only onto or other others our ours ourselves out outside over own per quite rather
    same shall she should since so some somebody someone something still such than that the their theirs them
    themselves then there these they this those though through throughout thus till to together too toward towards
    under underneath until up upon us very was we were what whatever when where whether which while who whoever whole
    whom whose why will with within without would yes yet you your yours yourself yourselves""".split()
)
"""Function words, negations and pronouns: never attacked, never substituted."""

Candidates = Sequence[tuple[str, float]]


class SynonymTable:
    """Substitutes of each word with their cosine, best first.

    Args:
        entries: Lower-case word to its substitutes `(word, cosine)`.
    """

    def __init__(self, entries: Mapping[str, Candidates]) -> None:
        self._entries = {
            word: sorted(
                ((other, float(cosine)) for other, cosine in candidates), key=lambda pair: (-pair[1], pair[0])
            )
            for word, candidates in entries.items()
        }

    @classmethod
    def load(cls) -> "SynonymTable":
        """The table that comes with the package; see SYNONYMS.md beside it for its making and its limits."""
        path = Path(__file__).with_name("synonyms.json")
        return cls(json.loads(path.read_text(encoding="utf-8"))["candidates"])

    def candidates(self, word: str) -> list[tuple[str, float]]:
        """Substitutes of a word, in any casing, with their cosine, best first; empty if there are none."""
        return list(self._entries.get(word.lower(), ()))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the content."""
        canonical: Any = json.dumps(self._entries, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def match_case(substitute: str, word: str) -> str:
    """Write `substitute` in the casing of `word`: `Dog` gives `Hound`, `DOG` gives `HOUND`."""
    if len(word) > 1 and word.isupper():
        return substitute.upper()
    return substitute.capitalize() if word[:1].isupper() else substitute
