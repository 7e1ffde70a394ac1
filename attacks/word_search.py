"""What every attack on words shares: which words of a text may change, into what, and what that costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from .base import AttackResult, Batch, JointObjective, Objective, PairGradients, check_losses, select_rows
from .synonyms import STOP_WORDS, match_case
from .text_encoding import check_encoding, encode_texts, token_ids
from .threat_model import Access, ThreatModel, WordEdits
from .word_edits import Edit, Sentence, Variant, Word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Substitutes(Protocol):
    """What may stand in place of a word: synonyms, misspellings, or look-alikes."""

    @property
    def kind(self) -> WordEdits:
        """What the threat model calls these substitutes."""
        ...

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the substitutes."""
        ...

    def candidates(self, word: str) -> list[tuple[str, float]]:
        """Substitutes of a word as it is written, with their cosine to it in [-1, 1], best first."""
        ...


class WordAttack:
    """Base of the attacks on words: their options, and the threat model that follows from them.

    The attacks work on strings. Casing and punctuation around a word stay; the adversarial string is
    tokenised again, and only substitutes that leave the tokens of all other words alone, and change those of
    the word, are tried. Words that truncation hides, parts of hyphenated words and contractions are left out;
    so are, among synonyms, stop words and substitutes that the tokenizer cannot spell.

    Budget: at most `max_changed_words`, and at most `max_change_share` of the visible words, rounded down,
    but one word where the text has at least two that may be attacked: otherwise captions of up to four words,
    common in practice, could never be attacked. Under a share, a text with a single such word stays as it is
    unless it is long enough: its one substitution would replace all of it. Never more than
    `ThreatModel.word_budget`.

    Args:
        tokenizer: A fast tokenizer, the one that made `input_ids`.
        substitutes: Where substitutes come from.
        max_candidates: Most substitutes tried per word.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
        max_change_share: Budget, a share of the words of a text, in [0, 1], or None.
        max_changed_words: Budget, a number of words, or None.
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        candidate_batch_size: Most sentences scored in one forward; bounds the memory, not the result.

    Raises:
        ValueError: If an argument is out of range, both budgets are None, or the tokenizer cannot map tokens
            to words.
    """

    access: Access = "white-box"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        substitutes: Substitutes,
        max_candidates: int,
        min_cosine: float,
        max_change_share: float | None,
        max_changed_words: int | None,
        max_length: int,
        candidate_batch_size: int,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} cannot map tokens to words; load it with use_fast=True."
            )
        for name, value in (
            ("max_candidates", max_candidates),
            ("candidate_batch_size", candidate_batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if max_change_share is not None and not 0.0 <= max_change_share <= 1.0:
            raise ValueError(
                f"max_change_share is {max_change_share}; expected a share of the words, in [0, 1]."
            )
        if not -1.0 <= min_cosine <= 1.0:
            raise ValueError(f"min_cosine is {min_cosine}; expected a cosine, in [-1, 1].")
        self.tokenizer = tokenizer
        self.substitutes = substitutes
        self.max_candidates = max_candidates
        self.min_cosine = min_cosine
        self.max_change_share = max_change_share
        self.max_changed_words = max_changed_words
        self.max_length = max_length
        self.candidate_batch_size = candidate_batch_size
        _ = self.threat_model  # refuses what no attacker may do

    @property
    def threat_model(self) -> ThreatModel:
        """What this attack is allowed to do."""
        return ThreatModel(
            modality="text",
            word_edits=self.substitutes.kind,
            max_change_share=self.max_change_share,
            max_changed_words=self.max_changed_words,
            max_candidates=self.max_candidates,
            # Only a table of synonyms has a space in which words are near each other.
            min_cosine=self.min_cosine if self.substitutes.kind == "synonyms" else None,
            synonyms=self.substitutes.digest,
            access=self.access,
        )

    def substitutes_of(self, word: str) -> list[str]:
        """Up to `max_candidates` substitutes for a word as it is written, best cosine first."""
        candidates = [
            candidate for candidate, cosine in self.substitutes.candidates(word) if cosine >= self.min_cosine
        ]
        chosen = candidates[: self.max_candidates]
        if self.substitutes.kind == "synonyms":
            return [match_case(candidate, word) for candidate in chosen]
        return chosen


@dataclass
class Trial:
    """One sentence and what it may become."""

    sentence: Sentence
    variants: list[Variant]


class WordSearch:
    """A word attack, and an objective, on the rows of one batch; counts the rows that pass the encoder.

    Raises:
        ValueError: If the texts are missing or `input_ids` is not their encoding.
    """

    def __init__(self, attack: WordAttack, batch: Batch, objective: Objective) -> None:
        self.attack = attack
        self.tokenizer = attack.tokenizer
        self.batch = batch
        self.objective = objective
        self.forwards = self.backwards = 0
        check_encoding(self.tokenizer, batch, attack.max_length, type(attack).__name__)
        threat_model = attack.threat_model
        self.sentences = [self._open(row, text, threat_model) for row, text in enumerate(batch["text"])]

    def _open(self, row: int, text: str, threat_model: ThreatModel) -> Sentence:
        """Find the words of a text that may be attacked, and how many of them."""
        words, ids = self._locate_words(text)
        clean = Variant(text, ids, ())
        sentence = Sentence(row, clean, words, budget=0, untried=set(), now=clean)
        synonyms = self.attack.substitutes.kind == "synonyms"
        content = [
            index
            for index in range(len(words))
            if not synonyms or sentence.spelling(index).lower() not in STOP_WORDS
        ]
        budget, share = threat_model.word_budget(text), self.attack.max_change_share
        if share is not None:
            allowed = int(share * len(words) + 1e-9)  # 0.1 * 30 must not fall short of 3
            if share > 0 and len(content) >= 2:
                allowed = max(allowed, 1)
            budget = min(budget, allowed)
        sentence.budget = budget
        if budget:
            sentence.untried = {
                index
                for index in content
                if words[index].whole and self.attack.substitutes_of(sentence.spelling(index))
            }
        return sentence

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Text fields of a batch, padded to the longest text."""
        return encode_texts(self.tokenizer, texts, self.attack.max_length, self.batch)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, truncated, not padded."""
        return token_ids(self.tokenizer, texts, self.attack.max_length)

    def rows(self, rows: Sequence[int], texts: list[str]) -> dict[str, Any]:
        """Those rows of the batch with other texts."""
        return {**select_rows(self._beside, rows), **self.encode(texts)}

    @cached_property
    def _beside(self) -> Batch:
        """What texts are tried beside: the batch, its images embedded once and for all if that can be."""
        embed_images = getattr(self.objective, "embed_images", None)
        if embed_images is None:
            return self.batch
        with torch.no_grad():
            embedded = embed_images(self.batch)
        return {**{name: self.batch[name] for name in self.batch if name != "pixel_values"}, **embedded}

    def variants(self, sentence: Sentence, index: int) -> list[Variant]:
        """The text as it stands with each substitute of one word, where only that word's tokens differ."""
        word, head = sentence.words[index], sentence.first_token(sentence.words[index])
        substitutes = self.attack.substitutes_of(sentence.spelling(index))
        drafts = [
            sentence.write((*sentence.now.edits, Edit(word, substitute, ()))) for substitute in substitutes
        ]
        kept = []
        for draft, ids in zip(drafts, self.token_ids([draft.text for draft in drafts]), strict=True):
            tail = len(draft.ids) - head
            middle = ids[head : len(ids) - tail]
            rest_unchanged = ids[:head] + ids[len(ids) - tail :] == draft.ids
            # A misspelling may well be unknown to the tokenizer: that is its point.
            spelled = self.attack.substitutes.kind != "synonyms" or self.tokenizer.unk_token_id not in middle
            if middle and rest_unchanged and spelled and ids != sentence.now.ids:
                edit = Edit(word, draft.edits[-1].substitute, tuple(middle))
                kept.append(Variant(draft.text, ids, (*sentence.now.edits, edit)))
        return kept

    def next_trial(self, sentence: Sentence) -> Trial | None:
        """The most influential word that was not tried before, with the texts its substitutes give."""
        while sentence.untried:
            # The first of equals, so that the order is defined.
            index = max(sentence.untried, key=lambda index: (sentence.influence[index], -index))
            sentence.untried.remove(index)
            if variants := self.variants(sentence, index):
                return Trial(sentence, variants)
        return None

    def evaluate(
        self, function: Callable[[Batch], Tensor], rows: list[int], variants: list[Variant]
    ) -> Tensor:
        """What the encoder gives for rows with other texts, shape `(len(rows), ...)`."""
        parts, chunk = [], self.attack.candidate_batch_size
        # Texts of like length go together, so that little of a chunk is padding.
        order = sorted(range(len(rows)), key=lambda place: len(variants[place].ids))
        with torch.no_grad():
            for first in range(0, len(rows), chunk):
                places = order[first : first + chunk]
                batch = self.rows(
                    [rows[place] for place in places], [variants[place].text for place in places]
                )
                parts.append(function(batch))
        self.forwards += len(rows)
        if not parts:
            return torch.empty(0)
        found = torch.cat(parts)
        return found[torch.tensor(order, device=found.device).argsort()]

    def losses(self, rows: list[int], variants: list[Variant]) -> Tensor:
        """Loss of rows with other texts, shape `(len(rows),)`."""
        return self.evaluate(
            lambda batch: check_losses(self.objective(batch), len(batch["text"])), rows, variants
        )

    def score(self, sentences: list[Sentence]) -> None:
        """Loss of texts as they stand."""
        rows, variants = [sentence.row for sentence in sentences], [sentence.now for sentence in sentences]
        for sentence, loss in zip(sentences, self.losses(rows, variants), strict=True):
            sentence.loss = loss

    def accept_best(self, trials: list[Trial]) -> None:
        """Give each sentence its variant of largest loss, if that is above the loss it has."""
        rows = [trial.sentence.row for trial in trials for _ in trial.variants]
        variants = [variant for trial in trials for variant in trial.variants]
        losses = self.losses(rows, variants).split([len(trial.variants) for trial in trials])
        for trial, of_variants in zip(trials, losses, strict=True):
            best = int(of_variants.masked_fill(of_variants.isnan(), -torch.inf).argmax())
            if of_variants[best] > trial.sentence.loss:
                trial.sentence.accept(trial.variants[best], of_variants[best])

    def start(self) -> Tensor:
        """Loss of the clean texts `(batch,)`, and the gradients of those with a word to try."""
        objective = self._joint_objective()
        shared = objective.clean
        if shared is not None and shared.gradients is not None and shared.covers(self.batch):
            self._take(self.sentences, self.batch, shared.gradients)
        else:
            self.differentiate([sentence for sentence in self.sentences if sentence.untried])
            self.score([sentence for sentence in self.sentences if not sentence.untried])
        return torch.stack([sentence.loss for sentence in self.sentences])

    def differentiate(self, sentences: list[Sentence]) -> None:
        """Loss, embedding, and the gradients with respect to the embedding and to every untried word."""
        if not sentences:
            return
        batch = self.rows(
            [sentence.row for sentence in sentences], [sentence.now.text for sentence in sentences]
        )
        gradients = self._joint_objective().differentiate(batch)
        self.forwards += len(sentences)
        self.backwards += len(sentences)
        self._take(sentences, batch, gradients)

    def _joint_objective(self) -> JointObjective:
        if not isinstance(self.objective, JointObjective):
            raise TypeError(
                f"{type(self.attack).__name__} needs a JointObjective, got {type(self.objective).__name__}."
            )
        return self.objective

    def _take(self, sentences: list[Sentence], batch: Batch, gradients: PairGradients) -> None:
        """Give each sentence what was found for its row."""
        of_words = cast(Tensor, gradients.of_words).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).cpu()
        visible = batch["attention_mask"].cpu() != 0
        for row, sentence in enumerate(sentences):
            sentence.loss = gradients.loss[row]
            sentence.embedding, sentence.direction = gradients.embedding[row], gradients.of_embedding[row]
            of_tokens = of_words[row][visible[row]]  # (tokens, hidden)
            for index in sentence.untried:
                word = sentence.words[index]
                first = sentence.first_token(word)
                pieces = of_tokens[first : first + word.last + 1 - word.first]  # (pieces, hidden)
                sentence.influence[index] = pieces.mean(dim=0).norm().item()
            sentence.stale = False

    def result(self, loss_before: Tensor) -> AttackResult:
        """The batch with the texts as they stand."""
        loss_after = torch.stack([sentence.loss for sentence in self.sentences])
        adversarial = {**self.batch, **self.encode([sentence.now.text for sentence in self.sentences])}
        return AttackResult(adversarial, loss_before, loss_after, self.forwards, self.backwards)

    def _locate_words(self, text: str) -> tuple[list[Word], list[int]]:
        """The visible words of a text, and its token ids."""
        encoding = self.tokenizer(
            text, truncation=True, max_length=self.attack.max_length, return_offsets_mapping=True
        )
        tokens: dict[int, list[int]] = {}
        for position, word_id in enumerate(encoding.word_ids()):
            if word_id is not None:
                tokens.setdefault(word_id, []).append(position)
        words = []
        for positions in tokens.values():
            start, end = (
                encoding["offset_mapping"][positions[0]][0],
                encoding["offset_mapping"][positions[-1]][1],
            )
            neighbours = text[start - 1 : start] + text[end : end + 1]
            joined = any(character.isalnum() or character in _JOINERS for character in neighbours)
            if any(character.isalnum() for character in text[start:end]):
                whole = text[start:end].isalpha() and not joined
                words.append(Word(start, end, positions[0], positions[-1], whole))
        return words, encoding["input_ids"]


_JOINERS = "'\u2019-_"  # apostrophes, hyphen, underscore: "don't", "T-shirt" are one word to a reader
