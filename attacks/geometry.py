"""Geometry-inspired word substitution: the text half of RMCL's inner maximisation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import AttackResult, Batch, JointObjective, check_losses, isolated_rng, select_rows
from .synonyms import STOP_WORDS, SynonymTable, match_case
from .threat_model import ThreatModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GeometryAttack:
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

    The attack works on strings. Casing and punctuation around a word stay; the adversarial string is
    tokenised again, and only substitutes that leave the tokens of all other words alone are tried, so nothing
    is pushed out by truncation. Words that truncation hides, parts of hyphenated words and contractions, and
    substitutes that the tokenizer cannot spell are left out. White box, deterministic.

    Budget: at most `max_change_share` of the visible words, rounded down, but one word where the text has at
        least two
    that are not stop words: otherwise captions of up to four words, common in practice, could never be
    attacked. A text with a single such word stays as it is unless it is long enough: its one substitution
    would replace all of it.

    Cost in example rows, for a batch of B: B forwards and one backward per attackable text for the clean
    batch; one forward per substitute tried; one forward and one backward per accepted change after which a
    word is left to try.

    Args:
        tokenizer: A fast tokenizer, the one that made `input_ids`.
        synonyms: Where substitutes come from.
        max_loops: Most words tried per text.
        max_candidates: Most substitutes tried per word.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
        max_change_share: Budget, a share of the words of a text, in [0, 1].
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        candidate_batch_size: Most sentences embedded in one forward; bounds the memory, not the result.

    Raises:
        ValueError: If an argument is out of range or the tokenizer cannot map tokens to words.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        synonyms: SynonymTable,
        max_loops: int = 10,
        max_candidates: int = 5,
        min_cosine: float = 0.5,
        max_change_share: float = 0.2,
        max_length: int = 40,
        candidate_batch_size: int = 128,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} cannot map tokens to words; load it with use_fast=True."
            )
        for name, value in (
            ("max_loops", max_loops),
            ("max_candidates", max_candidates),
            ("candidate_batch_size", candidate_batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if not 0.0 <= max_change_share <= 1.0:
            raise ValueError(
                f"max_change_share is {max_change_share}; expected a share of the words, in [0, 1]."
            )
        if not -1.0 <= min_cosine <= 1.0:
            raise ValueError(f"min_cosine is {min_cosine}; expected a cosine, in [-1, 1].")
        self.tokenizer = tokenizer
        self.synonyms = synonyms
        self.max_loops = max_loops
        self.max_candidates = max_candidates
        self.min_cosine = min_cosine
        self.max_change_share = max_change_share
        self.max_length = max_length
        self.candidate_batch_size = candidate_batch_size

    @property
    def threat_model(self) -> ThreatModel:
        """What this attack is allowed to do."""
        return ThreatModel(
            modality="text",
            word_edits="synonyms",
            max_change_share=self.max_change_share,
            max_candidates=self.max_candidates,
            min_cosine=self.min_cosine,
            synonyms=self.synonyms.digest,
        )

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
        if not isinstance(objective, JointObjective):
            raise TypeError(f"GeometryAttack needs a JointObjective, got {type(objective).__name__}.")
        search = _Search(self.tokenizer, self.max_length, self.candidate_batch_size, batch, objective)
        sentences = [self._open(row, search) for row in range(len(batch["text"]))]
        with isolated_rng(batch["input_ids"]):
            search.score([sentence for sentence in sentences if not sentence.untried])
            search.differentiate([sentence for sentence in sentences if sentence.untried])
            loss_before = torch.stack([sentence.loss for sentence in sentences])
            for _ in range(self.max_loops):
                stale = [sentence for sentence in sentences if sentence.stale and sentence.untried]
                search.differentiate(stale)
                trials = [trial for sentence in sentences if (trial := self._next_trial(sentence, search))]
                if not trials:
                    break
                search.choose_substitutes(trials)
                for trial in trials:
                    if trial.loss > trial.sentence.loss:
                        self._accept(trial, search)
        loss_after = torch.stack([sentence.loss for sentence in sentences])
        adversarial = {**batch, **search.encode([sentence.text for sentence in sentences])}
        return AttackResult(adversarial, loss_before, loss_after, search.forwards, search.backwards)

    def _open(self, row: int, search: "_Search") -> "_Sentence":
        """Find the words of a text that may be attacked, and how many of them."""
        text = search.batch["text"][row]
        sentence = _Sentence(row, text, *search.locate_words(text))
        content = [word for word in sentence.words if text[word.start : word.end].lower() not in STOP_WORDS]
        budget = int(self.max_change_share * len(sentence.words) + 1e-9)  # 0.1 * 30 must not fall short of 3
        if self.max_change_share > 0 and len(content) >= 2:
            budget = max(budget, 1)
        sentence.budget = budget
        if budget:
            sentence.untried = {
                index
                for index, word in enumerate(sentence.words)
                if word.whole and word in content and self._substitutes(text[word.start : word.end])
            }
        return sentence

    def _substitutes(self, word: str) -> list[str]:
        """Up to `max_candidates` substitutes for a word as it is written, best cosine first."""
        candidates = [
            candidate for candidate, cosine in self.synonyms.candidates(word) if cosine >= self.min_cosine
        ]
        return [match_case(candidate, word) for candidate in candidates[: self.max_candidates]]

    def _next_trial(self, sentence: "_Sentence", search: "_Search") -> "_Trial | None":
        """The most influential word that was not tried before, with the sentences its substitutes give."""
        while sentence.untried:
            # The first of equals, so that the order is defined.
            index = max(sentence.untried, key=lambda index: (sentence.influence[index], -index))
            sentence.untried.remove(index)
            if variants := self._variants(sentence, index, search):
                return _Trial(sentence, variants)
        return None

    def _variants(self, sentence: "_Sentence", index: int, search: "_Search") -> list[str]:
        """The sentence with each substitute of one word, where only that word's tokens differ."""
        word = sentence.words[index]
        before, after = sentence.text[: word.start], sentence.text[word.end :]
        texts = [
            before + substitute + after
            for substitute in self._substitutes(sentence.text[word.start : word.end])
        ]
        head, tail = sentence.ids[: word.first], sentence.ids[word.last + 1 :]
        kept = []
        for text, ids in zip(texts, search.token_ids(texts), strict=True):
            middle = ids[len(head) : len(ids) - len(tail)]
            rest_unchanged = ids[: len(head)] == head and ids[len(ids) - len(tail) :] == tail
            spelled = bool(middle) and self.tokenizer.unk_token_id not in middle
            if rest_unchanged and spelled and ids != sentence.ids:
                kept.append(text)
        return kept

    def _accept(self, trial: "_Trial", search: "_Search") -> None:
        sentence = trial.sentence
        sentence.text, sentence.loss, sentence.stale = trial.text, trial.loss, True
        sentence.words, sentence.ids = search.locate_words(sentence.text)
        sentence.budget -= 1
        if sentence.budget == 0:
            sentence.untried = set()


