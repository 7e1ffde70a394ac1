"""Reader for the files of WordNet 3.0, for the script that builds the synonym table. Needs no NLTK."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

SynsetId: TypeAlias = tuple[str, int]
"""Part of speech (n, v, a, r) and offset in its data file."""


@dataclass(frozen=True)
class Pointer:
    """A relation of WordNet (wndb(5WN)): `symbol` such as `!` antonym, `@` hypernym, `&` similar to, `;u`
    usage.
    """

    symbol: str
    target: SynsetId
    source_word: int  # 1-based position in the synset; 0 is the whole synset
    target_word: int


@dataclass(frozen=True)
class Synset:
    """A set of words with one meaning."""

    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]

    def targets(self, *symbols: str) -> Iterator[SynsetId]:
        """Synsets that one of these relations leads to."""
        return (pointer.target for pointer in self.pointers if pointer.symbol in symbols)


class WordNet:
    """Synsets, the senses of each word with their frequency in WordNet's tagged texts, and irregular forms.

    Args:
        folder: Holds data.*, index.*, *.exc and cntlist.rev, as Debian's `wordnet-base` installs them.
    """

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[SynsetId, Synset] = {}
        self.senses: dict[
            tuple[str, str], list[SynsetId]
        ] = {}  # (lower-case lemma, pos), most frequent first
        self.irregular: dict[str, dict[str, list[str]]] = {}  # pos -> form -> lemmas
        for pos, name in _FILES.items():
            for line in _entries(folder / f"data.{name}"):
                offset, synset = _parse_synset(line)
                self.synsets[pos, offset] = synset
            for line in _entries(folder / f"index.{name}"):
                fields = line.split()
                offsets = fields[-int(fields[2]) :]
                self.senses[fields[0], pos] = [(pos, int(offset)) for offset in offsets]
            exceptions = (line.split() for line in (folder / f"{name}.exc").read_text().splitlines())
            self.irregular[pos] = {form: lemmas for form, *lemmas in exceptions}
        self._counts = _read_counts(folder / "cntlist.rev")

    def count(self, lemma: str, pos: str, sense: int) -> int:
        """How often a sense (0 = the first) was seen in WordNet's tagged texts."""
        return self._counts.get((lemma, pos, sense + 1), 0)

    def below(self, roots: Iterable[SynsetId], *symbols: str) -> set[SynsetId]:
        """All synsets reachable from the roots, with them, along these relations."""
        reached, queue = set(), list(roots)
        while queue:
            synset = queue.pop()
            if synset not in reached:
                reached.add(synset)
                queue.extend(self.synsets[synset].targets(*symbols))
        return reached


def _entries(path: Path) -> Iterator[str]:
    """Lines of a data or index file after its licence, which is indented."""
    return (line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("  "))


def _parse_synset(line: str) -> tuple[int, Synset]:
    fields = line.partition(" | ")[0].split()  # what follows is the gloss
    num_words = int(fields[3], 16)
    # An adjective may carry its position in parentheses: "galore(ip)".
    words = tuple(word.partition("(")[0] for word in fields[4 : 4 + 2 * num_words : 2])
    start = 4 + 2 * num_words + 1
    num_pointers = int(fields[start - 1])
    pointers = []
    for index in range(num_pointers):
        symbol, offset, pos, ends = fields[start + 4 * index : start + 4 * index + 4]
        target = (pos.replace("s", "a"), int(offset))
        pointers.append(Pointer(symbol, target, int(ends[:2], 16), int(ends[2:], 16)))
    return int(fields[0]), Synset(words, tuple(pointers))


def _read_counts(path: Path) -> dict[tuple[str, str, int], int]:
    """(lemma, pos, sense number) to count, from lines such as `dog%1:05:00:: 1 42`."""
    counts: dict[tuple[str, str, int], int] = defaultdict(int)
    for line in path.read_text(encoding="latin-1").splitlines():
        key, number, count = line.split()
        lemma, _, place = key.partition("%")
        pos = "nvara"[int(place[0]) - 1]  # 5 is an adjective that is similar to another one
        counts[lemma, pos, int(number)] += int(count)
    return counts
