"""The objectives against lightly, closed forms, and two processes against one."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss

from rmcl_hub.modeling_rmcl.contrastive_losses import (
    barlow_twins_loss,
    barlow_twins_loss_per_example,
    gather_embeddings,
    info_nce_loss,
    negative_cosine_similarity,
    nt_xent_loss,
)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    z_a = torch.randn(16, 24, generator=generator) * 3 + 2
    return z_a, z_a + torch.randn(16, 24, generator=generator)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


class TestInfoNCE:
    def test_equals_lightly_with_the_same_memory_bank(self):
        query, key = unit(6, 8), unit(6, 8, seed=1)
        reference = NTXentLoss(temperature=0.07, memory_bank_size=(32, 8))
        reference.train()
        expected = reference(query, key)  # the first call creates the bank and does not use this batch
        bank = reference.memory_bank.bank  # after the update: the rows of this batch were replaced
        reference = NTXentLoss(temperature=0.07, memory_bank_size=(32, 8))
        reference.memory_bank.bank = bank.clone()
        reference.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        expected = reference(query, key)
        queue = bank if bank.shape == (32, 8) else bank.T
        torch.testing.assert_close(info_nce_loss(query, key, queue, 0.07), expected)

    def test_equals_the_formula_row_by_row(self):
        query, key, queue = unit(3, 5), unit(3, 5, seed=1), unit(7, 5, seed=2)
        losses = info_nce_loss(query, key, queue, 0.2, reduction="none")
        for row in range(3):
            positive = math.exp(float(query[row] @ key[row]) / 0.2)
            negatives = sum(math.exp(float(query[row] @ negative) / 0.2) for negative in queue)
            assert losses[row].item() == pytest.approx(-math.log(positive / (positive + negatives)), rel=1e-5)

    def test_equal_logits_give_the_log_of_the_number_of_choices(self):
        loss = info_nce_loss(torch.ones(2, 1), torch.ones(2, 1), torch.ones(65536, 1))
        assert loss.item() == pytest.approx(math.log(65537), abs=1e-3)

    def test_only_the_query_has_a_gradient(self):
        query, key, queue = (unit(4, 3, seed=seed).requires_grad_() for seed in range(3))
        info_nce_loss(query, key, queue).backward()
        assert query.grad.abs().sum() > 0
        assert key.grad is None
        assert queue.grad is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((torch.ones(2, 3), torch.ones(2, 4), torch.ones(5, 3)), "same shape"),
            (
                (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 5)),
                r"queue must have shape \(queue_size, 3\)",
            ),
            (
                (torch.ones(2, 3), torch.ones(2, 3), torch.ones(5, 3), 0.0),
                "temperature must be positive, got 0.0",
            ),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            info_nce_loss(*arguments)


class TestBarlowTwins:
    def test_equals_lightly(self, views):
        torch.testing.assert_close(barlow_twins_loss(*views), BarlowTwinsLoss()(*views), rtol=1e-5, atol=1e-5)

    def test_gradient_equals_the_plain_form_with_a_dim_by_dim_matrix(self, views):
        z_a, z_b = views
        z_a = z_a.double().requires_grad_()
        z_b = z_b.double()

        def plain(z_a):
            a = (z_a - z_a.mean(0)) / (z_a.var(0, unbiased=False) + 1e-5).sqrt()
            b = (z_b - z_b.mean(0)) / (z_b.var(0, unbiased=False) + 1e-5).sqrt()
            c = a.T @ b / len(a)
            off = c - torch.diag(torch.diag(c))
            return (1 - torch.diag(c)).square().sum() + 5e-3 * off.square().sum()

        expected = torch.autograd.grad(plain(z_a), z_a)[0]
        torch.testing.assert_close(torch.autograd.grad(barlow_twins_loss(z_a, z_b), z_a)[0], expected)

    def test_is_invariant_to_shift_and_scale_of_a_dimension_only_when_centred(self, views):
        z_a, z_b = views
        moved = z_a * torch.linspace(0.5, 2, z_a.shape[1]) + 7
        centred = barlow_twins_loss(z_a, z_b)
        torch.testing.assert_close(barlow_twins_loss(moved, z_b), centred, rtol=1e-3, atol=1e-3)
        uncentred = barlow_twins_loss(z_a, z_b, center=False)
        assert abs(barlow_twins_loss(moved, z_b, center=False) - uncentred) > 1

    def test_closed_forms(self):
        orthogonal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        assert barlow_twins_loss(orthogonal, orthogonal).item() == pytest.approx(0, abs=1e-6)
        assert barlow_twins_loss(orthogonal, -orthogonal).item() == pytest.approx(2 * 4, rel=1e-4)
        equal = orthogonal[:, :1].repeat(1, 2)  # C is all ones: only lambda * 2 remains
        assert barlow_twins_loss(equal, equal, lambda_param=0.5).item() == pytest.approx(1.0, rel=1e-4)

    def test_one_example_is_refused(self):
        with pytest.raises(ValueError, match="at least 2 examples, got 1"):
            barlow_twins_loss(torch.ones(1, 4), torch.ones(1, 4))


class TestBarlowTwinsPerExample:
    def test_is_the_batch_loss_with_one_row_replaced(self, views):
        clean, key = (view.double() for view in views)
        attacked = clean + torch.randn(16, 24, generator=torch.Generator().manual_seed(2), dtype=torch.double)
        rows = torch.tensor([3, 3, 0, 15])
        losses = barlow_twins_loss_per_example(attacked[:4], rows, clean, key)
        mean, std = clean.mean(0), (clean.var(0, unbiased=False) + 1e-5).sqrt()
        b = (key - key.mean(0)) / (key.var(0, unbiased=False) + 1e-5).sqrt()
        for i, row in enumerate(rows):
            changed = (clean - mean) / std
            changed[row] = (attacked[i] - mean) / std
            c = changed.T @ b / 16
            off = c - torch.diag(torch.diag(c))
            expected = (1 - torch.diag(c)).square().sum() + 5e-3 * off.square().sum()
            torch.testing.assert_close(losses[i], expected)

    def test_unattacked_rows_give_the_clean_batch_loss(self, views):
        clean, key = views
        losses = barlow_twins_loss_per_example(clean, torch.arange(16), clean, key)
        torch.testing.assert_close(losses, barlow_twins_loss(clean, key).expand(16), rtol=1e-4, atol=1e-4)


def test_nt_xent_equals_lightly():
    z_a, z_b = unit(6, 8), unit(6, 8, seed=1)
    torch.testing.assert_close(nt_xent_loss(z_a, z_b, 0.5), NTXentLoss(temperature=0.5)(z_a, z_b))


def test_negative_cosine_similarity_equals_lightly_and_stops_the_gradient():
    p, z = unit(6, 8).requires_grad_(), unit(6, 8, seed=1).requires_grad_()
    loss = negative_cosine_similarity(p, z)
    torch.testing.assert_close(loss, NegativeCosineSimilarity()(p, z))
    loss.backward()
    assert z.grad is None
    assert negative_cosine_similarity(z, z).item() == pytest.approx(-1)


def _compare_with_one_process(expected_loss, expected_gradient):
    import torch.distributed as dist

    assert dist.get_world_size() == 2, "this test needs two processes to mean anything"
    half = slice(0, 8) if dist.get_rank() == 0 else slice(8, 16)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 24, generator=generator)
    key = inputs + torch.randn(16, 24, generator=generator)
    weight = torch.eye(24).requires_grad_()
    loss = barlow_twins_loss(gather_embeddings(inputs[half] @ weight), gather_embeddings(key[half]))
    loss.backward()
    gradient = weight.grad.clone()
    dist.all_reduce(gradient)
    torch.testing.assert_close(loss.detach(), expected_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient / 2, expected_gradient, rtol=1e-4, atol=1e-5)  # DDP averages


def test_barlow_gradient_of_two_processes_equals_one():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 24, generator=generator)
    key = inputs + torch.randn(16, 24, generator=generator)
    weight = torch.eye(24).requires_grad_()
    loss = barlow_twins_loss(inputs @ weight, key)
    loss.backward()
    debug_launcher(_compare_with_one_process, (loss.detach(), weight.grad), num_processes=2)
