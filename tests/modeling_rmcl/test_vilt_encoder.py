import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl import RMCLViltModel


@pytest.fixture
def models(tiny_config, randomised):
    """The same weights with eager and with fused attention."""
    fused = randomised(RMCLViltModel(tiny_config))
    eager = copy.deepcopy(fused)
    eager.set_attn_implementation("eager")
    return eager, fused


def test_fused_attention_is_the_default(tiny_config):
    assert RMCLViltModel(tiny_config).config._attn_implementation == "sdpa"


def test_eager_equals_fused_attention(models, mixed_batch):
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    eager, fused = (model(**mixed_batch) for model in models)
    assert_close(eager.pooler_output, fused.pooler_output, atol=1e-5, rtol=1e-5)
    real = mixed_batch["attention_mask"].bool()
    assert_close(
        eager.last_hidden_state[:, :9][real], fused.last_hidden_state[:, :9][real], atol=1e-5, rtol=1e-5
    )


def test_eager_and_fused_attention_have_the_same_gradient(models, mixed_batch):
    gradients = []
    for model in models:
        pixels = mixed_batch["pixel_values"].clone().requires_grad_()
        joint = model.joint_representation(**{**mixed_batch, "pixel_values": pixels})
        gradients.append(torch.autograd.grad(joint.square().sum(), pixels)[0])
    assert gradients[0].abs().max() > 1e-3
    assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_joint_representation_equals_the_pooler_output(index, models, mixed_batch):
    """It computes the last block for one token only."""
    model = models[index]
    assert_close(model.joint_representation(**mixed_batch), model(**mixed_batch).pooler_output)


def test_joint_representation_spares_the_last_block(models, mixed_batch):
    rows = []
    layers = models[1].encoder.layer
    for layer in layers:
        layer.intermediate.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    models[1].joint_representation(**mixed_batch)
    assert rows == [9 + 1 + 8, 1]


def test_eager_attention_is_twice_differentiable(models, mixed_batch):
    """The derivative of a penalty on the input gradient equals its central difference."""
    model = models[0].double()
    pixels = mixed_batch["pixel_values"].double().requires_grad_()
    weight = model.encoder.layer[0].attention.attention.query.weight

    def penalty(create_graph):
        joint = model.joint_representation(**{**mixed_batch, "pixel_values": pixels})
        (gradient,) = torch.autograd.grad(joint.square().sum(), pixels, create_graph=create_graph)
        return gradient.square().sum()

    (analytic,) = torch.autograd.grad(penalty(create_graph=True), weight)
    direction, step = torch.randn_like(weight), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * direction)
        values.append(penalty(create_graph=False))
        with torch.no_grad():
            weight.sub_(sign * step * direction)
    assert_close((analytic * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-8)


def test_attention_weights_need_eager_attention(models, mixed_batch):
    eager, fused = models
    output = eager(**mixed_batch, output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 2
    assert len(output.hidden_states) == 3
    weights = output.attentions[1]  # (batch, heads, tokens, tokens)
    assert_close(weights.sum(dim=-1), torch.ones(3, 2, 18))
    assert (weights[1, :, :, 5:9] == 0).all()  # padding of the second text
    with pytest.raises(ValueError, match="set_attn_implementation"):
        fused(**mixed_batch, output_attentions=True)


def test_tuple_output(models, mixed_batch):
    states, pooled = models[1](**mixed_batch, return_dict=False)
    assert_close(pooled, models[1](**mixed_batch).pooler_output)
    assert states.shape == (3, 18, 32)


def test_text_alone(models, mixed_batch, monkeypatch):
    """Pooled at its first token, without touching the image."""
    model = models[1]
    monkeypatch.setattr(model.embeddings, "embed_image", None)
    text = {name: value for name, value in mixed_batch.items() if not name.startswith("pixel")}
    pooled = model.text_representation(**text)
    tokens = model.embeddings.embed_text(mixed_batch["input_ids"])
    assert_close(pooled, run_by_hand(model, tokens, mixed_batch["attention_mask"]), atol=1e-5, rtol=1e-5)


def test_image_alone(models, mixed_batch, tiny_config):
    """Pooled at a [CLS] that stands before it."""
    model = models[1]
    image = {name: value for name, value in mixed_batch.items() if name.startswith("pixel")}
    tokens, mask = model.embeddings.embed_image(**image)
    tokens = tokens + model.embeddings.token_type_embeddings.weight[1]
    cls = model.embeddings.embed_text(torch.full((3, 1), tiny_config.cls_token_id))
    expected = run_by_hand(model, torch.cat([cls, tokens], dim=1), nn.functional.pad(mask, (1, 0), value=1))
    assert_close(model.image_representation(**image), expected, atol=1e-5, rtol=1e-5)
    model.config.cls_token_id = tiny_config.vocab_size
    with pytest.raises(ValueError, match=r"set it to tokenizer\.cls_token_id"):
        model.image_representation(**image)


def run_by_hand(model, tokens, mask):
    """ViLT's blocks (arXiv:2102.03334, Eq. 2-4) on torch's own multi-head attention."""
    for layer in model.encoder.layer:
        own = layer.attention.attention
        attention = nn.MultiheadAttention(32, 2, batch_first=True)
        attention.in_proj_weight = nn.Parameter(
            torch.cat([own.query.weight, own.key.weight, own.value.weight])
        )
        attention.in_proj_bias = nn.Parameter(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        attention.out_proj = layer.attention.output.dense
        normed = layer.layernorm_before(tokens)
        tokens = tokens + attention(normed, normed, normed, key_padding_mask=mask == 0)[0]
        hidden = nn.functional.gelu(layer.intermediate.dense(layer.layernorm_after(tokens)))
        tokens = tokens + layer.output.dense(hidden)
    return torch.tanh(model.pooler.dense(model.layernorm(tokens)[:, 0]))


def test_activation_checkpointing_gives_the_same_gradient(models, mixed_batch):
    model = models[1].train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**mixed_batch).pooler_output.square().sum().backward()
        gradients.append(model.encoder.layer[0].intermediate.dense.weight.grad.clone())
        model.gradient_checkpointing_enable()
    assert gradients[0].abs().max() > 0
    assert_close(*gradients)


def test_dropout_acts_in_training_only(tiny_config, mixed_batch):
    tiny_config.hidden_dropout_prob = tiny_config.attention_probs_dropout_prob = 0.5
    model = RMCLViltModel(tiny_config)
    model.eval()
    assert_close(model.joint_representation(**mixed_batch), model.joint_representation(**mixed_batch))
    model.train()
    first, second = (model.joint_representation(**mixed_batch) for _ in range(2))
    assert (first - second).abs().max() > 1e-3


def test_head_count_must_divide_the_width(tiny_config):
    tiny_config.num_attention_heads = 3
    with pytest.raises(ValueError, match="got 32 and 3"):
        RMCLViltModel(tiny_config)
