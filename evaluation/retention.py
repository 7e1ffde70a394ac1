"""Robustness of the joint representation itself: without labels, without a head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen

from .attack_loop import VQA_COLUMNS, Collate, Columns, Decision, RobustnessResult, attack_examples, batches
from .victims import Victim, as_victim


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
        model: A model or `Victim`, see `victims.as_victim`.
        dataset: As in `task_attack.attack_task`, at least two rows; it is read twice and must keep its order.
        collate: From rows to a batch; labels are ignored.
        attacks: Name to attack.
        batch_size: Examples per batch.
        unions: As in `task_attack.attack_task`.
        columns: Where rows keep id, cluster and question type.

    Raises:
        ValueError: As in `task_attack.attack_task`.
    """
    victim = as_victim(model)
    with frozen(victim.module):
        gallery = _clean_embeddings(victim, dataset, collate, batch_size)  # (N, D), unit length
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

    objective = JointObjective(victim.embed, loss, victim.word_embeddings or nn.Identity())
    return attack_examples(
        victim,
        dataset,
        collate,
        attacks,
        dict.fromkeys(attacks, objective),
        decide,
        batch_size=batch_size,
        unions=unions or {},
        columns=columns,
    )


@torch.no_grad()
def _clean_embeddings(victim: Victim, dataset: Any, collate: Collate, batch_size: int) -> Tensor:
    loader = batches(victim, dataset, collate, batch_size)
    embeddings = [
        F.normalize(batch["clean_embedding"], dim=-1)
        for _, batch in tqdm(loader, desc="gallery", unit="batch")
    ]
    return torch.cat(embeddings) if embeddings else torch.empty(0, 0)
