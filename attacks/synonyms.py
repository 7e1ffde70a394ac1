"""Where the word attack's substitutes come from."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .threat_model import WordEdits

_SLICE = 256  # words compared with all others at once: 65,000 words take 67 MB

STOP_WORDS = frozenset(
    """
    a about above across after again against all also am an and another any anybody anyone anything are around
    as at be because been before behind being below beneath beside besides between beyond both but by can
    cannot could did do does doing done down during each either else enough ever every everybody everyone
    everything few for from further had has have having he her here hers herself him himself his how however i
    if in inside into is it its itself just least less many may me might mine more most much must my myself
    near neither never no nobody none nor not nothing now of off often on once one only onto or other others
    our ours ourselves out outside over own per quite rather same shall she should since so some somebody
    someone something still such than that the their theirs them themselves then there these they this those
    though through throughout thus till to together too toward towards under underneath until up upon us very
    was we were what whatever when where whether which while who whoever whole whom whose why will with within
    without would yes yet you your yours yourself yourselves
    """.split()
)
"""Function words, negations and pronouns: never attacked, never substituted."""

Candidates: TypeAlias = Sequence[tuple[str, float]]


class SynonymTable:
    """Substitutes of each word with their cosine, best first.

    Args:
        entries: Lower-case word to its substitutes `(word, cosine)`.
    """

    kind: WordEdits = "synonyms"

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
        return cls(_packaged()["candidates"])

    @classmethod
    def from_vectors(
        cls, path: str | PathLike[str], max_candidates: int = 10, min_cosine: float = 0.5
    ) -> "SynonymTable":
        """Nearest neighbours in word vectors of your own, such as the thesis's counter-fitted ones.

        The file has one word per line, followed by its values, separated by spaces; a first line of two whole
        numbers (word2vec's header) is skipped. Stop words, words that are not alphabetic, and words whose
        exchange changes what a caption claims (colours, numbers, genders, directions, times) are left out, as
        keys and as substitutes. Antonyms and siblings are not: counter-fitted vectors keep them apart,
        ordinary word vectors do not.

        Memory: the vectors in float32 and one slice of their similarities; never all pairs.

        Args:
            path: The file, UTF-8.
            max_candidates: Most neighbours kept per word.
            min_cosine: Neighbours below this cosine are not kept.

        Raises:
            ValueError: If a line does not have as many values as the first one, or a value is not a finite
                number.
        """
        words, vectors = _read_vectors(Path(path))
        entries: dict[str, list[tuple[str, float]]] = {}
        wanted = min(max_candidates, len(words) - 1)
        for first in tqdm(range(0, len(words), _SLICE), desc="neighbours", unit_scale=_SLICE, unit="word"):
            similarities = vectors[first : first + _SLICE] @ vectors.T  # (slice, words)
            rows = torch.arange(len(similarities))
            similarities[rows, first + rows] = -torch.inf  # a word is not its own substitute
            cosines, neighbours = similarities.topk(wanted, dim=1)
            for word, row, values in zip(words[first:], neighbours.tolist(), cosines.tolist(), strict=False):
                pairs = zip(row, values, strict=True)
                if found := [(words[other], cosine) for other, cosine in pairs if cosine >= min_cosine]:
                    entries[word] = found
        return cls(entries)

    def candidates(self, word: str) -> list[tuple[str, float]]:
        """Substitutes of a word, in any casing, with their cosine, best first; empty if there are none."""
        return list(self._entries.get(word.lower(), ()))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the content."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        canonical: Any = json.dumps(self._entries, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def match_case(substitute: str, word: str) -> str:
    """Write `substitute` in the casing of `word`: `Dog` gives `Hound`, `DOG` gives `HOUND`."""
    if len(word) > 1 and word.isupper():
        return substitute.upper()
    return substitute.capitalize() if word[:1].isupper() else substitute


def protected_words() -> frozenset[str]:
    """Lower-case words whose exchange changes what a text claims: colours, numbers, genders, directions."""
    return frozenset(_packaged()["protected"])


@lru_cache(maxsize=1)
def _packaged() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("synonyms.json").read_text(encoding="utf-8"))


def _read_vectors(path: Path) -> tuple[list[str], Tensor]:
    """Lower-case words that may be exchanged, and their vectors scaled to length one, `(words, dim)`."""
    excluded = STOP_WORDS | protected_words()
    rows: dict[str, np.ndarray] = {}
    for number, word, vector in _vector_lines(path):
        norm = np.linalg.norm(vector)
        if not (np.isfinite(norm) and norm > 0):
            raise ValueError(
                f"{path}, line {number}: the vector of {word!r} is zero or not finite; remove the line."
            )
        if word.isalpha() and word.lower() not in excluded:
            rows.setdefault(
                word.lower(), vector / norm
            )  # the first of "Dog" and "dog", the more frequent one
    if len(rows) < 2:
        raise ValueError(
            f"{path}: expected at least two alphabetic words that are not stop words, got {len(rows)}."
        )
    return list(rows), torch.from_numpy(np.stack(list(rows.values())))


def _vector_lines(path: Path) -> Iterator[tuple[int, str, np.ndarray]]:
    """(line number, word, float32 vector) of every line, all of the same length."""
    expected = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                word, *values = line.decode("utf-8").split()
                vector = np.array(values, dtype=np.float32)
            except ValueError as error:  # also what decoding raises, and an empty line
                raise ValueError(
                    f"{path}, line {number}: {error}; expected a word followed by numbers, in UTF-8."
                ) from error
            if number == 1 and len(values) == 1 and word.isdecimal():
                continue  # word2vec's header: number of words, length of the vectors
            if expected is None:
                expected = len(vector)
            if len(vector) != expected or expected == 0:
                raise ValueError(
                    f"{path}, line {number}: expected {expected or 'some'} values after the word {word!r}, "
                    f"got {len(vector)}. Every line must be a word and its vector, separated by spaces."
                )
            yield number, word, vector
