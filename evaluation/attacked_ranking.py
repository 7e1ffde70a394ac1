"""Clean and attacked rankings of one gallery by a cross-encoder; `robust_retrieval` says what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rmcl_hub.attacks.base import Attack

from .metrics import best_ranks, words_changed
from .retrieval import RECALL_CUTOFFS, PairScorer, Picture
from .retrieval_attack import Item, PairAttacker
from .shortlist import RecallError, complete_scores, recall_errors

Direction: TypeAlias = Literal["text_to_image", "image_to_text"]
Changes: TypeAlias = dict[int, list[tuple[int, Item]]]
"""Row of a query to what was changed for its sake: (index of the text or picture, what became of it)."""


@dataclass(frozen=True)
class Ranking:
    """Scores of the queries of one direction.

    Attributes:
        direction: What is looked for with what.
        queries: Indices of texts or pictures, `(queries,)`.
        relevant: Which items are right, `(queries, gallery)`.
        listed: Which items are on the shortlist, `(queries, gallery)`; all without one.
        checked: Which queries are ranked exactly too, `(queries,)`.
        cheap: Scores that order what is not listed, `(queries, gallery)`.
        scores: Of the encoder, `(queries, gallery)`; NaN where not `wanted`.
    """

    direction: Direction
    queries: NDArray[np.int_]
    relevant: NDArray[np.bool_]
    listed: NDArray[np.bool_]
    checked: NDArray[np.bool_]
    cheap: NDArray
    scores: NDArray[np.float64]

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Pairs that go through the encoder, `(queries, gallery)`."""
        return self.listed | self.checked[:, None]

    @property
    def cutoffs(self) -> list[int]:
        """Every K that the gallery is large enough for."""
        return [k for k in RECALL_CUTOFFS if k <= self.relevant.shape[1]]

    def complete(self) -> NDArray[np.float64]:
        """Scores that order the whole gallery, `(queries, gallery)`."""
        return complete_scores(self.scores, self.listed, self.cheap)

    def ranks(self) -> NDArray[np.int_]:
        """Rank of every query's best right answer, `(queries,)`."""
        return best_ranks(self.complete(), self.relevant)

    def exact_ranks(self) -> NDArray[np.int_]:
        """The same without the shortlist, of the checked queries."""
        return best_ranks(self.scores[self.checked], self.relevant[self.checked])

    def errors(self, clean: "Ranking") -> dict[str, RecallError]:
        """What the shortlist changes in the recall under attack; of the clean ranking itself: in its own."""
        if not self.checked.any():
            return {}
        ranks = self.worse_ranks(clean.ranks(), self.ranks())[self.checked]
        exact_ranks = self.worse_ranks(clean.exact_ranks(), self.exact_ranks())
        return recall_errors(ranks, exact_ranks, self.cutoffs)

    def worse_ranks(self, clean: NDArray[np.int_], attacked: NDArray[np.int_]) -> NDArray[np.int_]:
        """The worse of clean and attacked ranks; a query that is lost already stays where it is."""
        return np.where(self.is_found(clean), np.maximum(clean, attacked), clean)

    def is_found(self, ranks: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Whether a rank is within the largest K, so that there is something to attack."""
        return ranks <= self.cutoffs[-1]


class GallerySearch:
    """A gallery, a cross-encoder, and whoever attacks the two.

    Args:
        scorer: The cross-encoder.
        images: The gallery's pictures (PIL).
        texts: The gallery's texts.
    """

    def __init__(self, scorer: PairScorer, images: Sequence[Any], texts: Sequence[str]) -> None:
        self.scorer = scorer
        self.texts = texts
        pixels = [scorer.pixels(image) for image in images]
        self.pictures = [self.embed(picture) for picture in pixels]
        self.attacker = PairAttacker(scorer, pixels, self.pictures, texts)

    @torch.no_grad()
    def embed(self, picture: Picture) -> Picture:
        """Pixels, ready for any number of pairs."""
        return self.scorer.embed_image(**picture)

    def rank(
        self,
        direction: Direction,
        queries: NDArray[np.int_],
        relevant: NDArray[np.bool_],
        listed: NDArray[np.bool_],
        checked: NDArray[np.bool_],
        cheap: NDArray,
    ) -> Ranking:
        """Score the clean queries against the gallery; arguments as the attributes of `Ranking`."""
        of = self.texts if direction == "text_to_image" else self.pictures
        scores = self._scores(direction, [of[query] for query in queries], listed | checked[:, None])
        return Ranking(direction, queries, relevant, listed, checked, cheap, scores)

    def _scores(
        self, direction: Direction, queries: Sequence[Any], wanted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        if direction == "text_to_image":
            return self.scorer.scores(self.pictures, queries, wanted)
        return self.scorer.scores(queries, self.texts, wanted.T).T

    def attack_queries(
        self,
        name: str,
        attack: Attack,
        ranking: Ranking,
        attacked: NDArray[np.int_],
        num_hard_negatives: int,
    ) -> tuple[Ranking, Changes]:
        """Attack the queries in the rows `attacked` of a clean ranking, and rank them again."""
        order = np.argsort(-ranking.complete(), axis=1, kind="stable")  # (queries, gallery)
        candidates, num_right = [], []
        for row in attacked:
            right = ranking.relevant[row]
            wrong = order[row][~right[order[row]]][:num_hard_negatives]
            candidates.append(np.concatenate([np.flatnonzero(right), wrong]))
            num_right.append(int(right.sum()))
        items = ranking.queries[attacked].tolist()
        found = self.attacker(name, attack, items, candidates, num_right)
        changes: Changes = {
            int(row): [(item, change)]
            for row, item, change in zip(attacked, items, found, strict=True)
            if change is not None
        }
        scores, rows = ranking.scores.copy(), list(changes)
        if rows:
            queries = [self._ready(change) for ((_, change),) in changes.values()]
            scores[rows] = self._scores(ranking.direction, queries, ranking.wanted[rows])
        return replace(ranking, scores=scores), changes

    def attack_gallery(
        self, name: str, attack: Attack, ranking: Ranking, attacked: NDArray[np.int_]
    ) -> tuple[Ranking, Changes]:
        """Attack the right answers of the queries in the rows `attacked`, and score them again."""
        right = ranking.relevant & ranking.wanted
        pairs = [(int(row), int(item)) for row in attacked for item in np.flatnonzero(right[row])]
        partners = [ranking.queries[row : row + 1] for row, _ in pairs]
        found = self.attacker(name, attack, [item for _, item in pairs], partners, [1] * len(pairs))
        changes: Changes = {}
        for (row, item), change in zip(pairs, found, strict=True):
            if change is not None:
                changes.setdefault(row, []).append((item, change))
        scores = ranking.scores.copy()
        if changes:
            rows = [row for row, of_row in changes.items() for _ in of_row]
            items = [item for of_row in changes.values() for item, _ in of_row]
            changed = [self._ready(change) for of_row in changes.values() for _, change in of_row]
            queries: list[int] = ranking.queries[rows].tolist()
            new = (
                self.scorer.aligned_scores([self.texts[query] for query in queries], changed)
                if ranking.direction == "text_to_image"
                else self.scorer.aligned_scores(changed, [self.pictures[query] for query in queries])
            )
            # The attacker may abstain: a change that helped the item is not made.
            scores[rows, items] = np.minimum(scores[rows, items], new)
        return replace(ranking, scores=scores), changes

    def distance(self, index: int, item: Item) -> float:
        """Words changed in a text, or the largest change of a picture's pixels in [0, 1]."""
        if isinstance(item, str):
            return float(words_changed(self.texts[index], item))
        return self.attacker.distance(index, item)

    def _ready(self, item: Item) -> Any:
        return item if isinstance(item, str) else self.embed(item)
