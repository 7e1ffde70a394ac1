"""Rows through an encoder, counted where they pass, and what they take at least."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from timing import Spent, in_turns, median, table
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
    embed = model.joint_embedding if hasattr(model, "joint_embedding") else model.joint_representation

    def forward() -> None:
        with torch.no_grad(), frozen(model):
            embed(**inputs)

    def differentiate() -> None:
        pixels = inputs["pixel_values"].detach().requires_grad_()
        with frozen(model):
            embedding = embed(**{**inputs, "pixel_values": pixels})
            torch.autograd.grad(embedding.sum(), pixels)

    def train() -> None:
        model.train()
        embed(**inputs).sum().backward()
        model.zero_grad(set_to_none=True)

    return {"F": forward, "F + B_in": differentiate, "F + B": train}


def against_bound(
    model: Any,
    units: dict[str, Callable[[], Any]],
    runs: dict[str, Callable[[], Any]],
    repetitions: int,
    key_encoders: Sequence[Any] = (),
) -> dict[str, Any]:
    """Times and counts of `runs`, units in turns with them; medians, also of the ratios of single runs."""
    counter = PassCounter([model.vilt.encoder, *(encoder.vilt.encoder for encoder in key_encoders)])
    counted: dict[str, list[Passes]] = defaultdict(list)

    def count(name: str) -> None:
        counter.reset()
        runs[name]()
        counted[name].append(counter.read())

    if not any(parameter.requires_grad for parameter in model.parameters()):
        units = {name: unit for name, unit in units.items() if name != "F + B"}
    counting = {name: lambda name=name: count(name) for name in runs}
    spent = in_turns({**units, **counting}, repetitions, warm_up=list(units))
    of_units = {name: median(spent[name]) for name in units}
    counter.reset()
    units["F"]()
    rows = counter.forwards
    return {
        "units": {name: vars(of_unit) for name, of_unit in of_units.items()},
        "runs": {name: _figures(spent[name], counted[name], of_units, rows) for name in runs},
    }


def _figures(spent: list[Spent], counted: list[Passes], units: dict[str, Spent], rows: int) -> dict[str, Any]:
    """A queue moves on with every step, and attacks with it: each run has its own bound."""
    bounds = [passes.bound(units, rows) for passes in counted]
    ratios = [one.cpu_seconds / bound for one, bound in zip(spent, bounds, strict=True)]
    return {
        **{
            name: [getattr(passes, name) for passes in counted]
            for name in ("forwards", "backwards", "trained")
        },
        **vars(median(spent)),
        "bound": statistics.median(bounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def bound_table(name: str, part: dict[str, Any]) -> Iterator[str]:
    """What `against_bound` found: processor seconds of a batch, wall-clock beside, and the ratio."""
    units = ", ".join(f"{unit} {spent['cpu_seconds']:.3f}" for unit, spent in part["units"].items())
    yield f"{name}: {units}\n"
    counts, figures = ("forwards", "backwards", "trained"), ("seconds", "cpu_seconds", "bound", "ratio")
    yield from table(
        ["run", *counts, "wall s", "processor s", "bound", "ratio"],
        (
            [
                run,
                *(f"{statistics.median(row[column]):g}" for column in counts),
                *(row[column] for column in figures),
            ]
            for run, row in part["runs"].items()
        ),
    )
