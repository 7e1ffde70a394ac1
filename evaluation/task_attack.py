"""Attack the answers of a labelled task: one loop for every head, every attack and every loss."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rmcl_hub.attacks.base import Attack, Batch, JointObjective
from rmcl_hub.attacks.text_encoding import misencoded_row

from .attack_loop import Decision, Keep, RobustnessResult, attack_examples
from .attack_suite import Loss, LossAttack
from .task_losses import cross_entropy_to_label, is_correct, margin_to_label
from .tasks import Task
from .victims import Victim, as_victim


def attack_task(
    model: Any,
    dataset: Any,
    task: Task,
    attacks: Mapping[str, Attack | LossAttack],
    *,
    batch_size: int,
    unions: Mapping[str, Sequence[str]] | None = None,
    num_pairs: int = 0,
    keep: Keep | None = None,
) -> RobustnessResult:
    """Attack every example of a labelled task and record what happens.

    With soft labels `(B, answers)`, as in VQA v2, a prediction counts as right when its score is the row's
    highest; an example whose scores are all 0 (answer outside the vocabulary) is always wrong.

    Every outcome is recomputed from the attacked batch: prediction, loss, pixel change, words changed. The
    attack's own claims are not used.

    Args:
        model: A model or `Victim`, see `victims.as_victim`. Evaluated in eval mode; every submodule's mode is
            restored.
        dataset: Map-style or iterable; rows hold the task's columns.
        task: How rows become labelled batches, one example per row in the rows' order.
        attacks: Name to attack, with the loss that it maximises; cross entropy without one. One that is part
            of a union is listed under its own name too.
        batch_size: Examples per batch.
        unions: Name to names of `attacks`: per example the worst of these. For an attack on both modalities,
            list the image, the text and the combined attack, for then it is never weaker than its parts,
            example by example.
        num_pairs: How many attacked pairs to keep as pictures: the first initially correct ones, fooled or
            not.
        keep: Called for every batch and union with the worst attacked examples, to store them.

    Raises:
        ValueError: If there are no examples, the model is not deterministic, a label is outside the head, an
            attack leaves its threat model or the pixel range, changes padding or labels, or a union names an
            unknown attack.
    """
    victim = as_victim(model, task=task.name)
    named = {
        name: attack if isinstance(attack, LossAttack) else LossAttack(attack)
        for name, attack in attacks.items()
    }
    return attack_examples(
        victim,
        dataset,
        task.collate,
        {name: attack.attack for name, attack in named.items()},
        {name: task_objective(victim, attack.loss) for name, attack in named.items()},
        lambda embedding, batch: _decide(victim, embedding, batch),
        batch_size=batch_size,
        unions=unions or {},
        columns=task.columns,
        num_pairs=num_pairs,
        keep=keep,
        misencoded=partial(_misencoded, task) if task.tokenizer is not None else None,
    )


def _misencoded(task: Task, batch: Batch) -> int | None:
    return misencoded_row(task.tokenizer, batch, task.max_text_length)


def task_objective(victim: Victim, loss: Loss) -> JointObjective:
    """What an attack on the task maximises: `"cross-entropy"` of the label, its `"margin"`, or the
    `"distance"`, 1 - cosine, of the embedding from the clean one, for which a batch holds `clean_embedding`.
    """

    def value(embedding: Tensor, batch: Batch) -> Tensor:
        if loss == "distance":
            return 1 - F.cosine_similarity(embedding, batch["clean_embedding"], dim=-1)
        logits = victim.logits(embedding, batch)
        if loss == "margin":
            return margin_to_label(logits, batch["labels"])
        return cross_entropy_to_label(logits, batch["labels"])

    return JointObjective(victim.embed, value, victim.word_embeddings or nn.Identity())


def _decide(victim: Victim, embedding: Tensor, batch: Batch) -> Decision:
    logits, labels = victim.logits(embedding, batch), batch["labels"]
    _check_labels(labels, logits.shape[-1])
    prediction = logits.argmax(dim=-1)  # (B,)
    return Decision(
        label=labels.argmax(dim=-1) if labels.ndim == 2 else labels,
        prediction=prediction,
        correct=is_correct(prediction, labels),
        loss=cross_entropy_to_label(logits, labels),
        score=labels.gather(1, prediction[:, None]).squeeze(1) if labels.ndim == 2 else None,  # (batch,)
    )


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise ValueError(
            f"labels have {labels.shape[1]} answers, the head has {num_classes}; use the answers that the "
            "head was trained with (model.config.id2label)."
        )
    if labels.ndim == 1 and not ((labels >= 0) & (labels < num_classes)).all():
        outside = labels[(labels < 0) | (labels >= num_classes)][0].item()
        raise ValueError(
            f"label {outside} is outside the head's {num_classes} classes, 0 to {num_classes - 1}; load a "
            "head of this task, or map the labels to its classes."
        )
