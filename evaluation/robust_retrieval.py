"""Robust Recall@K of a cross-encoder: how often the right answer stays among the K best when one side is
attacked.

A cross-encoder has no embedding of a picture alone that could be attacked, only scores of pairs, so the usual
definitions for dual encoders do not carry over. Ours:

* **Query side.** The query is attacked, once, and the attacked query is ranked against the whole gallery.
  Text to image takes attacks on words, image to text attacks on pixels. The attack maximises, per query,
  `max over hard negatives of score(query, negative) - max over right answers of score(query, right)`,
  differentiably through the pair scores; it is above zero as soon as one of these negatives wins. The hard
  negatives are the `num_hard_negatives` irrelevant items that rank best for the clean query.
* **Gallery side.** The attacker knows the query and changes the gallery items that are its right answers,
  every one of them on its own, to lower `score(query, item)`; the rest of the gallery stays. Text to image
  takes attacks on pixels, image to text attacks on words. A query with several right answers is lost only
  when all of them are, so all are attacked: after an attack on the best, the second best would save the rank.

In both, what the attack claims does not count: what it returns is checked against its threat model, texts are
tokenised again, and the pairs are scored anew. The rank of a query is that of its best right answer, and ties
count against the model. The attacker may abstain: per query (gallery side: also per item) the worse of clean
and attacked counts, so that no query is ever better off under attack. A query that the clean model misses at
the largest K is lost already and not attacked.

Robust Recall@K is over all queries, the attack success rate over those that the clean model hits at K; both
have 95 % Wilson intervals, which take queries as independent.

Cost, in pairs through the joint encoder, with Q queries, A of them attacked, a gallery of N, P(q) right
answers, and a(q) the attack's own forwards for one example (for PGD with s steps: s + 1):

* clean ranking: Q N;
* query side, per attack: the sum over the attacked q of a(q) (P(q) + min(num_hard_negatives, N - P(q))), and
  N for every query that changed;
* gallery side, per attack: the sum over the attacked q and their right answers of a(q), and 1 for every item
  that changed.

With a shortlist of m items N becomes m, but for the queries that are checked.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import ProcessorMixin

from rmcl_hub.attacks.base import Attack, frozen

from .attacked_ranking import Changes, Direction, GallerySearch, Ranking
from .intervals import wilson_interval
from .outcomes import Rate
from .retrieval import PairScorer, RecallRate, distinct_captions, dual_encoder_scores, recall_of_ranks
from .shortlist import RecallError, Shortlist, listed_items

Side: TypeAlias = Literal["query", "gallery"]


class QueryOutcome(TypedDict):
    """One query under one attack.

    `rank` is the worse of `clean_rank` and `attacked_rank`; the latter is None where the query was not
    attacked, or only to check the shortlist. `distance` is the largest change of a pixel in [0, 1] in an
    attacked picture, or the most words changed in an attacked text; `texts` are the attacked texts that
    differ from the clean ones.
    """

    query: str
    num_right: int
    clean_rank: int
    attacked_rank: int | None
    rank: int
    distance: float
    texts: list[str]


class AttackedRecall(TypedDict):
    """One attack in one direction; the cut-offs are strings, for JSON."""

    threat_model: dict[str, Any]
    threat_model_hash: str
    recall: dict[str, RecallRate]
    attack_success_rate: dict[str, Rate]
    num_attacked: int
    forwards: int
    backwards: int
    seconds: float
    shortlist_error: dict[str, RecallError]
    outcomes: list[QueryOutcome]


class RobustDirection(TypedDict):
    """One direction, clean and under every attack that it takes; `forwards` are those of the clean ranking.

    `forwards_saved`: pairs that the shortlist left out and no check scored; 0 without a shortlist.
    """

    num_queries: int
    gallery_size: int
    recall: dict[str, RecallRate]
    forwards: int
    forwards_saved: int
    shortlist_error: dict[str, RecallError]
    attacks: dict[str, AttackedRecall]


class Gallery(TypedDict):
    """The declared gallery."""

    num_images: int
    num_texts: int
    drawn: str


class RobustRetrievalNumbers(TypedDict):
    """Everything but the model and the data's name; ready for JSON."""

    side: Side
    gallery: Gallery
    num_hard_negatives: int
    shortlist_size: int | None
    directions: dict[str, RobustDirection]


