"""Rows through an encoder, counted where they pass, and what they take at least."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from timing import Spent
from torch import Tensor, nn

from rmcl_hub.attacks.base import Batch, frozen, model_inputs


@dataclass
class Passes:
    """Rows sent forward, rows differentiated with constant weights, rows differentiated to the weights."""

    forwards: int = 0
    backwards: int = 0
    trained: int = 0

    def bound(self, units: dict[str, Spent], rows: int) -> float:
        """Processor seconds that so many rows take at least, from the time of `rows` rows of each unit."""
        forward = units["F"].cpu_seconds
        bound = self.forwards * forward + self.backwards * (units["F + B_in"].cpu_seconds - forward)
        if self.trained:
            bound += self.trained * (units["F + B"].cpu_seconds - forward)
        return bound / rows


class PassCounter(Passes):
    """Counts the rows of every call of some encoders; the count starts anew with `reset`."""

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        super().__init__()
        self._hooks = [encoder.register_forward_hook(self._count) for encoder in encoders]

    def __deepcopy__(self, _: Any) -> "PassCounter":
        """A copy of a model that is watched is watched, too, by the same counter."""
        return self

    def remove(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()

    def reset(self) -> None:
        """Start again at zero."""
        self.forwards = self.backwards = self.trained = 0

    def read(self) -> Passes:
        """The count so far."""
        return Passes(**{field.name: getattr(self, field.name) for field in fields(Passes)})

    def _count(self, encoder: nn.Module, _: Any, output: Any) -> None:
        states = output.last_hidden_state
        self.forwards += len(states)
        if states.requires_grad:
            trains = any(parameter.requires_grad for parameter in encoder.parameters())
            states.register_hook(self._count_trained if trains else self._count_backwards)

    def _count_backwards(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def _count_trained(self, gradient: Tensor) -> None:
        self.trained += len(gradient)


def unit_runs(model: Any, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The three units for a batch: forward, with the pixels' gradient, with the weights' gradients."""
    inputs = model_inputs(batch)

    def forward() -> None:
        with torch.no_grad(), frozen(model):
            model.joint_embedding(**inputs)

    def differentiate() -> None:
        pixels = inputs["pixel_values"].detach().requires_grad_()
        with frozen(model):
            embedding = model.joint_embedding(**{**inputs, "pixel_values": pixels})
            torch.autograd.grad(embedding.sum(), pixels)

    def train() -> None:
        model.train()
        model.joint_embedding(**inputs).sum().backward()
        model.zero_grad(set_to_none=True)

    return {"F": forward, "F + B_in": differentiate, "F + B": train}
