"""Misspellings as substitutes for words."""

import hashlib
from collections.abc import Callable, Iterator

from .threat_model import WordEdits

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Typos:
    """One misspelling per word that a reader sees through: two neighbouring letters swapped, a letter left
    out, a letter doubled, or a key beside the right one (Pruthi et al., arXiv:1905.11268).

    As in that paper, the first and the last letter stay, and words of fewer than four letters stay whole:
    readers recognise a word by its ends. Its insertions are of any letter; here the letter is doubled, the
    commonest slip. Nothing keeps a misspelling from being another word (`form` for `from`), since the paper's
    attacker has no dictionary either.

    A source of substitutes for any attack on words, with a cosine of one throughout, because there is no
    space to measure it in.
    """

    kind: WordEdits = "typos"

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the rules."""
        rules = f"{[rule.__name__ for rule in _RULES]} {_ROWS} {_MIN_LETTERS}"
        return hashlib.sha256(rules.encode()).hexdigest()[:16]

    def candidates(self, word: str) -> list[tuple[str, float]]:
        """All misspellings of a word, with cosine one.

        The kinds take turns, and each starts at another letter, so that the first few are of every kind and
        spread over the word.
        """
        if len(word) < _MIN_LETTERS:
            return []
        inner = range(1, len(word) - 1)
        found: dict[str, None] = {}
        for turn in range(len(inner)):
            for number, rule in enumerate(_RULES):
                place = inner[(turn + number * len(inner) // len(_RULES)) % len(inner)]
                found.update(dict.fromkeys(rule(word, place)))
        found.pop(word, None)
        return [(misspelling, 1.0) for misspelling in found]


_MIN_LETTERS = 4


def _swap(word: str, place: int) -> Iterator[str]:
    if place + 2 < len(word):  # the last letter stays
        yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _leave_out(word: str, place: int) -> Iterator[str]:
    yield word[:place] + word[place + 1 :]


def _double(word: str, place: int) -> Iterator[str]:
    yield word[: place + 1] + word[place:]


def _miss_the_key(word: str, place: int) -> Iterator[str]:
    letter = word[place]
    for row in _ROWS:
        column = row.find(letter.lower())
        if column >= 0:
            for key in row[max(column - 1, 0) : column] + row[column + 1 : column + 2]:
                yield word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :]


_RULES: tuple[Callable[[str, int], Iterator[str]], ...] = (_swap, _leave_out, _double, _miss_the_key)
