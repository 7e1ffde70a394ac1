"""Word attacks that look at the loss alone: greedy search, and the exhaustive search that checks it."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from .base import AttackResult, Batch, JointObjective, Objective, isolated_rng
from .threat_model import Access
from .word_edits import Sentence, Variant
from .word_search import Substitutes, Trial, WordAttack, WordSearch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WordOrder: TypeAlias = Literal["gradient", "random"]


class WordSwapAttack(WordAttack):
    """Go through the words of a text once; give each the substitute with the largest loss, if the loss rises.

    The greedy search of TextFooler (Jin et al., arXiv:1907.11932), which ranks the words once, on the clean
    text. It ranks them by how much the loss falls when a word is deleted; here the order is that of the norm
    of the loss's gradient at the word's embedding (pieces averaged; white box, one backward instead of one
    forward per word), or random (black box, and a check on the ranking: an informed order that does no better
    than chance points at gradients that say nothing).

    Words, substitutes and the budget: see `WordAttack`. Deterministic: a random order depends on the
    generator's seed and on the text, not on the other rows, nor on earlier calls.

    Cost in example rows, for a batch of B: B forwards for the clean batch, one forward per substitute tried,
    and, in gradient order, one backward per attackable text; a `CleanPass` spares what it has done.

    Args:
        tokenizer: A fast tokenizer, the one that made `input_ids`.
        substitutes: Where substitutes come from.
        order: `"gradient"` or `"random"`.
        max_change_share: Budget, a share of the words of a text, in [0, 1], or None.
        max_changed_words: Budget, a number of words, or None.
        max_candidates: Most substitutes tried per word.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        candidate_batch_size: Most sentences scored in one forward; bounds the memory, not the result.
        generator: Its seed decides the random order. Without one, the seed is 0.

    Raises:
        ValueError: If an argument is out of range or the tokenizer cannot map tokens to words.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        substitutes: Substitutes,
        order: WordOrder = "gradient",
        max_change_share: float | None = 0.2,
        max_changed_words: int | None = None,
        max_candidates: int = 5,
        min_cosine: float = 0.5,
        max_length: int = 40,
        candidate_batch_size: int = 128,
        generator: torch.Generator | None = None,
    ) -> None:
        if order not in get_args(WordOrder):
            raise ValueError(f"order is {order!r}; expected one of {', '.join(get_args(WordOrder))}.")
        self.order = order
        self.access: Access = "white-box" if order == "gradient" else "black-box"
        self.seed = 0 if generator is None else generator.initial_seed()
        super().__init__(
            tokenizer,
            substitutes,
            max_candidates=max_candidates,
            min_cosine=min_cosine,
            max_change_share=max_change_share,
            max_changed_words=max_changed_words,
            max_length=max_length,
            candidate_batch_size=candidate_batch_size,
        )

    def __call__(self, batch: Batch, objective: Objective | JointObjective) -> AttackResult:
        """Attack the texts of a batch.

        Args:
            batch: Must hold `text` (strings) and `input_ids`, `attention_mask` (their encoding).
            objective: Maximised. In gradient order a `JointObjective`; in random order anything from a batch
                to a loss per example `(batch,)`.

        Returns:
            The batch with adversarial `text` and its encoding, padded to the longest text, and the cost.

        Raises:
            ValueError: If the texts are missing or `input_ids` is not their encoding.
            TypeError: If gradient order is asked of an objective that cannot be taken apart at the words.
        """
        search = WordSearch(self, batch, objective)
        sentences = search.sentences
        with isolated_rng(batch["input_ids"]):
            if self.order == "gradient":
                loss_before = search.start()
            else:
                search.score(sentences)
                loss_before = torch.stack([sentence.loss for sentence in sentences])
                for sentence in sentences:
                    sentence.influence = self._random_order(sentence)
            while trials := [trial for sentence in sentences if (trial := search.next_trial(sentence))]:
                search.accept_best(trials)
        return search.result(loss_before)

    def _random_order(self, sentence: Sentence) -> dict[int, float]:
        def draw(index: int) -> float:
            key = f"{self.seed} {index} {sentence.clean.text}".encode()
            return float(int.from_bytes(hashlib.sha256(key).digest()[:6]))  # 48 bits: exact as a float

        return {index: draw(index) for index in sentence.untried}


