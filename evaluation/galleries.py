"""Recall over declared galleries: all pictures of a split, or the mean over disjoint ones of one size."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from transformers import ProcessorMixin

from rmcl_hub.datasets_scripts.protocols import Gallery

from .intervals import wilson_interval
from .retrieval import (
    DirectionNumbers,
    cross_encoder_scores,
    distinct_captions,
    dual_encoder_scores,
    recall_numbers,
)


class GalleryNumbers(TypedDict):
    """Both directions over `count` disjoint galleries of `size` pictures, with their distinct captions."""

    size: int
    count: int
    text_to_image: DirectionNumbers
    image_to_text: DirectionNumbers


class GalleriesNumbers(TypedDict):
    """All galleries of a protocol; `forwards` counts pairs (cross), or pictures and texts (dual)."""

    scorer: str
    num_images: int
    num_texts: int
    forwards: int
    galleries: list[GalleryNumbers]


def evaluate_galleries(
    model: Any,
    dataset: Any,
    processor: ProcessorMixin,
    galleries: Sequence[Gallery],
    *,
    scorer: Literal["dual", "cross"],
    batch_size: int,
    max_text_length: int = 40,
) -> GalleriesNumbers:
    """Rank the captions of every gallery for its pictures and back, as `evaluate_retrieval` does for one.

    A pair that is in several galleries is scored once.

    Args:
        model: As in `evaluate_retrieval`.
        dataset: `datasets.Dataset` with `image`, `image_id` and `captions`.
        processor: Its image processor and tokenizer encode the two sides.
        galleries: What is ranked; pictures are taken in the order of `fixed_order`.
        scorer: `"cross"` or `"dual"`.
        batch_size: Rows per forward.
        max_text_length: Word pieces kept, special tokens included.

    Raises:
        ValueError: If there is no gallery, one needs more pictures than there are, a picture has no caption,
            or the scorer is unknown.
    """
    if scorer not in ("cross", "dual"):
        raise ValueError(f"scorer is {scorer!r}; expected 'cross' or 'dual'.")
    check_galleries(galleries, len(dataset))
    used = max(gallery.size * gallery.count for gallery in galleries)
    rows = dataset.select(fixed_order(dataset["image_id"])[:used])
    texts, relevant = distinct_captions(list(rows["captions"]))
    parts = {gallery: _parts(gallery, relevant) for gallery in galleries}
    wanted = np.zeros_like(relevant)
    for place in (place for places in parts.values() for place in places):
        wanted[place] = True
    options = (processor, batch_size, max_text_length)
    if scorer == "cross":
        scores = cross_encoder_scores(model, rows["image"], texts, *options, wanted=wanted)
    else:
        scores = dual_encoder_scores(model, rows["image"], texts, *options)
    return {
        "scorer": scorer,
        "num_images": len(rows),
        "num_texts": len(texts),
        "forwards": int(wanted.sum()) if scorer == "cross" else len(texts) + len(rows),
        "galleries": [
            {
                "size": gallery.size,
                "count": gallery.count,
                "text_to_image": mean_recall([recall_numbers(scores[at], relevant[at]) for at in places]),
                "image_to_text": mean_recall([recall_numbers(scores[at].T, relevant[at].T) for at in places]),
            }
            for gallery, places in parts.items()
        ],
    }


def check_galleries(galleries: Sequence[Gallery], num_images: int) -> None:
    """Refuse galleries that the pictures do not fill.

    Raises:
        ValueError: If there is none, or one needs more pictures than there are.
    """
    if not galleries:
        raise ValueError("no gallery given; recall is about a declared number of pictures.")
    for gallery in galleries:
        needed = gallery.size * gallery.count
        if not 1 <= needed <= num_images:
            raise ValueError(
                f"{gallery.count} x {gallery.size} pictures are to be ranked, but there are {num_images}; "
                "prepare the whole split, or name a smaller gallery (--gallery), which is recorded as custom."
            )


def fixed_order(image_ids: Sequence[str]) -> list[int]:
    """Rows by a hash of their ids: the first N are a random N, and the same on every machine."""
    keys = [hashlib.sha1(str(identity).encode()).digest() for identity in image_ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _parts(gallery: Gallery, relevant: NDArray[np.bool_]) -> list[tuple[NDArray, NDArray]]:
    """Per gallery the place of its texts and pictures in a matrix `(texts, pictures)`."""
    parts = []
    for index in range(gallery.count):
        pictures = np.arange(index * gallery.size, (index + 1) * gallery.size)
        texts = np.flatnonzero(relevant[:, pictures].any(axis=1))
        parts.append(np.ix_(texts, pictures))
    return parts


def mean_recall(numbers: Sequence[DirectionNumbers]) -> DirectionNumbers:
    """Mean over galleries of about one size.

    The interval is Wilson's over the queries of all galleries, which have one share of hits each: it is about
    other queries, not about other galleries.

    Args:
        numbers: One entry per gallery, at least one.

    Returns:
        `num_queries` of all together, `gallery_size` of one (the rounded mean, for texts differ in number),
        and the cut-offs that all have.
    """
    num_queries = sum(entry["num_queries"] for entry in numbers)
    cutoffs = [k for k in numbers[0]["recall"] if all(k in entry["recall"] for entry in numbers)]
    mean: DirectionNumbers = {
        "num_queries": num_queries,
        "gallery_size": round(sum(entry["gallery_size"] for entry in numbers) / len(numbers)),
        "recall": {},
    }
    for k in cutoffs:
        hits = sum(round(entry["recall"][k]["value"] * entry["num_queries"]) for entry in numbers)
        low, high = wilson_interval(hits, num_queries)
        value, chance = (
            sum(entry["recall"][k][key] for entry in numbers) / len(numbers) for key in ("value", "chance")
        )
        mean["recall"][k] = {
            "value": value,
            "low": min(low, value),
            "high": max(high, value),
            "chance": chance,
        }
    return mean
