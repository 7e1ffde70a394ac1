"""Geometry-inspired word substitution: the text half of RMCL's inner maximisation."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import AttackResult, Batch, JointObjective, check_losses, isolated_rng
from .word_edits import Variant
from .word_search import Substitutes, Trial, WordAttack, WordSearch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GeometryAttack(WordAttack):
    """Replace words by synonyms so that the joint embedding moves up the gradient of the loss (RMCL thesis,
    2.5.2).

    Every loop does, for all unfinished examples of the batch at once: take v, the gradient of the loss with
    respect to the joint embedding q, and the gradient with respect to every word (word pieces averaged); take
    the word with the largest gradient norm that is not a stop word, was not tried before and has substitutes;
    embed the sentence with each substitute; choose the substitute whose displacement of q projects furthest
    along v; keep it if the loss rises.

    The thesis takes the absolute value of the projection, which also chooses substitutes that lower the loss;
    here the projection is signed, and a substitute that does not raise the loss is dropped (its word is not
    tried again).

    White box, deterministic. Words, substitutes and the budget: see `WordAttack`.

    Cost in example rows, for a batch of B: B forwards and one backward per attackable text for the clean
    batch, or nothing where a `CleanPass` has been run; one forward per substitute tried; one forward and one
    backward per accepted change after which a word is left to try.

    Args:
        tokenizer: A fast tokenizer, the one that made `input_ids`.
        synonyms: Where substitutes come from.
        max_loops: Most words tried per text.
        max_candidates: Most substitutes tried per word.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
        max_change_share: Budget, a share of the words of a text, in [0, 1], or None.
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        candidate_batch_size: Most sentences embedded in one forward; bounds the memory, not the result.
        max_changed_words: Budget, a number of words, or None.

    Raises:
        ValueError: If an argument is out of range or the tokenizer cannot map tokens to words.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        synonyms: Substitutes,
        max_loops: int = 10,
        max_candidates: int = 5,
        min_cosine: float = 0.5,
        max_change_share: float | None = 0.2,
        max_length: int = 40,
        candidate_batch_size: int = 128,
        max_changed_words: int | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            synonyms,
            max_candidates=max_candidates,
            min_cosine=min_cosine,
            max_change_share=max_change_share,
            max_changed_words=max_changed_words,
            max_length=max_length,
            candidate_batch_size=candidate_batch_size,
        )
        if max_loops < 1:
            raise ValueError(f"max_loops is {max_loops}; expected at least 1.")
        self.max_loops = max_loops

    def __call__(self, batch: Batch, objective: JointObjective) -> AttackResult:
        """Attack the texts of a batch.

        Args:
            batch: Must hold `text` (strings) and `input_ids`, `attention_mask` (their encoding).
            objective: A `JointObjective`; its loss is maximised.

        Returns:
            The batch with adversarial `text` and its encoding, padded to the longest text, and the cost.

        Raises:
            ValueError: If the texts are missing or `input_ids` is not their encoding.
            TypeError: If the objective cannot be taken apart at the joint embedding.
        """
        search = WordSearch(self, batch, objective)
        sentences = search.sentences
        with isolated_rng(batch["input_ids"]):
            loss_before = search.start()
            for _ in range(self.max_loops):
                search.differentiate(
                    [sentence for sentence in sentences if sentence.stale and sentence.untried]
                )
                trials = [trial for sentence in sentences if (trial := search.next_trial(sentence))]
                if not trials:
                    break
                for trial, (variant, loss) in zip(trials, _furthest(trials, search, objective), strict=True):
                    if loss > trial.sentence.loss:
                        trial.sentence.accept(variant, loss)
        return search.result(loss_before)


def _furthest(
    trials: list[Trial], search: WordSearch, objective: JointObjective
) -> list[tuple[Variant, Tensor]]:
    """Each trial's variant that moves the embedding furthest up the gradient, and its loss."""
    rows = [trial.sentence.row for trial in trials for _ in trial.variants]
    variants = [variant for trial in trials for variant in trial.variants]
    chosen, embedded = [], []
    embeddings = search.evaluate(objective.embed, rows, variants).split(
        [len(trial.variants) for trial in trials]
    )
    for trial, candidates in zip(trials, embeddings, strict=True):
        displacement = candidates - trial.sentence.embedding  # (variants, dim)
        # Dividing by the norm of the direction would not change which one is largest.
        best = int((displacement @ trial.sentence.direction).argmax())
        chosen.append(trial.variants[best])
        embedded.append(candidates[best])
    batch = search.rows([trial.sentence.row for trial in trials], [variant.text for variant in chosen])
    with torch.no_grad():
        losses = check_losses(objective.loss(torch.stack(embedded), batch), len(trials))
    return list(zip(chosen, losses, strict=True))
