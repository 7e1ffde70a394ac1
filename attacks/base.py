"""What every attack shares: the batch, the objective that it maximises, and what it hands back.

An attack knows no task and no trainer. It receives a batch and an objective, and searches for a batch on
which the objective is larger.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from .threat_model import ThreatModel

Batch: TypeAlias = Mapping[str, Any]
"""Field name to tensor `(batch, ...)` or to a list of `batch` items (the strings under `text`)."""

Objective: TypeAlias = Callable[[Batch], Tensor]
"""Loss per example, shape `(batch,)`, which an attack maximises."""


MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "inputs_embeds",
    "pixel_values",
    "image_embeds",
    "pixel_mask",
)
"""Batch fields that a ViLT-like model's `forward` takes; the rest (`text`, targets) is for objectives and
attacks."""


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Select the fields of a batch that a model's `forward` takes; `inputs_embeds` displaces `input_ids`."""
    names = [name for name in MODEL_INPUTS if name in batch]
    return {name: batch[name] for name in names if name != "input_ids" or "inputs_embeds" not in batch}


@dataclass(frozen=True)
class AttackResult:
    """An adversarial batch and what it cost.

    Attributes:
        batch: The caller's fields, with the attacked ones replaced. Unattacked tensors are shared with the
            caller's.
        loss_before: Objective of the clean examples, shape `(batch,)`, detached.
        loss_after: Objective of the adversarial examples, shape `(batch,)`, detached. Both are NaN, unknown,
            where an attack was told not to score.
        forwards: Example rows that this attack sent through the objective's encoder.
        backwards: Example rows that it differentiated with respect to an input.
    """

    batch: dict[str, Any]
    loss_before: Tensor
    loss_after: Tensor
    forwards: int
    backwards: int


class Attack(Protocol):
    """Anything that turns a batch and an objective into an `AttackResult`.

    An attack leaves the parameters, their `.grad`, the global random state and the caller's batch as it found
    them. It needs no labels: what counts as damage is the objective's business.
    """

    @property
    def threat_model(self) -> ThreatModel:
        """What the attack is allowed to do."""
        ...

    def __call__(self, batch: Batch, objective: Any) -> AttackResult:
        """Search for the batch near `batch` with the largest objective."""
        ...