def evaluate_robust_retrieval(
    model: Any,
    dataset: Any,
    processor: ProcessorMixin,
    attacks: Mapping[str, Attack],
    *,
    side: Side,
    batch_size: int,
    max_text_length: int = 40,
    num_hard_negatives: int = 20,
    gallery_size: int | None = None,
    num_queries: int | None = None,
    shortlist: Shortlist | None = None,
    seed: int = 0,
) -> RobustRetrievalNumbers:
    """Clean and robust Recall@1, 5 and 10 of a cross-encoder; see the module for what they mean and cost.

    Attacks on words and on pixels may be mixed: each runs in the one direction whose queries (or gallery, on
    that side) it can change. Equal captions are one text, as in `evaluate_retrieval`.

    Args:
        model: With `joint_representation`, `logits_from_joint` (logits `(B, 1)`, or `(B, 2)` with class 1 =
            true pair) and `get_input_embeddings`. In eval mode meanwhile.
        dataset: Map-style, rows with `image` (PIL) and `captions`, perhaps `image_id`.
        processor: Its image processor and tokenizer encode the two sides.
        attacks: Name to attack on one modality.
        side: What is attacked, `"query"` or `"gallery"`.
        batch_size: Pairs per forward; also bounds the pairs that an attack differentiates at once, where the
            pairs of one query fit.
        max_text_length: Word pieces kept, special tokens included.
        num_hard_negatives: Wrong items that the attack on a query looks at.
        gallery_size: Pictures of the gallery, drawn at random; None: all. Their captions are the texts.
        num_queries: Queries per direction, drawn at random; None: all.
        shortlist: How to save forwards at a measured price; None: exact.
        seed: Of all draws.

    Raises:
        ValueError: If there are no pictures or attacks, an attack is on both modalities or leaves its threat
            model, a size is impossible, or a query has no wrong answer in the gallery.
    """
    _check(attacks, side, num_hard_negatives)
    rows, gallery = _draw_gallery(dataset, gallery_size, seed)
    texts, relevant = distinct_captions([row["captions"] for row in rows])
    images = [row["image"] for row in rows]
    gallery["num_texts"] = len(texts)
    names = [str(row.get("image_id", index)) for index, row in enumerate(rows)]
    with frozen(model):
        scorer = PairScorer(model, processor, batch_size, max_text_length)
        search = GallerySearch(scorer, images, texts)
        cheap = _cheap_scores(shortlist, scorer, images, texts)  # (texts, images)
        directions: dict[str, RobustDirection] = {}
        for direction, chosen in _by_direction(attacks, side).items():
            to_texts = direction == "image_to_text"
            labels = names if to_texts else texts
            queries = _draw(len(labels), num_queries, seed, "num_queries")
            right = (relevant.T if to_texts else relevant)[queries]
            order = (cheap.T if to_texts else cheap)[queries]
            listed, checked = _listed_and_checked(direction, right, order, shortlist, seed)
            ranking = search.rank(direction, queries, right, listed, checked, order)
            directions[direction] = _attack_ranking(search, ranking, chosen, side, num_hard_negatives, labels)
    return {
        "side": side,
        "gallery": gallery,
        "num_hard_negatives": num_hard_negatives,
        "shortlist_size": None if shortlist is None else shortlist.size,
        "directions": directions,
    }


def _attack_ranking(
    search: GallerySearch,
    clean: Ranking,
    attacks: Mapping[str, Attack],
    side: Side,
    num_hard_negatives: int,
    labels: Sequence[str],
) -> RobustDirection:
    clean_ranks = clean.ranks()
    numbers = recall_of_ranks(clean_ranks, clean.relevant)
    rows = np.flatnonzero(clean.is_found(clean_ranks) | clean.checked)
    saved = int((~clean.wanted).sum())
    results: dict[str, AttackedRecall] = {}
    for name, attack in attacks.items():
        started, forwards, backwards = time.perf_counter(), search.scorer.forwards, search.attacker.backwards
        if side == "query":
            attacked, changes = search.attack_queries(name, attack, clean, rows, num_hard_negatives)
            saved += int((~clean.wanted[list(changes)]).sum())
        else:
            attacked, changes = search.attack_gallery(name, attack, clean, rows)
        ranks = clean.worse_ranks(clean_ranks, attacked.ranks())
        results[name] = {
            "threat_model": attack.threat_model.to_dict(),
            "threat_model_hash": attack.threat_model.digest,
            "recall": recall_of_ranks(ranks, clean.relevant)["recall"],
            "attack_success_rate": _success_rates(clean_ranks, ranks, clean.cutoffs),
            "num_attacked": len(rows),
            "forwards": search.scorer.forwards - forwards,
            "backwards": search.attacker.backwards - backwards,
            "seconds": time.perf_counter() - started,
            "shortlist_error": attacked.errors(clean),
            "outcomes": _outcomes(search, clean, attacked, changes, labels),
        }
    return {
        "num_queries": numbers["num_queries"],
        "gallery_size": numbers["gallery_size"],
        "recall": numbers["recall"],
        "forwards": int(clean.wanted.sum()),
        "forwards_saved": saved,
        "shortlist_error": clean.errors(clean),
        "attacks": results,
    }


def _outcomes(
    search: GallerySearch, clean: Ranking, attacked: Ranking, changes: Changes, labels: Sequence[str]
) -> list[QueryOutcome]:
    before, after = clean.ranks(), attacked.ranks()
    found, worse = clean.is_found(before), clean.worse_ranks(before, after)
    return [
        {
            "query": labels[int(query)],
            "num_right": int(clean.relevant[row].sum()),
            "clean_rank": int(before[row]),
            "attacked_rank": int(after[row]) if found[row] else None,
            "rank": int(worse[row]),
            "distance": max((search.distance(*change) for change in changes.get(row, ())), default=0.0),
            "texts": [item for _, item in changes.get(row, ()) if isinstance(item, str)],
        }
        for row, query in enumerate(clean.queries)
    ]


