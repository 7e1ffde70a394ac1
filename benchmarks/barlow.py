"""What the Barlow Twins loss and its gradient cost, beside the plain form with its D x D matrix.

    OMP_NUM_THREADS=1 python benchmarks/barlow.py --json barlow.json

The plain form is Eq. 1 of the paper (arXiv:2103.03230) as one would write it down: the cross-correlation
`(D, D)` of the standardised embeddings, its diagonal, and the sum of squares of the rest. Both forms are
run in turns on the same embeddings; values and gradients must agree. The lower bound is the matrix products
of the batch's two Gram matrices, forward and backward, at the rate of this process. `largest` is the most
elements of any tensor that an operation returned, `peak` the memory that operations asked for.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from allocations import Allocations
from timing import argument_parser, circumstances, medians_in_turns, show, table
from torch import Tensor

from rmcl_hub.modeling_rmcl.contrastive_losses import barlow_twins_loss

LAMBDA = 5e-3


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--dim", type=int, default=8192, help="width of the embeddings (default: 8192)")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32], help="default: 4 32")
    arguments = parser.parse_args(argv)
    record = measure(arguments)
    show(record, tables(record), arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    batches = {batch: _embeddings(batch, arguments.dim) for batch in arguments.batch}
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": plain_loss, "ours": barlow_twins_loss}
    spent = medians_in_turns(
        {
            **{
                f"{name} {batch}": partial(_differentiate, loss, *views)
                for batch, views in batches.items()
                for name, loss in losses.items()
            },
            **{f"products {batch}": partial(_gram_products, *views) for batch, views in batches.items()},
        },
        arguments.repetitions,
    )
    record: dict[str, Any] = {
        **circumstances(),
        "setting": {"dim": arguments.dim, "repetitions": arguments.repetitions},
        "batches": {},
    }
    for batch, views in batches.items():
        values = {name: _differentiate(loss, *views) for name, loss in losses.items()}
        (value, *gradients), (plain_value, *plain_gradients) = values["ours"], values["plain"]
        difference = max(
            float((ours - plain).norm() / plain.norm())
            for ours, plain in zip(gradients, plain_gradients, strict=True)
        )
        record["batches"][batch] = {
            "value": abs(float(value / plain_value) - 1),
            "gradient": difference,
            "bound": spent[f"products {batch}"].cpu_seconds,
            **{
                name: {**vars(spent[f"{name} {batch}"]), **_memory(loss, views)}
                for name, loss in losses.items()
            },
        }
    return record


def tables(record: dict[str, Any]) -> Iterator[str]:
    """One row per batch and form."""
    dim = record["setting"]["dim"]
    rows = []
    for batch, figures in record["batches"].items():
        for name in ("plain", "ours"):
            form = figures[name]
            rows.append(
                [
                    batch,
                    name,
                    form["cpu_seconds"],
                    form["seconds"],
                    form["cpu_seconds"] / figures["bound"],
                    figures["plain"]["cpu_seconds"] / form["cpu_seconds"],
                    form["peak"] / 1e6,
                    form["largest"],
                    "yes" if form["largest"] >= dim * dim else "no",
                ]
            )
    columns = ["batch", "form", "processor s", "wall s", "over bound", "speed-up", "peak MB", "largest"]
    yield from table([*columns, "D x D?"], rows)
    yield from (
        f"batch {batch}: relative difference of the values {figures['value']:.0e}, of the gradients "
        f"{figures['gradient']:.0e}"
        for batch, figures in record["batches"].items()
    )


def plain_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Barlow Twins with its matrix."""
    z_a, z_b = (
        (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b)
    )  # (batch, dim)
    correlation = z_a.T @ z_b / len(z_a)  # (dim, dim)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + LAMBDA * off_diagonal


def _embeddings(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two views that have something in common."""
    generator = torch.Generator().manual_seed(0)
    shared, first, second = torch.randn(3, batch, dim, generator=generator)
    return (shared + first).requires_grad_(), (shared + second).requires_grad_()


def _differentiate(
    loss: Callable[[Tensor, Tensor], Tensor], z_a: Tensor, z_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    value = loss(z_a, z_b)
    return value.detach(), *torch.autograd.grad(value, (z_a, z_b))


def _gram_products(z_a: Tensor, z_b: Tensor) -> None:
    """Two products forward, and the gradient of each with respect to its one factor."""
    with torch.no_grad():
        for z in (z_a, z_b):
            (z @ z.T) @ z


def _memory(loss: Callable[[Tensor, Tensor], Tensor], views: tuple[Tensor, Tensor]) -> dict[str, int]:
    with Allocations() as allocations:
        _differentiate(loss, *views)
    return {"peak": allocations.peak, "largest": allocations.largest}


if __name__ == "__main__":
    sys.exit(main())