@dataclass(frozen=True)
class JointObjective:
    """An objective taken apart at the joint embedding, which is what an attack on words needs to see.

    Attributes:
        embed: Batch to joint embedding `(batch, dim)`. Must accept `inputs_embeds (batch, length, hidden)` in
            place of `input_ids`, and embed every row independently of the other rows.
        loss: (embedding `(batch, dim)`, batch) to loss per example `(batch,)`, to be maximised.
        word_embeddings: The encoder's word embedding layer, `model.get_input_embeddings()`.
        clean: What several attacks on one batch share; None: each works on its own.
        embed_images: Batch to `image_embeds` and their `pixel_mask`, which `embed` then accepts in place of
            `pixel_values`: an attack on words embeds the images once. None: `embed` sees pixels.
    """

    embed: Callable[[Batch], Tensor]
    loss: Callable[[Tensor, Batch], Tensor]
    word_embeddings: nn.Module
    clean: "CleanPass | None" = None
    embed_images: Callable[[Batch], dict[str, Tensor]] | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Loss per example of a batch, shape `(batch,)`."""
        return self.loss(self.embed(batch), batch)

    def differentiate(self, batch: Batch, words: bool = True, pixels: bool = False) -> "PairGradients":
        """Differentiate every example's own loss in one pass, forward and back.

        In half precision the gradient of a small loss would vanish on its way back through the encoder, and
        an attack with it: a contrastive loss of 1e-5, usual in training, leaves no pixel a gradient. So what
        goes back is scaled to a size that half precision can hold, by a power of two, which changes no bit of
        the result in single precision.

        Args:
            batch: Must hold `input_ids` if `words`, and `pixel_values` if `pixels`.
            words: Whether the gradients of the word vectors are wanted.
            pixels: Whether those of the pixels are.

        Raises:
            ValueError: If the loss is not per example, or does not depend on the inputs through gradients.
        """
        inputs, wanted = dict(batch), {}
        if words:
            with torch.no_grad():
                wanted["inputs_embeds"] = self.word_embeddings(inputs.pop("input_ids"))
        if pixels:
            wanted["pixel_values"] = inputs["pixel_values"]
        wanted = {name: values.detach().requires_grad_() for name, values in wanted.items()}
        size = len(next(iter(wanted.values())))
        with torch.enable_grad():
            embedding = self.embed({**inputs, **wanted})
            query = embedding.detach().requires_grad_()
            losses = check_losses(self.loss(query, batch), size)
            if not (embedding.requires_grad and losses.requires_grad):
                raise ValueError(
                    f"The objective's loss does not depend on {' and '.join(wanted)} through gradients; "
                    "remove torch.no_grad() or detach() from it."
                )
            # Rows are independent, so the gradient of the sum holds every row's own gradient.
            (direction,) = torch.autograd.grad(losses.sum(), query)
            scale = _power_of_two(direction if len(direction) == size else direction[None])
            scaled = (direction * _per_row(scale, direction)).to(embedding.dtype)
            found = torch.autograd.grad(embedding, list(wanted.values()), scaled)
        gradients = {
            name: gradient / _per_row(scale, gradient) for name, gradient in zip(wanted, found, strict=True)
        }
        return PairGradients(
            losses.detach(),
            query.detach(),
            direction,
            gradients.get("inputs_embeds"),
            gradients.get("pixel_values"),
        )


def _power_of_two(gradient: Tensor) -> Tensor:
    """The factor `(rows,)` that brings the L2 norm of each row to between 8 and 16."""
    norm = gradient.flatten(1).float().norm(dim=1)
    exponent = torch.frexp(norm).exponent.clamp(min=-96)
    return torch.ldexp(torch.ones_like(norm), 4 - exponent)


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale.to(torch.promote_types(values.dtype, torch.float32)).reshape(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class PairGradients:
    """Loss and joint embedding of pairs, and the gradients of every pair's own loss.

    Attributes:
        loss: Shape `(batch,)`.
        embedding: Shape `(batch, dim)`.
        of_embedding: With respect to the embedding, `(batch, dim)`.
        of_words: With respect to the word vectors, `(batch, length, hidden)`; None if not wanted.
        of_pixels: With respect to `pixel_values`, in their shape; None if not wanted.
    """

    loss: Tensor
    embedding: Tensor
    of_embedding: Tensor
    of_words: Tensor | None
    of_pixels: Tensor | None


class CleanPass:
    """One pass over the clean pairs, forward and back, for all attacks that start from them.

    Whoever runs several attacks on one batch puts one into the objective. The first attack on pixels that
    starts from the clean images runs the pass and counts its rows; those after it find it done. An attack on
    another batch, such as one beside attacked texts, works on its own.

    Args:
        batch: The clean pairs, with `pixel_values` and `input_ids`.
    """

    def __init__(self, batch: Batch) -> None:
        self._inputs = model_inputs(batch)
        self.gradients: PairGradients | None = None

    def covers(self, batch: Batch) -> bool:
        """Whether these are the clean pairs: the same tensors, not equal ones."""
        inputs = model_inputs(batch)
        return inputs.keys() == self._inputs.keys() and all(
            values is self._inputs[name] for name, values in inputs.items()
        )


def select_rows(batch: Batch, rows: Sequence[int]) -> dict[str, Any]:
    """Take (or repeat) examples of a batch: tensors by index, lists item by item."""
    index = torch.as_tensor(rows, dtype=torch.long)
    return {
        name: values.index_select(0, index.to(values.device))
        if isinstance(values, Tensor)
        else [values[row] for row in index.tolist()]
        for name, values in batch.items()
    }


def check_losses(losses: Any, batch_size: int) -> Tensor:
    """Return `losses` if there is one per example.

    Raises:
        ValueError: If the objective returned anything but a tensor of shape `(batch_size,)`.
    """
    if isinstance(losses, Tensor) and losses.shape == (batch_size,):
        return losses
    got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
    raise ValueError(
        f"The objective must return one loss per example, shape ({batch_size},), but returned {got}; "
        "compute it with reduction='none' and average every dimension except the first."
    )


def isolated_rng(tensor: Tensor) -> AbstractContextManager[None]:
    """Restore the random state of the CPU, and of the accelerator `tensor` lives on, when the context
    ends.
    """
    if tensor.device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[tensor.device], device_type=tensor.device.type)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and constant parameters inside the context; every flag is put back afterwards.

    An attack sees the model only through the objective. Whoever owns the model wraps the attack in this
    context: no dropout, no update of batch statistics, and no memory kept for parameter gradients, which
    nobody asks for.
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    training = [part.training for part in parts]
    trainable = [
        parameter for part in parts for parameter in part.parameters(recurse=False) if parameter.requires_grad
    ]
    try:
        for part in parts:
            part.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, mode in zip(parts, training, strict=True):
            part.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)
