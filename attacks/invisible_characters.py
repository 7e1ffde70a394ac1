"""Words that look the same to a reader, and are others to a tokenizer."""

import hashlib
from itertools import chain, zip_longest

from .threat_model import WordEdits

ZERO_WIDTH = ("\u200b", "\u200c", "\u200d", "\u2060", "\u200e")
"""Zero-width space, non-joiner and joiner, word joiner, left-to-right mark."""

HOMOGLYPHS = dict(
    zip(
        "acdeghijlopqsvwxyABCEHIJKMOPSTXY",
        # Cyrillic, but for the script g, the Greek nu and the Greek Y.
        "\u0430\u0441\u0501\u0435\u0261\u04bb\u0456\u0458\u04cf\u043e\u0440\u051b\u0455\u03bd\u051d\u0445\u0443"
        "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425\u03a5",
        strict=True,
    )
)
"""Letters to letters of other scripts that common typefaces draw alike."""


class InvisibleCharacters:
    """A word with one character that cannot be seen: a letter of another script that looks the same, or
    a character of no width between two letters (Boucher et al., arXiv:2106.09898).

    The paper's other two kinds, deletions (a letter and a backspace) and reorderings (directional overrides),
    are left out: whether they can be seen depends on the program that draws the text. What a tokenizer
    strips, such as BERT's every character of no width, changes no token: attacks do not try those variants,
    so a model behind such a tokenizer meets the look-alikes only.

    A source of substitutes for any attack on words, with a cosine of one throughout, because there is no
    space to measure it in.
    """

    kind: WordEdits = "invisible"

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the characters."""
        return hashlib.sha256(f"{sorted(HOMOGLYPHS.items())} {ZERO_WIDTH}".encode()).hexdigest()[:16]

    def candidates(self, word: str) -> list[tuple[str, float]]:
        """All variants of a word with one such character, with cosine one: look-alikes and characters of no
        width in turns.
        """
        alike = [
            word[:place] + HOMOGLYPHS[letter] + word[place + 1 :]
            for place, letter in enumerate(word)
            if letter in HOMOGLYPHS
        ]
        # Every character once before any place comes twice.
        padded = [
            word[:place] + ZERO_WIDTH[(place + turn) % len(ZERO_WIDTH)] + word[place:]
            for turn in range(len(ZERO_WIDTH))
            for place in range(1, len(word))
        ]
        return [(variant, 1.0) for variant in chain(*zip_longest(alike, padded)) if variant is not None]
