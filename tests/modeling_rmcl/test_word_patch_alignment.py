import numpy as np
import ot
import pytest
import torch
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl.word_patch_alignment import (
    alignment_distance,
    inner_word_mask,
    ipot_plan,
    word_patch_alignment_loss,
)


@pytest.fixture
def states():
    """Four pairs with 3 to 8 of 8 words and 12 to 4 of 12 patches."""
    words, patches = torch.randn(4, 8, 16), torch.randn(4, 12, 16)
    word_mask = torch.arange(8) < torch.tensor([[3], [5], [8], [6]])
    patch_mask = torch.arange(12) < torch.tensor([[12], [9], [4], [6]])
    return words, patches, word_mask, patch_mask


def exact_distance(words, patches):
    """Earth mover's distance with uniform marginals, by POT's network simplex."""
    cosine = torch.nn.functional.cosine_similarity(words[:, None], patches[None], dim=-1)
    cost = (1 - cosine).double().numpy()
    return ot.emd2(np.full(len(words), 1 / len(words)), np.full(len(patches), 1 / len(patches)), cost)


def exact_distances(words, patches, word_mask, patch_mask):
    rows = zip(words, patches, word_mask, patch_mask, strict=True)
    return torch.tensor([exact_distance(w[wm], p[pm]) for w, p, wm, pm in rows], dtype=torch.double)


def test_default_setting_is_close_to_the_exact_distance(states):
    """The plan is nearly feasible, so its cost lies above the optimum; 50 steps of 0.5 come within 2e-3."""
    error = alignment_distance(*states).double() - exact_distances(*states)
    assert (error > -1e-4).all()
    assert (error < 2e-3).all()


def test_many_small_steps_reach_the_exact_distance(states):
    """The setting of the thesis's heat maps."""
    distance = alignment_distance(*states, beta=0.1, num_iterations=1000).double()
    assert_close(distance, exact_distances(*states), atol=1e-6, rtol=0)


def test_plan_has_uniform_marginals(states):
    words, patches, word_mask, patch_mask = states
    plan = ipot_plan(torch.cdist(words, patches), word_mask, patch_mask, beta=0.5, num_iterations=500)
    assert (plan >= 0).all()
    assert (plan[~(word_mask[:, :, None] & patch_mask[:, None, :])] == 0).all()
    columns = patch_mask / patch_mask.sum(dim=1, keepdim=True)
    assert_close(plan.sum(dim=1), columns, atol=1e-6, rtol=0)
    rows = word_mask / word_mask.sum(dim=1, keepdim=True)
    assert_close(plan.sum(dim=2), rows, atol=1e-3, rtol=0)


def test_padding_does_not_matter(states):
    words, patches, word_mask, patch_mask = states
    together = alignment_distance(*states)
    for row in range(4):
        word, patch = words[row : row + 1, word_mask[row]], patches[row : row + 1, patch_mask[row]]
        alone = alignment_distance(
            word, patch, torch.ones(word.shape[:2], dtype=bool), torch.ones(patch.shape[:2], dtype=bool)
        )
        assert_close(together[row], alone[0], atol=1e-6, rtol=1e-5)


def test_plan_moves_with_its_words_and_patches(states):
    words, patches, word_mask, patch_mask = states
    cost = torch.cdist(words, patches)
    word_order, patch_order = torch.randperm(8), torch.randperm(12)
    permuted = ipot_plan(
        cost[:, word_order][:, :, patch_order], word_mask[:, word_order], patch_mask[:, patch_order]
    )
    plan = ipot_plan(cost, word_mask, patch_mask)
    assert_close(permuted, plan[:, word_order][:, :, patch_order], atol=1e-7, rtol=1e-4)


def test_matching_states_have_distance_zero():
    """With equal sets the plan is the identity matching."""
    words = torch.eye(5).repeat(2, 1, 1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert_close(alignment_distance(words, words.flip(1), mask, mask), torch.zeros(2), atol=1e-4, rtol=0)


def test_gradient_flows_through_the_cost_and_not_through_the_plan(states):
    words, patches, word_mask, patch_mask = states
    words.requires_grad_()
    (gradient,) = torch.autograd.grad(alignment_distance(*states).sum(), words)

    def cost():
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (words, patches))
        return 1 - a @ b.transpose(1, 2)

    plan = ipot_plan(cost().detach(), word_mask, patch_mask)
    (expected,) = torch.autograd.grad((plan * cost()).sum(), words)
    assert_close(gradient, expected)


def test_loss_adds_true_pairs_and_subtracts_false_ones(states):
    distance = alignment_distance(*states)
    loss = word_patch_alignment_loss(*states, is_match=torch.tensor([1, 0, 0, 1]))
    assert_close(loss, (distance[0] - distance[1] - distance[2] + distance[3]) / 4)


def test_empty_text_contributes_nothing(states):
    words, patches, word_mask, patch_mask = states
    word_mask[1] = False
    words.requires_grad_()
    distance = alignment_distance(words, patches, word_mask, patch_mask)
    assert distance[1] == 0
    (gradient,) = torch.autograd.grad(distance.sum(), words)
    assert gradient.isfinite().all()


def test_half_precision_states_are_computed_in_float32(states):
    words, patches, word_mask, patch_mask = states
    exact = alignment_distance(words.bfloat16().float(), patches.bfloat16().float(), word_mask, patch_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = alignment_distance(words.bfloat16(), patches.bfloat16(), word_mask, patch_mask)
    assert distance.dtype == torch.float32
    assert_close(distance, exact)


def test_special_tokens_are_no_words():
    attention_mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    expected = [[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert inner_word_mask(attention_mask).long().tolist() == expected
