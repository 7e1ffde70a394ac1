"""What the words of a vocabulary may mean, by WordNet: senses, inflections, synonyms and conflicts."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from .wordnet_files import SynsetId, WordNet

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