def _success_rates(
    clean_ranks: NDArray[np.int_], ranks: NDArray[np.int_], cutoffs: Sequence[int]
) -> dict[str, Rate]:
    """Share of the queries hit at K that are missed under attack, by K as a string."""
    rates: dict[str, Rate] = {}
    for k in cutoffs:
        n, broken = int((clean_ranks <= k).sum()), int(((clean_ranks <= k) & (ranks > k)).sum())
        low, high = wilson_interval(broken, n)
        method = "Wilson" if n else "undefined"
        rates[str(k)] = {
            "value": broken / n if n else None,
            "low": low,
            "high": high,
            "n": n,
            "method": method,
        }
    return rates


def _by_direction(attacks: Mapping[str, Attack], side: Side) -> dict[Direction, dict[str, Attack]]:
    """The attacks of each direction that has any: on the query, or on an item, which is of the other
    modality.
    """
    words = {name: attack for name, attack in attacks.items() if attack.threat_model.modality == "text"}
    pixels = {name: attack for name, attack in attacks.items() if attack.threat_model.modality == "image"}
    to_images, to_texts = (words, pixels) if side == "query" else (pixels, words)
    found: dict[Direction, dict[str, Attack]] = {"text_to_image": to_images, "image_to_text": to_texts}
    return {direction: chosen for direction, chosen in found.items() if chosen}


def _check(attacks: Mapping[str, Attack], side: Side, num_hard_negatives: int) -> None:
    if side not in get_args(Side):
        raise ValueError(f"side is {side!r}; expected one of {', '.join(get_args(Side))}.")
    if not attacks:
        raise ValueError(
            "no attacks given; pass at least one, for instance {'pgd-4': PGD.preset('standard')}."
        )
    for name, attack in attacks.items():
        if attack.threat_model.modality == "both":
            raise ValueError(
                f"attack {name!r} is on both modalities, but one side of a pair is attacked here; pass its "
                "image and its text attack under two names."
            )
    if num_hard_negatives < 1:
        raise ValueError(f"num_hard_negatives is {num_hard_negatives}; expected at least 1.")


def _draw(population: int, size: int | None, seed: int, name: str) -> NDArray[np.int_]:
    """`size` of the numbers below `population`, in order; all of them if None."""
    if size is None:
        return np.arange(population)
    if not 1 <= size <= population:
        raise ValueError(f"{name} is {size}; expected a number in [1, {population}], or None for all.")
    return np.sort(np.random.default_rng(seed).choice(population, size, replace=False))


def _listed_and_checked(
    direction: Direction,
    relevant: NDArray[np.bool_],
    cheap: NDArray,
    shortlist: Shortlist | None,
    seed: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Shortlists `(queries, gallery)`, and which queries are ranked exactly too `(queries,)`."""
    hopeless = relevant.all(axis=1)
    if hopeless.any():
        raise ValueError(
            f"{direction}: for query {int(hopeless.argmax())} the gallery of {relevant.shape[1]} holds right "
            "answers only, so no attack can change its rank. Use a larger gallery."
        )
    checked = np.zeros(len(relevant), dtype=bool)
    if shortlist is None:
        return np.ones_like(relevant), checked
    checked[_draw(len(relevant), min(shortlist.num_checked, len(relevant)), seed, "num_checked")] = True
    return listed_items(cheap, relevant, shortlist.size), checked


def _draw_gallery(dataset: Any, size: int | None, seed: int) -> tuple[list[dict[str, Any]], Gallery]:
    chosen = _draw(len(dataset), size, seed, "gallery_size")
    rows = [dataset[int(index)] for index in chosen]
    drawn = f"all of {len(dataset)}" if size is None else f"{size} of {len(dataset)} at random, seed {seed}"
    return rows, {"num_images": len(rows), "num_texts": 0, "drawn": drawn}


def _cheap_scores(
    shortlist: Shortlist | None, scorer: PairScorer, images: Sequence[Any], texts: Sequence[str]
) -> NDArray:
    """Cheap scores `(texts, images)`; zeros where nobody asks for them."""
    if shortlist is None:
        return np.zeros((len(texts), len(images)))
    if shortlist.scores is not None:
        cheap = np.asarray(shortlist.scores(images, texts), dtype=float)
    else:
        cheap = dual_encoder_scores(
            scorer.model, images, texts, scorer.processor, scorer.batch_size, scorer.max_text_length
        ).astype(float)
    if cheap.shape != (len(texts), len(images)) or not np.isfinite(cheap).all():
        raise ValueError(
            f"the shortlist's scorer returned shape {cheap.shape}; expected finite scores of shape "
            f"{(len(texts), len(images))}, texts by images."
        )
    return cheap
