"""The Barlow Twins loss at the width of 8192: no tensor of width times width exists, forward or backward."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmcl_hub.modeling_rmcl.contrastive_losses import barlow_twins_loss, barlow_twins_loss_per_example

BATCH, DIM = 4, 8192


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def largest_of(loss, *embeddings):
    with LargestTensor() as largest:
        torch.autograd.grad(loss(*embeddings).sum(), embeddings[0])
    return largest.elements


def embeddings(batch, dim, seed=0):
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_the_plain_form_has_a_square_matrix():
    """Else the other tests could not fail."""
    z = embeddings(BATCH, 64)
    assert largest_of(lambda z: (z.T @ z).square().sum(), z) == 64**2


@pytest.mark.parametrize("center", [True, False])
def test_no_square_matrix_in_the_loss_of_a_batch(center):
    z_a, z_b = embeddings(BATCH, DIM), embeddings(BATCH, DIM, seed=1)
    assert largest_of(lambda z_a, z_b: barlow_twins_loss(z_a, z_b, center=center), z_a, z_b) == BATCH * DIM


def test_no_square_matrix_in_the_losses_of_candidates():
    """One candidate costs as much as its row, whatever the batch."""
    candidates, clean, key = embeddings(9, DIM), embeddings(BATCH, DIM, 1), embeddings(BATCH, DIM, 2)
    rows = torch.arange(9) % BATCH
    largest = largest_of(lambda z: barlow_twins_loss_per_example(z, rows, clean, key), candidates)
    assert largest == 9 * DIM


def formula(z_a, z_b, weight):
    """Thesis Eq. 2.10, number by number."""
    batch, dim = z_a.shape
    standardised = [
        [
            [(z[row][i] - z[:, i].mean()) / np.sqrt(z[:, i].var() + 1e-5) for i in range(dim)]
            for row in range(batch)
        ]
        for z in (z_a, z_b)
    ]
    loss = 0.0
    for i in range(dim):
        for j in range(dim):
            c = sum(standardised[0][row][i] * standardised[1][row][j] for row in range(batch)) / batch
            loss += (1 - c) ** 2 if i == j else weight * c**2
    return loss


def test_value_and_gradient_are_those_of_a_loop_over_the_matrix():
    generator = np.random.default_rng(0)
    z_a, z_b = generator.normal(size=(2, 5, 4)) + 1
    ours = torch.tensor(z_a, requires_grad=True)
    loss = barlow_twins_loss(ours, torch.tensor(z_b), lambda_param=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(formula(z_a, z_b, 0.3), rel=1e-9)
    step = 1e-6
    for place in np.ndindex(*z_a.shape):
        moved = np.zeros_like(z_a)
        moved[place] = step
        slope = (formula(z_a + moved, z_b, 0.3) - formula(z_a - moved, z_b, 0.3)) / (2 * step)
        assert ours.grad[place].item() == pytest.approx(slope, abs=1e-6)
