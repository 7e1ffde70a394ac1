import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViltConfig, ViltForMaskedLM, ViltImageProcessor, ViltModel, ViltProcessor

from rmcl_hub.modeling_rmcl import (
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForPreTraining,
)
from rmcl_hub.modeling_rmcl.convert_vilt_checkpoint import convert_vilt_checkpoint, main


@pytest.fixture
def stock(tiny_config, randomised, tmp_path):
    """A stock masked language model and the folder it was saved in."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "image_size", "patch_size")
    model = randomised(ViltForMaskedLM(ViltConfig(**{name: getattr(tiny_config, name) for name in names})))
    model.save_pretrained(tmp_path / "stock")
    return model, tmp_path / "stock"


def test_pretraining_model_keeps_encoder_and_word_head(stock, mixed_batch):
    reference, folder = stock
    model = convert_vilt_checkpoint(folder, projection_dim=8).eval()
    assert type(model) is RMCLViltForPreTraining
    assert model.config.model_type == "rmcl_vilt"
    assert model(**mixed_batch).embeds.shape == (3, 8)
    states = model.vilt(**mixed_batch).last_hidden_state[:, :9]
    assert_close(model.mlm_score(states), reference(**mixed_batch).logits, atol=1e-5, rtol=1e-5)


def test_further_images_repeat_the_last_modality_type(stock, nlvr2_batch):
    reference, folder = stock
    model = convert_vilt_checkpoint(
        folder, RMCLViltForImagesAndTextClassification, num_images=2, modality_type_vocab_size=3
    )
    stored = reference.vilt.embeddings.token_type_embeddings.weight
    assert_close(model.vilt.embeddings.token_type_embeddings.weight, stored[[0, 1, 1]])
    assert model(**nlvr2_batch).logits.isfinite().all()


def test_old_checkpoints_with_position_ids_and_bias_alias_convert(stock, mixed_batch):
    reference, folder = stock
    weights = load_file(folder / "model.safetensors")
    bias = weights.pop("mlm_score.decoder.bias", weights.get("mlm_score.bias"))
    weights |= {
        "mlm_score.bias": bias,
        "vilt.embeddings.text_embeddings.position_ids": torch.arange(40)[None],
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = convert_vilt_checkpoint(folder, RMCLViltForMaskedLM).eval()
    assert_close(model(**mixed_batch).logits, reference(**mixed_batch).logits, atol=1e-5, rtol=1e-5)


def test_incomplete_encoder_is_refused(stock):
    _, folder = stock
    weights = load_file(folder / "model.safetensors")
    del weights["vilt.pooler.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks vilt\.pooler\.dense\.weight"):
        convert_vilt_checkpoint(folder)


def test_command_line_writes_a_folder_that_stock_vilt_reads(
    stock, tiny_tokenizer, mixed_batch, tmp_path, monkeypatch
):
    reference, folder = stock
    ViltProcessor(image_processor=ViltImageProcessor(), tokenizer=tiny_tokenizer).save_pretrained(folder)
    target = tmp_path / "converted"
    monkeypatch.setattr(sys, "argv", ["convert_vilt_checkpoint", str(folder), str(target), "--head", "none"])
    main()
    model = ViltModel.from_pretrained(target).eval()
    expected = reference.vilt(**mixed_batch).pooler_output
    assert_close(model(**mixed_batch).pooler_output, expected, atol=1e-5, rtol=1e-5)
    assert ViltProcessor.from_pretrained(target).tokenizer.vocab_size == tiny_tokenizer.vocab_size
