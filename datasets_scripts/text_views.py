"""Other wordings of a caption: ranked paraphrases computed beforehand, else EDA.

EDA is easy data augmentation (Wei and Zou, arXiv:1901.11196). All of its draws come from the generator that
is given, never from the global random state.
"""

import random
import string
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Synonyms: TypeAlias = Callable[[str], Sequence[str]]
"""A word to words that may stand for it; none for words that must not change, such as stop words."""

ALPHA = 0.1  # share of the words that an operation changes, and probability of a deletion; the paper's choice


def text_view(
    sentence: str, views: Sequence[str] | None, epoch: int, synonyms: Synonyms, draws: random.Random
) -> str:
    """Another wording of a sentence, and the sentence itself only if there is none.

    Args:
        sentence: At least one word.
        views: Its paraphrases, closest first, as `rank_views` gives them. Epoch 0 takes the first, and epochs
            beyond the last one the last. None or empty: `eda`.
        epoch: Counted from 0.
        synonyms: For `eda`.
        draws: For `eda`.
    """
    others = [view for view in views or () if not _same(view, sentence)]
    return others[min(epoch, len(others) - 1)] if others else eda(sentence, synonyms, draws)


def eda(sentence: str, synonyms: Synonyms, draws: random.Random) -> str:
    """One of EDA's four operations, drawn among those that change the sentence; unchanged if none does.

    Punctuation at the end stays there. A deletion or a swap can change what a sentence says; that is the
    price of an augmentation without a language model.
    """
    words, end = _split(sentence)
    for operation in draws.sample([synonym_replacement, random_insertion, random_swap, random_deletion], 4):
        changed = operation(words, synonyms, draws)
        if changed != words:
            return " ".join(changed) + end
    return sentence


def synonym_replacement(words: list[str], synonyms: Synonyms, draws: random.Random) -> list[str]:
    """Replace n = max(1, floor(0.1 length)) words that have synonyms, or all such words if they are fewer."""
    places = [place for place, word in enumerate(words) if synonyms(_core(word))]
    changed = list(words)
    for place in draws.sample(places, min(_count(words), len(places))):
        core = _core(words[place])
        changed[place] = words[place].replace(core, draws.choice(synonyms(core)))  # keeps a comma
    return changed


def random_insertion(words: list[str], synonyms: Synonyms, draws: random.Random) -> list[str]:
    """Insert n synonyms of words of the sentence, anywhere; none if no word has synonyms."""
    found = [choices for word in words if (choices := synonyms(_core(word)))]
    changed = list(words)
    for _ in range(_count(words) if found else 0):
        changed.insert(draws.randint(0, len(changed)), draws.choice(draws.choice(found)))
    return changed


def random_swap(words: list[str], synonyms: Synonyms, draws: random.Random) -> list[str]:
    """Swap two words, n times."""
    changed = list(words)
    for _ in range(_count(words) if len(words) > 1 else 0):
        one, other = draws.sample(range(len(words)), 2)
        changed[one], changed[other] = changed[other], changed[one]
    return changed


def random_deletion(words: list[str], synonyms: Synonyms, draws: random.Random) -> list[str]:
    """Delete every word with probability 0.1, at least one (as the thesis's code does) and never all."""
    if len(words) < 2:
        return list(words)
    deleted = {place for place in range(len(words)) if draws.random() < ALPHA}
    deleted = deleted or {draws.randrange(len(words))}
    if len(deleted) == len(words):
        deleted.remove(draws.randrange(len(words)))
    return [word for place, word in enumerate(words) if place not in deleted]


def rank_views(sentence: str, candidates: Sequence[str], embed: Callable[[list[str]], Any]) -> list[str]:
    """Paraphrases of a sentence by falling cosine with it, without repetitions and the sentence itself.

    Makes the column `views`, one list per caption, that `text_view` reads; the thesis ranks five paraphrases
    by PEGASUS and five by EDA with a sentence-BERT (section 2.5.1).

    Args:
        sentence: The original.
        candidates: Paraphrases from anywhere.
        embed: Texts to vectors `(texts, dim)`, such as the `encode` of a `SentenceTransformer`.

    Raises:
        ValueError: If `embed` does not return one vector per text.

    Examples:
        >>> def views(row):
        ...     return {"views": [rank_views(text, paraphrase(text), embed) for text in row["captions"]]}
        >>> corpus = corpus.map(views)  # doctest: +SKIP
    """
    others = [view for view in dict.fromkeys(candidates) if not _same(view, sentence)]
    if not others:
        return []
    vectors = np.asarray(embed([sentence, *others]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(others) + 1:
        raise ValueError(
            f"embed must return one vector per text, shape ({len(others) + 1}, dim), got {vectors.shape}."
        )
    cosines = vectors[1:] @ vectors[0] / np.linalg.norm(vectors[1:], axis=1).clip(min=1e-12)
    return [others[place] for place in np.argsort(-cosines, kind="stable")]


def _same(one: str, other: str) -> bool:
    """Equal but for casing, spaces and the punctuation at the end."""
    return [word.lower() for word in _split(one)[0]] == [word.lower() for word in _split(other)[0]]


def _split(sentence: str) -> tuple[list[str], str]:
    """Words, and the punctuation after the last one."""
    body = sentence.rstrip(string.punctuation + string.whitespace)
    return body.split(), sentence[len(body) :]


def _core(word: str) -> str:
    return word.strip(string.punctuation)


def _count(words: list[str]) -> int:
    return max(1, int(ALPHA * len(words)))
