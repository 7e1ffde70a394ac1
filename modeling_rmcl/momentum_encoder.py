"""The key branch of MoCo: a slow copy of encoder, pooler and projector, and the queue of negative keys."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """Slow copy of a query model plus a first-in first-out queue of its embeddings (MoCo, arXiv:1911.05722).

    All state is parameters and persistent buffers, so one `state_dict` holds everything that a resumed run
    needs. The copy covers the pooler too; the thesis author's code took the pooler from the query branch.

    Args:
        query_model: Model with `joint_embedding(**inputs) -> (batch, dim)`; copied *after* its weights were
            loaded.
        dim: Embedding width.
        queue_size: Number of negative keys kept.
        momentum: Share of the old key weights kept per update, in [0, 1].
        queue_init: `"unit"` starts with random unit vectors; `"gaussian"` with unnormalised ones, as the
            thesis author's code does (the cause of the overshoot in the thesis's Fig. 4.11-4.14).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        query_model: nn.Module,
        dim: int,
        queue_size: int = 65536,
        momentum: float = 0.999,
        queue_init: str = "unit",
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}; MoCo uses 0.999.")
        if queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, got {queue_size}.")
        if queue_init not in ("unit", "gaussian"):
            raise ValueError(f"queue_init must be 'unit' or 'gaussian', got {queue_init!r}.")
        self.momentum = momentum
        self.encoder: Any = copy.deepcopy(query_model).requires_grad_(False).eval()
        # A fixed generator: the first negatives are the same for every rank and do not disturb the global
        # RNG.
        queue = torch.randn(queue_size, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("queue", F.normalize(queue, dim=1) if queue_init == "unit" else queue)
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))
        self.queue: Tensor
        self.queue_pointer: Tensor

    def train(self, mode: bool = True) -> "MomentumEncoder":
        """Stay in eval mode: keys are targets, dropout noise in them is noise in the labels."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Tensor:
        """L2-normalised keys `(batch, dim)` of the clean pairs."""
        return F.normalize(self.encoder.joint_embedding(**inputs), dim=1)

    @torch.no_grad()
    def update(self, query_model: nn.Module) -> None:
        """Move the key weights towards the query's: `key = m * key + (1 - m) * query`; buffers are copied."""
        for key, query in zip(self.encoder.parameters(), query_model.parameters(), strict=True):
            key.lerp_(query, 1 - self.momentum)
        for key, query in zip(self.encoder.buffers(), query_model.buffers(), strict=True):
            key.copy_(query)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys of the queue by these `(batch, dim)`; of too many, the last stay."""
        size = len(self.queue)
        slots = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue[slots[-size:]] = keys[-size:].to(self.queue.dtype)
        self.queue_pointer.copy_((self.queue_pointer + len(keys)) % size)
