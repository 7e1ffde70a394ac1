"""Transformer of ViLT on Transformers' attention interface, named as in Transformers' ViLT."""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_rmcl import RMCLViltConfig


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention in plain tensor operations: twice differentiable, and it returns the weights.

    Args:
        module: The calling module.
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, length, head_dim)`.
        value: `(batch, heads, length, head_dim)`.
        attention_mask: Boolean `(batch, 1, 1, length)`, true = attend; `None` attends everywhere.
        scaling: Factor on the scores.
        dropout: Share of attention weights dropped.

    Returns:
        Output `(batch, queries, heads, head_dim)` and weights `(batch, heads, queries, length)`.
    """
    scores = query @ key.transpose(-1, -2) * scaling  # (batch, heads, queries, length)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(scores.softmax(dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class ViltSelfAttention(nn.Module):
    """Multi-head attention; the implementation is looked up in `config._attn_implementation`."""

    is_causal = False

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {config.hidden_size} and "
                f"{config.num_attention_heads}."
            )
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, num_queries: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the first `num_queries` tokens to all; output `(batch, queries, hidden)`, weights."""
        batch = len(hidden)
        heads = (batch, -1, self.config.num_attention_heads, self.head_dim)
        query = (
            self.query(hidden[:, :num_queries]).view(heads).transpose(1, 2)
        )  # (batch, heads, queries, dim)
        key = self.key(hidden).view(heads).transpose(1, 2)  # (batch, heads, length, dim)
        value = self.value(hidden).view(heads).transpose(1, 2)
        implementation = self.config._attn_implementation
        attention = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout
        )
        return output.reshape(batch, -1, self.config.hidden_size), weights


class ViltDense(nn.Module):
    """Linear layer and dropout that close a sub-block; a module because the stored names say so."""

    def __init__(self, in_features: int, config: RMCLViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., hidden)`."""
        return self.dropout(self.dense(hidden))


class ViltAttention(nn.Module):
    """Self-attention and its output layer."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.attention = ViltSelfAttention(config)
        self.output = ViltDense(config.hidden_size, config)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, num_queries: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the first `num_queries` tokens to all."""
        output, weights = self.attention(hidden, attention_mask, num_queries)
        return self.output(output), weights


class ViltIntermediate(nn.Module):
    """First layer of the MLP."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(..., hidden)` to `(..., intermediate_size)`."""
        return self.activation(self.dense(hidden))


class ViltLayer(GradientCheckpointingLayer):
    """Pre-LN transformer block."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.attention = ViltAttention(config)
        self.intermediate = ViltIntermediate(config)
        self.output = ViltDense(config.intermediate_size, config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, num_queries: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map `(batch, length, hidden)` to the states of the first `num_queries` tokens, all by default."""
        attended, weights = self.attention(self.layernorm_before(hidden), attention_mask, num_queries)
        hidden = hidden[:, :num_queries] + attended
        return hidden + self.output(self.intermediate(self.layernorm_after(hidden))), weights


class ViltEncoder(nn.Module):
    """Stack of blocks."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([ViltLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        first_token_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Run all blocks.

        Args:
            hidden: Embeddings `(batch, length, hidden)`.
            mask: `(batch, length)`, 1 = real token.
            first_token_only: Compute the last block for the first token alone. The pooler reads nothing else,
                so its output is the same and most of that block's cost is saved.
            output_hidden_states: Also return the states before the first and after every block.
            output_attentions: Also return the attention weights of every block; needs eager attention.
        """
        # Without padding no mask is passed, which lets torch choose its fastest attention kernel.
        attention_mask = None if bool(mask.all()) else mask.bool()[:, None, None, :]  # (batch, 1, 1, length)
        states, attentions = [hidden], []
        for layer in self.layer:
            num_queries = 1 if first_token_only and layer is self.layer[-1] else None
            hidden, weights = layer(hidden, attention_mask, num_queries)
            if output_hidden_states:
                states.append(hidden)
            if output_attentions:
                attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class ViltPooler(nn.Module):
    """`tanh(W z_0)` of the first token: the joint representation (thesis Eq. 2.6)."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pool `(batch, length, hidden)` to `(batch, hidden)`."""
        return torch.tanh(self.dense(hidden[:, 0]))