@dataclass(frozen=True)
class _Word:
    start: int  # first character
    end: int  # one past the last character
    first: int  # first token
    last: int  # last token
    whole: bool  # an alphabetic word on its own, not cut by truncation nor part of a compound


@dataclass
class _Sentence:
    """One text under attack, as it stands."""

    row: int
    text: str
    words: list[_Word]
    ids: list[int]
    budget: int = 0  # changes left
    untried: set[int] = field(default_factory=set)  # indices into words
    stale: bool = True  # the gradients below are not those of this text
    loss: Tensor = field(init=False)  # ()
    embedding: Tensor = field(init=False)  # (dim,)
    direction: Tensor = field(init=False)  # (dim,), gradient of the loss with respect to the embedding
    influence: list[float] = field(default_factory=list)  # gradient norm per word


@dataclass
class _Trial:
    """One word of one sentence, with the candidate sentences and, later, the chosen one."""

    sentence: _Sentence
    variants: list[str]
    text: str = ""
    loss: Tensor = field(init=False)  # ()


class _Search:
    """The tokenizer and the objective on the rows of one batch; counts the rows that pass the encoder."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        chunk: int,
        batch: Batch,
        objective: JointObjective,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chunk = chunk
        self.batch = batch
        self.objective = objective
        self.forwards = self.backwards = 0
        self._check_encoding()

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Text fields of a batch, padded to the longest text."""
        encoding = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        device = self.batch["input_ids"].device
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in self.batch]
        return {"text": texts, **{name: encoding[name].to(device) for name in names}}

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, truncated, not padded."""
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def locate_words(self, text: str) -> tuple[list[_Word], list[int]]:
        """The visible words of a text, and its token ids."""
        encoding = self.tokenizer(
            text, truncation=True, max_length=self.max_length, return_offsets_mapping=True
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
                words.append(_Word(start, end, positions[0], positions[-1], whole))
        return words, encoding["input_ids"]

    def rows(self, rows: Sequence[int], texts: list[str]) -> dict[str, Any]:
        """Those rows of the batch with other texts."""
        return {**select_rows(self.batch, rows), **self.encode(texts)}

    def score(self, sentences: list[_Sentence]) -> None:
        """Loss of sentences that will not be attacked."""
        if not sentences:
            return
        batch = self.rows([sentence.row for sentence in sentences], [sentence.text for sentence in sentences])
        with torch.no_grad():
            losses = check_losses(self.objective(batch), len(sentences))
        self.forwards += len(sentences)
        for sentence, loss in zip(sentences, losses, strict=True):
            sentence.loss = loss

    def differentiate(self, sentences: list[_Sentence]) -> None:
        """Loss, embedding, and the gradients with respect to the embedding and to every word."""
        if not sentences:
            return
        batch = self.rows([sentence.row for sentence in sentences], [sentence.text for sentence in sentences])
        with torch.no_grad():
            vectors = self.objective.word_embeddings(batch["input_ids"])  # (rows, length, hidden)
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            encoder_batch = {name: values for name, values in batch.items() if name != "input_ids"}
            embeddings = self.objective.embed({**encoder_batch, "inputs_embeds": vectors})
            losses = check_losses(self.objective.loss(embeddings, batch), len(sentences))
            if not losses.requires_grad:
                raise ValueError(
                    "The objective's loss does not depend on inputs_embeds through gradients; "
                    "remove torch.no_grad() or detach() from it."
                )
            directions, gradients = torch.autograd.grad(losses.sum(), (embeddings, vectors))
        self.forwards += len(sentences)
        self.backwards += len(sentences)
        gradients = gradients.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).cpu()
        for index, sentence in enumerate(sentences):
            sentence.loss = losses[index].detach()
            sentence.embedding, sentence.direction = embeddings[index].detach(), directions[index]
            sentence.influence = [
                gradients[index, word.first : word.last + 1].mean(dim=0).norm().item()
                for word in sentence.words
            ]
            sentence.stale = False

    def choose_substitutes(self, trials: list[_Trial]) -> None:
        """Fill in each trial's best variant and its loss."""
        rows = [trial.sentence.row for trial in trials for _ in trial.variants]
        texts = [text for trial in trials for text in trial.variants]
        chosen = []
        embeddings = self._embed(rows, texts).split([len(trial.variants) for trial in trials])
        for trial, candidates in zip(trials, embeddings, strict=True):
            displacement = candidates - trial.sentence.embedding  # (variants, dim)
            # Dividing by the norm of the direction would not change which one is largest.
            best = int((displacement @ trial.sentence.direction).argmax())
            trial.text = trial.variants[best]
            chosen.append(candidates[best])
        batch = self.rows([trial.sentence.row for trial in trials], [trial.text for trial in trials])
        with torch.no_grad():
            losses = check_losses(self.objective.loss(torch.stack(chosen), batch), len(trials))
        for trial, loss in zip(trials, losses, strict=True):
            trial.loss = loss

    def _embed(self, rows: list[int], texts: list[str]) -> Tensor:
        """Joint embeddings of rows with other texts, shape `(len(rows), dim)`."""
        parts = []
        with torch.no_grad():
            for first in range(0, len(rows), self.chunk):
                batch = self.rows(rows[first : first + self.chunk], texts[first : first + self.chunk])
                parts.append(self.objective.embed(batch))
        self.forwards += len(rows)
        return torch.cat(parts)

    def _check_encoding(self) -> None:
        if missing := [name for name in ("text", "input_ids", "attention_mask") if name not in self.batch]:
            raise ValueError(
                f"GeometryAttack needs {', '.join(missing)} in the batch, which has {sorted(self.batch)}."
            )
        ids, mask = self.batch["input_ids"], self.batch["attention_mask"]
        for row, (text, expected) in enumerate(
            zip(self.batch["text"], self.token_ids(list(self.batch["text"])), strict=True)
        ):
            if ids[row][mask[row] != 0].tolist() != expected:
                raise ValueError(
                    f"input_ids of row {row} are not the encoding of its text {text!r} "
                    f"(max_length={self.max_length}); give the attack the tokenizer and max_length that "
                    "made them."
                )


_JOINERS = "'\u2019-_"  # apostrophes, hyphen, underscore: "don't", "T-shirt" are one word to a reader
