"""RMCL's ViLT against Transformers' own, through saved folders, in both directions."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltModel,
)

from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
    RMCLViltModel,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
PAIRS = [
    (RMCLViltModel, ViltModel),
    (RMCLViltForMaskedLM, ViltForMaskedLM),
    (RMCLViltForQuestionAnswering, ViltForQuestionAnswering),
    (RMCLViltForImageAndTextRetrieval, ViltForImageAndTextRetrieval),
    (RMCLViltForImagesAndTextClassification, ViltForImagesAndTextClassification),
]


@pytest.fixture
def stock_config(tiny_config):
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "image_size", "patch_size")
    return ViltConfig(**{name: getattr(tiny_config, name) for name in names}, num_labels=5)


def configure(config, model_class):
    config.num_labels = 5
    if "ImagesAndText" in model_class.__name__:
        config.num_images, config.modality_type_vocab_size = 2, 3
    return config


def main_output(model, batch):
    output = model(**batch)
    return output.logits if hasattr(output, "logits") else output.pooler_output


@pytest.fixture
def batch_for(mixed_batch, nlvr2_batch):
    return lambda model_class: nlvr2_batch if "ImagesAndText" in model_class.__name__ else mixed_batch


@pytest.mark.parametrize(("ours", "stock"), PAIRS)
def test_stock_checkpoint_gives_the_same_output_here(
    ours, stock, stock_config, batch_for, randomised, tmp_path
):
    reference = randomised(stock(configure(stock_config, stock)))
    reference.save_pretrained(tmp_path)
    model = ours.from_pretrained(tmp_path).eval()
    batch = batch_for(ours)
    assert_close(main_output(model, batch), main_output(reference, batch), **TOLERANCE)
    assert model.config.model_type == "rmcl_vilt"


@pytest.mark.parametrize(("ours", "stock"), PAIRS)
def test_our_checkpoint_gives_the_same_output_there(
    ours, stock, tiny_config, batch_for, randomised, tmp_path
):
    model = randomised(ours(configure(tiny_config, ours)))
    model.save_pretrained(tmp_path)
    reference, info = stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    batch = batch_for(ours)
    assert_close(main_output(model, batch), main_output(reference.eval(), batch), **TOLERANCE)


def test_text_and_patch_states_agree_with_stock_whose_patches_come_shuffled(
    tiny_config, mixed_batch, randomised, tmp_path
):
    model = randomised(RMCLViltModel(tiny_config))
    model.save_pretrained(tmp_path)
    reference = ViltModel.from_pretrained(tmp_path).eval()
    ours, stock = (m(**mixed_batch).last_hidden_state for m in (model, reference))
    assert ours.shape == stock.shape
    assert_close(ours[:, :10], stock[:, :10], **TOLERANCE)  # text and class token
    for row, num_patches in enumerate((4, 6, 8)):
        distance = torch.cdist(ours[row, 10 : 10 + num_patches], stock[row, 10:])
        nearest = distance.min(dim=1)
        assert nearest.values.max() < 1e-5
        assert len(set(nearest.indices.tolist())) == num_patches


def test_modality_type_of_the_second_image_matters(nlvr2_config, nlvr2_batch, randomised):
    model = randomised(RMCLViltForImagesAndTextClassification(nlvr2_config))
    before = model(**nlvr2_batch).logits
    with torch.no_grad():
        model.vilt.embeddings.token_type_embeddings.weight[2] += torch.randn(nlvr2_config.hidden_size)
    assert (model(**nlvr2_batch).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("names", [("mlm_score.bias",), ("mlm_score.decoder.bias",)])
@pytest.mark.parametrize("model_class", [RMCLViltForMaskedLM, RMCLViltForPreTraining])
def test_decoder_bias_loads_under_either_name(
    names, model_class, tiny_config, mixed_batch, randomised, tmp_path
):
    """Transformers 4 stores `mlm_score.bias`, Transformers 5 `mlm_score.decoder.bias`."""
    model = randomised(model_class(tiny_config))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bias = weights["mlm_score.decoder.bias"]
    assert_close(bias, model.mlm_score.decoder.bias)
    assert_close(weights["mlm_score.bias"], bias)
    kept = {k: v for k, v in weights.items() if k not in ("mlm_score.bias", "mlm_score.decoder.bias")}
    save_file(kept | dict.fromkeys(names, bias), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reloaded = model_class.from_pretrained(tmp_path)
    assert_close(reloaded.mlm_score.decoder.bias, model.mlm_score.decoder.bias)
    assert_close(reloaded.mlm_score.decoder.weight, model.mlm_score.decoder.weight)


def test_untied_decoder_survives_loading(tiny_config, randomised, tmp_path):
    """ViLT's own checkpoints have a decoder that differs from the word embeddings."""
    model = randomised(RMCLViltForMaskedLM(tiny_config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["mlm_score.decoder.weight"] = torch.randn(tiny_config.vocab_size, tiny_config.hidden_size)
    save_file(weights, path, metadata={"format": "pt"})
    config = type(tiny_config).from_pretrained(tmp_path, tie_word_embeddings=False)
    reloaded = RMCLViltForMaskedLM.from_pretrained(tmp_path, config=config)
    assert_close(reloaded.mlm_score.decoder.weight, weights["mlm_score.decoder.weight"])
    reloaded.save_pretrained(tmp_path / "again")
    again = RMCLViltForMaskedLM.from_pretrained(tmp_path / "again")
    assert_close(again.mlm_score.decoder.weight, weights["mlm_score.decoder.weight"])


def test_new_models_share_word_embeddings_and_decoder(tiny_config, tmp_path):
    RMCLViltForMaskedLM(tiny_config).save_pretrained(tmp_path)
    model = RMCLViltForMaskedLM.from_pretrained(tmp_path)
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
