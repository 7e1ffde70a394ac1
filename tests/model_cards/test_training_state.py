"""Momentum encoder and queue leave the checkpoint without a pickle, and come back the same."""

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch.testing import assert_close

from rmcl_hub.model_cards.refusals import check
from rmcl_hub.model_cards.training_state import TRAINING_STATE, read_training_state, stage_training_state
from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining
from rmcl_hub.modeling_rmcl.momentum_encoder import MomentumEncoder


@pytest.fixture
def key_branch(tiny_config):
    branch = MomentumEncoder(RMCLViltForPreTraining(tiny_config), dim=16, queue_size=16)
    branch.enqueue(torch.randn(5, 16))
    return branch


@pytest.fixture
def state_file(key_branch, tmp_path):
    """As `RMCLTrainer` saves it."""
    torch.save(
        {"key_branch": key_branch.state_dict(), "encoder_passes": 2**40 + 1}, tmp_path / "rmcl_state.pt"
    )
    return tmp_path / "rmcl_state.pt"


def test_the_state_comes_back_bit_by_bit(state_file, key_branch, tiny_config, tmp_path):
    staged = stage_training_state(state_file, tmp_path / "staged", name="rmcl-state", model_repo="user/rmcl")
    check(staged)
    state = read_training_state(staged.folder / TRAINING_STATE)
    assert state["encoder_passes"] == 2**40 + 1
    expected = key_branch.state_dict()
    assert state["key_branch"].keys() == expected.keys()
    for name, value in expected.items():
        assert_close(state["key_branch"][name], value, rtol=0, atol=0, msg=name)
    torch.save(state, tmp_path / "again.pt")
    loaded = torch.load(tmp_path / "again.pt", weights_only=True)  # as the trainer does
    other = MomentumEncoder(RMCLViltForPreTraining(tiny_config), dim=16, queue_size=16)
    other.load_state_dict(loaded["key_branch"])
    assert other.queue_pointer == 5
    other.enqueue(torch.ones(1, 16))
    assert_close(other.queue[:5], key_branch.queue[:5])
    assert_close(other.queue[5], torch.ones(16))


def test_the_card_points_to_the_model(state_file, tmp_path):
    staged = stage_training_state(state_file, tmp_path / "staged", name="rmcl-state", model_repo="user/rmcl")
    assert set(staged.files) == {"README.md", TRAINING_STATE}
    card = ModelCard.load(staged.folder / "README.md")
    assert card.data.base_model == "user/rmcl"
    assert "16 keys of width 16" in card.text
    assert 'hf_hub_download("user/rmcl-state", "training_state.safetensors")' in card.text


def test_barlow_twins_has_no_state(tmp_path):
    torch.save({"key_branch": None, "encoder_passes": 4}, tmp_path / "rmcl_state.pt")
    with pytest.raises(ValueError, match=r"holds no momentum encoder and queue: only projector 'moco'"):
        stage_training_state(tmp_path / "rmcl_state.pt", tmp_path / "staged", name="a", model_repo="user/b")
    assert not (tmp_path / "staged").exists()


def test_other_files_are_no_state(tmp_path):
    save_file({"queue": torch.zeros(2)}, tmp_path / TRAINING_STATE)
    with pytest.raises(ValueError, match="no training state of RMCL"):
        read_training_state(tmp_path / TRAINING_STATE)
