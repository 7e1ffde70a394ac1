"""A text under attack: its words, and what stands in their place."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Word:
    """A word of the clean text."""

    start: int  # first character
    end: int  # one past the last character
    first: int  # first token
    last: int  # last token
    whole: bool  # an alphabetic word on its own, not cut by truncation nor part of a compound


@dataclass(frozen=True)
class Edit:
    """A word of the clean text and what stands in its place."""

    word: Word
    substitute: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """A text with some words changed."""

    text: str
    ids: list[int]
    edits: tuple[Edit, ...]


@dataclass
class Sentence:
    """One text under attack: as it came, and as it stands."""

    row: int
    clean: Variant
    words: list[Word]
    budget: int
    untried: set[int]  # indices into words
    now: Variant
    stale: bool = True  # the gradients below are not those of this text
    loss: Tensor = field(init=False)  # ()
    embedding: Tensor = field(init=False)  # (dim,)
    direction: Tensor = field(init=False)  # (dim,), gradient of the loss with respect to the embedding
    influence: dict[int, float] = field(default_factory=dict)  # of the untried words; largest goes first

    def spelling(self, index: int) -> str:
        """A word as the clean text has it."""
        return self.clean.text[self.words[index].start : self.words[index].end]

    def first_token(self, word: Word) -> int:
        """Where a word begins among the tokens of the text as it stands."""
        before = [edit for edit in self.now.edits if edit.word.start < word.start]
        return word.first + sum(len(edit.ids) - (edit.word.last + 1 - edit.word.first) for edit in before)

    def write(self, edits: Iterable[Edit]) -> Variant:
        """The clean text with edits, and the token ids it has if no other word's tokens move."""
        text, ids, edits = self.clean.text, self.clean.ids, tuple(edits)
        for edit in sorted(edits, key=lambda edit: edit.word.start, reverse=True):
            text = text[: edit.word.start] + edit.substitute + text[edit.word.end :]
            ids = [*ids[: edit.word.first], *edit.ids, *ids[edit.word.last + 1 :]]
        return Variant(text, ids, edits)

    def accept(self, variant: Variant, loss: Tensor) -> None:
        """Go on from another text; nothing is left to try once its changes use up the budget."""
        self.now, self.loss, self.stale = variant, loss, True
        if len(variant.edits) == self.budget:
            self.untried = set()
