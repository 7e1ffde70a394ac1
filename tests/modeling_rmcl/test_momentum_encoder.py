"""The key branch: exponential average in closed form, and the queue as a ring."""

import pytest
import torch
from torch import nn

from rmcl_hub.modeling_rmcl.momentum_encoder import MomentumEncoder


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def joint_embedding(self, x):
        return self.dropout(self.norm(self.layer(x)))


@pytest.fixture
def query():
    torch.manual_seed(0)
    return Encoder()


def test_after_n_updates_the_weights_are_the_closed_form(query):
    keys = MomentumEncoder(query, dim=3, queue_size=8, momentum=0.9)
    start = query.layer.weight.detach().clone()
    with torch.no_grad():
        query.layer.weight.add_(1.0)
    for _ in range(5):
        keys.update(query)
    expected = 0.9**5 * start + (1 - 0.9**5) * query.layer.weight.detach()
    torch.testing.assert_close(keys.encoder.layer.weight, expected)


def test_starts_as_the_query_and_never_takes_its_gradient(query):
    keys = MomentumEncoder(query, dim=3, queue_size=8)
    for key, value in query.state_dict().items():
        torch.testing.assert_close(keys.encoder.state_dict()[key], value)
    assert not any(parameter.requires_grad for parameter in keys.parameters())
    assert all(parameter.requires_grad for parameter in query.parameters())


def test_buffers_are_copied(query):
    keys = MomentumEncoder(query, dim=3, queue_size=8)
    query.norm.running_mean += 2.0
    keys.update(query)
    torch.testing.assert_close(keys.encoder.norm.running_mean, query.norm.running_mean)


def test_keys_are_unit_vectors_without_dropout_even_in_train_mode(query):
    keys = MomentumEncoder(query, dim=3, queue_size=8).train()
    x = torch.randn(5, 4)
    first, second = keys(x=x), keys(x=x)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(5))
    assert not first.requires_grad


def test_queue_is_first_in_first_out_and_wraps(query):
    keys = MomentumEncoder(query, dim=3, queue_size=5)
    batches = torch.arange(12.0).view(4, 3, 1).repeat(1, 1, 3)  # four of three keys; key i is [i, i, i]
    for batch in batches:
        keys.enqueue(batch)
    assert sorted(keys.queue[:, 0].tolist()) == [7, 8, 9, 10, 11]
    assert int(keys.queue_pointer) == 12 % 5
    assert keys.queue[int(keys.queue_pointer)].tolist() == [7, 7, 7], "the pointer stands at the oldest key"


def test_more_keys_than_the_queue_holds_keep_the_last(query):
    keys = MomentumEncoder(query, dim=3, queue_size=4)
    keys.enqueue(torch.arange(10.0)[:, None].repeat(1, 3))
    assert sorted(keys.queue[:, 0].tolist()) == [6, 7, 8, 9]
    keys.enqueue(torch.full((1, 3), 99.0))
    assert sorted(keys.queue[:, 0].tolist()) == [7, 8, 9, 99], "the oldest goes first"


def test_queue_init(query):
    unit = MomentumEncoder(query, dim=128, queue_size=64).queue
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(64))
    gaussian = MomentumEncoder(query, dim=128, queue_size=64, queue_init="gaussian").queue
    assert gaussian.norm(dim=1).mean().item() == pytest.approx(128**0.5, rel=0.05)


def test_state_dict_holds_everything(query):
    keys = MomentumEncoder(query, dim=3, queue_size=5)
    keys.enqueue(torch.ones(2, 3))
    other = MomentumEncoder(Encoder(), dim=3, queue_size=5)
    other.load_state_dict(keys.state_dict())
    torch.testing.assert_close(other.queue, keys.queue)
    assert int(other.queue_pointer) == 2


def test_construction_leaves_the_global_random_state_alone(query):
    before = torch.get_rng_state()
    MomentumEncoder(query, dim=3, queue_size=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"queue_size": 0}, "queue_size must be at least 1, got 0"),
        ({"queue_init": "zeros"}, "queue_init must be 'unit' or 'gaussian', got 'zeros'"),
    ],
)
def test_bad_settings(query, settings, message):
    with pytest.raises(ValueError, match=message):
        MomentumEncoder(query, dim=3, **settings)
