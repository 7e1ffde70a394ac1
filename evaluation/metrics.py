"""Metrics of robustness and retrieval as pure functions: arrays or tensors in, one float out (or one number
per example, where it says so).

Three rates are easily confused, and papers do. All three are in [0, 1]:

* `robust_accuracy`: correct clean AND correct under attack, over ALL examples.
* `attack_success_rate`: made wrong by the attack, over the INITIALLY CORRECT examples (TextAttack's and SGA's
  definition).
* `flip_rate`: prediction changed, over ALL examples (what the RMCL thesis tabulates as "success").

They obey `robust_accuracy == clean_accuracy * (1 - attack_success_rate)`, and
`flip_rate >= clean_accuracy - robust_accuracy`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

PIXEL_TOLERANCE = 1e-5  # float32 rounding of normalising and back


def within_radius(change: float, epsilon: float) -> bool:
    """Whether a norm of a pixel change is at most `epsilon`, but for rounding."""
    return change <= epsilon * (1 + PIXEL_TOLERANCE) + PIXEL_TOLERANCE


def _array(values: ArrayLike | Tensor, name: str, ndim: int = 1) -> NDArray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected {ndim} dimension(s).")
    if array.shape[0] == 0:
        raise ValueError(
            f"{name} is empty; a rate over no examples is undefined. Check the data set and its filters."
        )
    return array


def _pair(
    first: ArrayLike | Tensor, second: ArrayLike | Tensor, names: tuple[str, str]
) -> tuple[NDArray, NDArray]:
    a, b = _array(first, names[0]), _array(second, names[1])
    if len(a) != len(b):
        raise ValueError(
            f"{names[0]} has {len(a)} examples and {names[1]} {len(b)}; pass the same examples to both."
        )
    return a, b


def _correctness(
    clean_correct: ArrayLike | Tensor, adversarial_correct: ArrayLike | Tensor
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    clean, adversarial = _pair(clean_correct, adversarial_correct, ("clean_correct", "adversarial_correct"))
    return _truth(clean, "clean_correct"), _truth(adversarial, "adversarial_correct")


def _truth(values: ArrayLike | Tensor, name: str) -> NDArray[np.bool_]:
    array = _array(values, name)
    # The bootstrap asks thousands of times, always with booleans.
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"{name} holds {array.dtype} values other than 0 and 1; pass `predictions == labels`."
        )
    return array.astype(bool)


def robust_accuracy(clean_correct: ArrayLike | Tensor, adversarial_correct: ArrayLike | Tensor) -> float:
    """Share of ALL examples that are right before and after the attack.

    An example that was wrong and becomes right "under attack" does not count: the attacker would have left it
    alone.

    Args:
        clean_correct: Whether each clean prediction is right, shape `(N,)`, bool or 0/1.
        adversarial_correct: The same under attack, shape `(N,)`.

    Raises:
        ValueError: If the arrays are empty, differ in length or hold other values than 0 and 1.

    Examples:
        >>> robust_accuracy([1, 1, 0, 0], [1, 0, 1, 0])
        0.25
    """
    clean, adversarial = _correctness(clean_correct, adversarial_correct)
    return float((clean & adversarial).mean())


def attack_success_rate(clean_correct: ArrayLike | Tensor, adversarial_correct: ArrayLike | Tensor) -> float:
    """Share of the initially correct examples that the attack makes wrong.

    Args:
        clean_correct: Whether each clean prediction is right, shape `(N,)`, bool or 0/1.
        adversarial_correct: The same under attack, shape `(N,)`.

    Raises:
        ValueError: As in `robust_accuracy`, and if no example was initially correct: the rate is then
            undefined.

    Examples:
        >>> attack_success_rate([1, 1, 0, 0], [1, 0, 1, 0])
        0.5
    """
    clean, adversarial = _correctness(clean_correct, adversarial_correct)
    if not clean.any():
        raise ValueError(
            f"none of the {len(clean)} examples was initially correct, so the attack success rate is "
            "undefined; report robust_accuracy (0) instead, or evaluate a model above chance."
        )
    return float((~adversarial[clean]).mean())


def flip_rate(clean_predictions: ArrayLike | Tensor, adversarial_predictions: ArrayLike | Tensor) -> float:
    """Share of ALL examples whose prediction changes under attack, right or wrong.

    Args:
        clean_predictions: Predicted class per example, shape `(N,)`.
        adversarial_predictions: The same under attack, shape `(N,)`.

    Raises:
        ValueError: If the arrays are empty or differ in length.
    """
    clean, adversarial = _pair(
        clean_predictions, adversarial_predictions, ("clean_predictions", "adversarial_predictions")
    )
    return float((clean != adversarial).mean())


def recall_at_k(scores: ArrayLike | Tensor, relevant: ArrayLike | Tensor, k: int) -> float:
    """Share of the queries with at least one relevant item among their k best (R@K of the vision-language
    papers).

    This is torchmetrics' *hit rate*, not its *recall*. The gallery is exactly the N columns passed, so quote
    N beside the figure. Ties count against the model: an irrelevant item with the score of the best relevant
    one is ranked before it, so that a constant score is not rewarded.

    Args:
        scores: Higher is better, shape `(Q, N)`: one row per query, one column per gallery item.
        relevant: Whether an item is a right answer, bool, shape `(Q, N)`; several per query are allowed.
        k: Cut-off, 1 <= k <= N.

    Raises:
        ValueError: If shapes differ, scores hold NaN, k is outside [1, N] or a query has no relevant item.

    Examples:
        >>> recall_at_k([[0.9, 0.1, 0.5]], [[False, False, True]], k=2)
        1.0
    """
    values = _array(scores, "scores", 2)
    if not 1 <= k <= values.shape[1]:
        raise ValueError(f"k={k} is outside [1, {values.shape[1]}], the size of the gallery.")
    return float((best_ranks(values, relevant) <= k).mean())


def best_ranks(scores: ArrayLike | Tensor, relevant: ArrayLike | Tensor) -> NDArray[np.int_]:
    """Rank of every query's best relevant item, from 1: one more than the irrelevant items that score as high
    or higher.

    Args:
        scores: Higher is better, shape `(Q, N)`: one row per query, one column per gallery item.
        relevant: Whether an item is a right answer, bool, shape `(Q, N)`; several per query are allowed.

    Returns:
        Ranks in [1, N], shape `(Q,)`; relevant items do not push each other down.

    Raises:
        ValueError: If shapes differ, scores hold NaN or a query has no relevant item.

    Examples:
        >>> best_ranks([[0.9, 0.1, 0.5]], [[False, True, True]]).tolist()
        [2]
    """
    values, right = _array(scores, "scores", 2), _array(relevant, "relevant", 2).astype(bool)
    if values.shape != right.shape:
        raise ValueError(
            f"scores have shape {values.shape}, relevant {right.shape}; both must be (queries, gallery)."
        )
    if np.isnan(values).any():
        raise ValueError("scores contain NaN; a ranking of NaN is arbitrary. Check the model's outputs.")
    if not right.any(axis=1).all():
        lonely = int(np.flatnonzero(~right.any(axis=1))[0])
        raise ValueError(
            f"query {lonely} has no relevant item in the gallery; drop such queries before scoring."
        )
    best_relevant = np.where(right, values, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    return 1 + (~right & (values >= best_relevant)).sum(axis=1)  # (Q,)


def vqa_accuracy(predictions: ArrayLike | Tensor, scores: ArrayLike | Tensor) -> float:
    """Mean soft score of the predicted answers (VQA v2, arXiv:1612.00837: min(1, agreeing annotators / 3),
    averaged).

    Args:
        predictions: Index of the predicted answer, shape `(N,)`.
        scores: Soft score of every answer, in [0, 1], shape `(N, answers)`.

    Raises:
        ValueError: If the lengths differ, a score is outside [0, 1] or a prediction is not an answer index.
    """
    chosen, soft = _array(predictions, "predictions"), _array(scores, "scores", 2)
    if len(chosen) != len(soft):
        raise ValueError(
            f"predictions has {len(chosen)} examples and scores {len(soft)}; pass the same examples to both."
        )
    if soft.min() < 0 or soft.max() > 1:
        raise ValueError(
            f"scores must lie in [0, 1], got [{soft.min()}, {soft.max()}]; pass soft targets, not logits."
        )
    if chosen.min() < 0 or chosen.max() >= soft.shape[1]:
        raise ValueError(
            f"predictions span [{chosen.min()}, {chosen.max()}], but there are {soft.shape[1]} answers."
        )
    return float(soft[np.arange(len(chosen)), chosen.astype(int)].mean())


def nlvr2_consistency(correct: ArrayLike | Tensor, identifiers: Sequence[str]) -> float:
    """Share of the statements that are judged right about every picture pair they are asked of (NLVR2,
    arXiv:1811.00491).

    Args:
        correct: Whether each prediction is right, shape `(N,)`, bool or 0/1.
        identifiers: NLVR2's, of the same examples: `split-set-pair-statement`, such as `dev-12-3-0`. As in
            the official evaluation, examples that differ in the pair alone ask about one statement, whatever
            its text.

    Raises:
        ValueError: If there are no examples, the lengths differ, an identifier comes twice or has not four
            parts, or `correct` holds other values than 0 and 1.

    Examples:
        >>> nlvr2_consistency([1, 1, 1, 0], ["dev-0-0-0", "dev-0-1-0", "dev-0-0-1", "dev-0-1-1"])
        0.5
    """
    right = _truth(correct, "correct")
    if len(right) != len(identifiers):
        raise ValueError(
            f"correct has {len(right)} examples, identifiers {len(identifiers)}; pass the same examples to "
            "both."
        )
    consistent: dict[tuple[str, str, str], bool] = {}
    seen: set[str] = set()
    for is_right, identifier in zip(right.tolist(), identifiers, strict=True):
        if identifier in seen:
            raise ValueError(f"identifier {identifier!r} comes twice; every example counts once.")
        seen.add(identifier)
        parts = identifier.split("-")
        if len(parts) != 4:
            raise ValueError(
                f"identifier {identifier!r} is not one of NLVR2; expected split-set-pair-statement, such as "
                "'dev-12-3-0'."
            )
        split, picture_set, _, statement = parts
        key = (split, picture_set, statement)
        consistent[key] = consistent.get(key, True) and is_right
    return float(np.mean(list(consistent.values())))


def words_changed(clean_text: str, adversarial_text: str) -> int:
    """Number of word edits between two sentences: Levenshtein distance over whitespace-separated words.

    A substituted word counts once; a synonym of two words counts as one substitution and one insertion.
    """
    clean, adversarial = clean_text.split(), adversarial_text.split()
    distances = list(range(len(adversarial) + 1))  # from the empty prefix of `clean`
    for row, word in enumerate(clean, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(adversarial, start=1):
            substitution = diagonal + (word != other)
            diagonal = distances[column]
            distances[column] = min(substitution, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]


def word_change_rate(clean_texts: Sequence[str], adversarial_texts: Sequence[str]) -> float:
    """Share of the words an attack changed, per sentence, averaged over the sentences.

    Args:
        clean_texts: The sentences before the attack, N strings of at least one word.
        adversarial_texts: The same after it.

    Raises:
        ValueError: If there are no sentences, the lengths differ or a clean sentence has no word.
    """
    if not clean_texts or len(clean_texts) != len(adversarial_texts):
        raise ValueError(
            f"got {len(clean_texts)} clean and {len(adversarial_texts)} adversarial sentences; pass the "
            "same, at least one."
        )
    rates = []
    for clean, adversarial in zip(clean_texts, adversarial_texts, strict=True):
        if not clean.split():
            raise ValueError(
                f"sentence {len(rates)} is empty; empty texts must be dropped when the data is loaded."
            )
        rates.append(words_changed(clean, adversarial) / len(clean.split()))
    return float(np.mean(rates))


def perturbation_norms(
    clean: Sequence[ArrayLike | Tensor],
    adversarial: Sequence[ArrayLike | Tensor],
    norm: Literal["linf", "l2"] = "linf",
) -> NDArray[np.float64]:
    """How far an attack moved every example's pixels.

    Args:
        clean: N pictures with pixels in [0, 1], of any shape (several images of one example count as one).
        adversarial: The same after the attack.
        norm: `"linf"`, the largest change of a pixel; `"l2"`, the Euclidean norm of all changes.

    Returns:
        One norm per example, in [0, 1] pixel units, shape `(N,)`.

    Raises:
        ValueError: If there are no pictures, lengths or shapes differ, pixels are outside [0, 1], or the norm
            is unknown.

    Examples:
        >>> perturbation_norms([[[0.5, 0.5]]], [[[0.2, 0.9]]], norm="l2").round(4).tolist()
        [0.5]
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}; expected 'linf' or 'l2'.")
    if len(clean) == 0 or len(clean) != len(adversarial):
        raise ValueError(
            f"got {len(clean)} clean and {len(adversarial)} adversarial pictures; pass the same, at least "
            "one."
        )
    norms = []
    for before, after in zip(clean, adversarial, strict=True):
        if np.shape(before) != np.shape(after):
            raise ValueError(
                f"picture {len(norms)} has shape {np.shape(before)} before and {np.shape(after)} after the "
                "attack; compare what the model saw, before any further resizing."
            )
        change = _pixels(after) - _pixels(before)
        norms.append(np.abs(change).max() if norm == "linf" else np.linalg.norm(change))
    return np.array(norms)


def _pixels(picture: ArrayLike | Tensor) -> NDArray[np.float64]:
    values = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    values = values.astype(np.float64).ravel()
    if len(values) == 0 or not (values.min() >= -PIXEL_TOLERANCE and values.max() <= 1 + PIXEL_TOLERANCE):
        raise ValueError(
            "pixels must lie in [0, 1]"
            + (f", got [{values.min():.4g}, {values.max():.4g}]" if len(values) else ", got none")
            + "; undo the normalisation (x * image_std + image_mean) or divide grey levels by 255."
        )
    return values