class ExhaustiveWordSwap(WordAttack):
    """Score every combination of substitutes for up to one or two words and keep the largest loss.

    The oracle of the word attacks: within the same budget no other attack with the same substitutes finds a
    larger loss. (A pair is tried if both substitutes are allowed on their own: see `WordAttack`.) Black box,
    deterministic; of equal losses the fewest changes win.

    Cost in example rows, for a batch of B: B forwards, plus per text one forward for each of the S
    substitutes of its words and, where the budget is two, one for each pair of substitutes of different
    words, (S^2 - sum of s_i^2) / 2 with s_i substitutes of word i: for ten words with five, 50 and 1125.

    Args:
        tokenizer: A fast tokenizer, the one that made `input_ids`.
        substitutes: Where substitutes come from.
        max_changed_words: Budget, one or two words.
        max_change_share: Budget, a share of the words of a text, in [0, 1], or None.
        max_candidates: Most substitutes tried per word.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        candidate_batch_size: Most sentences scored in one forward; bounds the memory, not the result.

    Raises:
        ValueError: If an argument is out of range or the tokenizer cannot map tokens to words.
    """

    access: Access = "black-box"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        substitutes: Substitutes,
        max_changed_words: int = 1,
        max_change_share: float | None = None,
        max_candidates: int = 5,
        min_cosine: float = 0.5,
        max_length: int = 40,
        candidate_batch_size: int = 128,
    ) -> None:
        if max_changed_words not in (1, 2):
            raise ValueError(
                f"max_changed_words is {max_changed_words}; an exhaustive search takes 1 or 2, because its "
                "cost is multiplied by the number of all substitutes with every further word. Use "
                "WordSwapAttack for larger budgets."
            )
        super().__init__(
            tokenizer,
            substitutes,
            max_candidates=max_candidates,
            min_cosine=min_cosine,
            max_change_share=max_change_share,
            max_changed_words=max_changed_words,
            max_length=max_length,
            candidate_batch_size=candidate_batch_size,
        )

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack the texts of a batch.

        Args:
            batch: Must hold `text` (strings) and `input_ids`, `attention_mask` (their encoding).
            objective: Batch to loss per example `(batch,)`, to be maximised.

        Returns:
            The batch with adversarial `text` and its encoding, padded to the longest text, and the cost.

        Raises:
            ValueError: If the texts are missing or `input_ids` is not their encoding.
        """
        search = WordSearch(self, batch, objective)
        with isolated_rng(batch["input_ids"]):
            search.score(search.sentences)
            loss_before = torch.stack([sentence.loss for sentence in search.sentences])
            trials = [Trial(sentence, _combinations(sentence, search)) for sentence in search.sentences]
            search.accept_best([trial for trial in trials if trial.variants])
        return search.result(loss_before)


def _combinations(sentence: Sentence, search: WordSearch) -> list[Variant]:
    """All texts within the budget of one or two words, the singles first."""
    by_word = [search.variants(sentence, index) for index in sorted(sentence.untried)]
    singles = [variant for variants in by_word for variant in variants]
    if sentence.budget < 2:
        return singles
    return [*singles, *_pairs(sentence, search, by_word)]


def _pairs(sentence: Sentence, search: WordSearch, by_word: list[list[Variant]]) -> Iterator[Variant]:
    """Texts with two words changed where the tokens of all others stay (truncation may move them)."""
    pairs = [
        sentence.write((*first.edits, *second.edits))
        for some, others in itertools.combinations(by_word, 2)
        for first, second in itertools.product(some, others)
    ]
    if pairs:
        for pair, ids in zip(pairs, search.token_ids([pair.text for pair in pairs]), strict=True):
            if ids == pair.ids:
                yield pair
