"""Batch normalisation over the batches of all processes, against one process and against the formula."""

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl.contrastive_losses import (
    barlow_twins_loss,
    gather_embeddings,
    mean_over_processes,
    process_count,
)
from rmcl_hub.modeling_rmcl.projectors import BarlowTwinsProjector, GatheredBatchNorm


@pytest.fixture
def forget_processes():
    """Accelerate keeps what it learned about the processes for good; other tests must not inherit it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def batch():
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 100
    return x, torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def normalise(norm, x, direction):
    """Two train steps and an evaluation; all that a step leaves."""
    norm = norm.double()
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(3))
    outputs, gradients = [], []
    for scale in (1.0, 2.0):
        own = (x * scale).requires_grad_()
        outputs.append(norm(own))
        (outputs[-1] * direction).sum().backward()
        gradients.append(own.grad)
    outputs.append(norm.eval()(x))
    weights = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {
        "outputs": torch.stack(outputs).detach(),
        "gradients": torch.stack(gradients),
        "weights": weights,
        "statistics": dict(norm.named_buffers()),
    }


@pytest.mark.usefixtures("forget_processes")
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None}])
def test_statistics_are_those_of_all_processes_also_of_different_sizes(tmp_path, settings):
    def run():
        rank = torch.distributed.get_rank()
        assert process_count() == 2
        x, direction = (part.split([3, 5])[rank] for part in batch())
        torch.save(normalise(GatheredBatchNorm(5, **settings), x, direction), tmp_path / f"{rank}.pt")

    debug_launcher(run, num_processes=2)
    one = normalise(nn.BatchNorm1d(5, **settings), *batch())
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in ("outputs", "gradients"):
        both = torch.cat([part[name] for part in two], dim=1)
        assert_close(both, one[name], atol=1e-11, rtol=1e-11)
    assert one["gradients"].abs().max() > 1e-2
    for name, gradient in one["weights"].items():  # of the sum over the examples: each process has its part
        assert_close(two[0]["weights"][name] + two[1]["weights"][name], gradient, atol=1e-11, rtol=1e-11)
    assert_close(two[0]["statistics"], two[1]["statistics"], atol=0, rtol=0)
    assert_close(two[0]["statistics"], one["statistics"], atol=1e-11, rtol=1e-11)


def project(model, x):
    z_a, z_b = (gather_embeddings(model(view)) for view in x)
    loss = barlow_twins_loss(z_a, z_b)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.usefixtures("forget_processes")
def test_barlow_twins_gradients_are_those_of_one_process(tmp_path):
    torch.manual_seed(0)
    projector = BarlowTwinsProjector(6, 12).double()
    views = torch.randn(2, 8, 6, dtype=torch.float64)
    state = {name: value.clone() for name, value in projector.state_dict().items()}

    def run():
        rank = torch.distributed.get_rank()
        result = project(DistributedDataParallel(projector), views[:, 4 * rank : 4 * rank + 4])
        result = {name.removeprefix("module."): value for name, value in result.items()}
        torch.save((result, projector.state_dict()), tmp_path / f"{rank}.pt")

    debug_launcher(run, num_processes=2)
    (first, first_state), (second, second_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    one = project(projector, views)
    assert one["layers.0.weight"].abs().max() > 1e-2
    assert_close(first, one, atol=1e-12, rtol=1e-10)
    assert_close(first, second, atol=0, rtol=0)
    assert_close(first_state, projector.state_dict(), atol=1e-12, rtol=1e-12)
    assert_close(first_state, second_state, atol=0, rtol=0)
    assert not torch.equal(first_state["layers.1.running_mean"], state["layers.1.running_mean"])


def test_on_one_process_it_is_batch_normalisation_bit_by_bit():
    x, direction = batch()
    ours, theirs = (normalise(kind(5), x, direction) for kind in (GatheredBatchNorm, nn.BatchNorm1d))
    assert_close(ours, theirs, atol=0, rtol=0)
    assert GatheredBatchNorm(5).state_dict().keys() == nn.BatchNorm1d(5).state_dict().keys()


@pytest.mark.usefixtures("forget_processes")
def test_mean_over_processes(tmp_path):
    def run():
        own = torch.tensor(float(3 * torch.distributed.get_rank()), requires_grad=True)
        mean = mean_over_processes(own)
        assert mean == 1.5
        assert not mean.requires_grad
        assert own in (0, 3)

    debug_launcher(run, num_processes=2)
    value = torch.tensor(2.0)
    assert mean_over_processes(value) is value
    assert process_count() == 1
