"""Robustness of a model under named attacks: of its answers, and, without labels, of its joint
representation.

The model is asked for `joint_representation(**inputs)` and `logits_from_joint(joint)`; its class does not
matter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen, model_inputs

from .attack_loop import VQA_COLUMNS, Collate, Columns, Decision, RobustnessResult, attack_examples, batches


def evaluate_robustness(
    model: Any,
    dataset: Any,
    collate: Collate,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int,
    unions: Mapping[str, Sequence[str]] | None = None,
    columns: Columns = VQA_COLUMNS,
    num_pairs: int = 0,
) -> RobustnessResult:
    """Attack every example of a labelled classification task and record what happens.

    The attacks maximise the cross entropy of the label over the task's answers (all logits of the head). With
    soft labels `(B, answers)`, as in VQA v2, they are normalised to a distribution first, and a prediction
    counts as right when its score is the row's highest; an example whose scores are all 0 (answer outside the
    vocabulary) is always wrong.

    Every outcome is recomputed from the attacked batch: prediction, loss, largest pixel change, words
    changed. The attack's own claims are not used.

    Args:
        model: Any module with `joint_representation`, `logits_from_joint` and `get_input_embeddings`.
            Evaluated in eval mode; every submodule's mode is restored.
        dataset: Map-style or iterable; rows hold `columns`.
        collate: From rows to a batch with `labels` and `text`, one example per row in the rows' order.
        attacks: Name to attack. One that is part of a union is listed under its own name too.
        batch_size: Examples per batch.
        unions: Name to names of `attacks`: per example the worst of these. For an attack on both modalities,
            list the image, the text and the combined attack, for then it is never weaker than its parts,
            example by example.
        columns: Where rows keep id, cluster and question type.
        num_pairs: How many attacked pairs to keep as pictures: the first initially correct ones, fooled or
            not.

    Raises:
        ValueError: If there are no examples, the model is not deterministic, an attack leaves its threat
            model or the pixel range, changes padding or labels, or a union names an unknown attack.
    """
    objective = JointObjective(
        embed=lambda batch: model.joint_representation(**model_inputs(batch)),
        loss=lambda joint, batch: cross_entropy_to_label(model.logits_from_joint(joint), batch["labels"]),
        word_embeddings=model.get_input_embeddings(),
    )

    def decide(joint: Tensor, batch: Batch) -> Decision:
        logits, labels = model.logits_from_joint(joint), batch["labels"]
        prediction = logits.argmax(dim=-1)  # (B,)
        return Decision(
            label=labels.argmax(dim=-1) if labels.ndim == 2 else labels,
            prediction=prediction,
            correct=is_correct(prediction, labels),
            loss=cross_entropy_to_label(logits, labels),
        )

    return attack_examples(
        model,
        dataset,
        collate,
        attacks,
        objective,
        decide,
        batch_size=batch_size,
        unions=unions or {},
        columns=columns,
        num_pairs=num_pairs,
    )


def embedding_retention(
    model: Any,
    dataset: Any,
    collate: Collate,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int,
    unions: Mapping[str, Sequence[str]] | None = None,
    columns: Columns = VQA_COLUMNS,
) -> RobustnessResult:
    """How often an attacked pair is still nearest to its own clean embedding (cosine); needs no labels and no
    head.

    The gallery holds the clean joint representation of every example; its size is the number of examples and
    chance one over it. In the outcomes `clean_correct` and `adversarial_correct` say whether the pair finds
    itself, so the robust accuracy of the summary is the retention. Ties count as misses: of two identical
    pairs neither finds itself, also clean.

    The attack maximises (1 - cosine to the own clean embedding) + (cosine to the nearest other one).

    Note:
        The distance alone has gradient zero at the clean example, where it is smallest: an attack that starts
        there and follows gradients (PGD without random start, the word attack) would do nothing and every
        model look robust. The second term has a gradient from the start, and is what retention is about.

    Args:
        model: Any module with `joint_representation` and `get_input_embeddings`.
        dataset: As in `evaluate_robustness`, at least two rows; it is read twice and must keep its order.
        collate: From rows to a batch; labels are ignored.
        attacks: Name to attack.
        batch_size: Examples per batch.
        unions: As in `evaluate_robustness`.
        columns: Where rows keep id, cluster and question type.

    Raises:
        ValueError: As in `evaluate_robustness`.
    """
    with frozen(model):
        gallery = _clean_embeddings(model, dataset, collate, batch_size)  # (N, D), unit length
    if len(gallery) < 2:
        raise ValueError(f"retention needs a gallery of at least 2 examples, got {len(gallery)}.")

    def similarities(joint: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        own_index = batch["example_index"][:, None]  # (B, 1)
        cosine = F.normalize(joint, dim=-1) @ gallery.T  # (B, N)
        nearest, nearest_index = cosine.scatter(1, own_index, float("-inf")).max(dim=1)
        return cosine.gather(1, own_index).squeeze(1), nearest, nearest_index  # (B,) each

    def loss(joint: Tensor, batch: Batch) -> Tensor:
        own, nearest, _ = similarities(joint, batch)
        return 1 - own + nearest

    def decide(joint: Tensor, batch: Batch) -> Decision:
        own, nearest, nearest_index = similarities(joint, batch)
        correct, index = own > nearest, batch["example_index"]
        return Decision(index, torch.where(correct, index, nearest_index), correct, 1 - own + nearest)

    objective = JointObjective(
        embed=lambda batch: model.joint_representation(**model_inputs(batch)),
        loss=loss,
        word_embeddings=model.get_input_embeddings(),
    )
    return attack_examples(
        model,
        dataset,
        collate,
        attacks,
        objective,
        decide,
        batch_size=batch_size,
        unions=unions or {},
        columns=columns,
    )


def cross_entropy_to_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per example, `(B,)`, to a class index `(B,)` or to soft scores `(B, answers)` made to sum
    to one.
    """
    if labels.ndim == 2:
        labels = labels / labels.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return F.cross_entropy(logits.float(), labels, reduction="none")


def is_correct(prediction: Tensor, labels: Tensor) -> Tensor:
    """Whether predictions `(B,)` hit the class index `(B,)`, or a highest positive soft score of the row `(B,
    answers)`.
    """
    if labels.ndim == 1:
        return prediction == labels
    score = labels.gather(1, prediction[:, None]).squeeze(1)
    return (score == labels.max(dim=1).values) & (score > 0)


@torch.no_grad()
def _clean_embeddings(model: Any, dataset: Any, collate: Collate, batch_size: int) -> Tensor:
    loader = batches(model, dataset, collate, batch_size)
    embeddings = [
        F.normalize(model.joint_representation(**model_inputs(batch)), dim=-1)
        for _, batch in tqdm(loader, desc="gallery", unit="batch")
    ]
    return torch.cat(embeddings) if embeddings else torch.empty(0, 0)
