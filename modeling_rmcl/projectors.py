"""Projectors from the joint representation to the joint embedding, dropped after pre-training."""

import torch
from torch import Tensor, nn

from .configuration_rmcl import RMCLViltConfig
from .contrastive_losses import gather_embeddings, process_count


class MoCoProjector(nn.Module):
    """`hidden -> inner -> dim` with LayerNorm and ReLU between, as the thesis author (inner = hidden).

    Shape:
        `(batch, hidden_size)` to `(batch, projection_dim)`, not normalised.
    """

    def __init__(self, hidden_size: int, projection_dim: int, inner_size: int | None = None) -> None:
        super().__init__()
        inner_size = inner_size or hidden_size
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, inner_size),
            nn.LayerNorm(inner_size),
            nn.ReLU(),
            nn.Linear(inner_size, projection_dim, bias=False),
        )

    def forward(self, joint_representation: Tensor) -> Tensor:
        """Project `(batch, hidden_size)` to `(batch, projection_dim)`."""
        return self.layers(joint_representation)


class GatheredBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics, in train mode, are those of the batches of all processes.

    With the semantics of `nn.SyncBatchNorm`, which exists for CUDA only: gradients flow through the common
    mean and variance, and the running statistics are the same on all processes, whose batches may differ in
    size. Only `(processes, 1 + 2 * features)` numbers travel. On one process it is `nn.BatchNorm1d`.

    Shape:
        `(batch, features)` to the same; in train mode all processes together have at least 2 examples.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(batch, features)`."""
        if not self.training or process_count() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._normalise(input.to(torch.promote_types(input.dtype, torch.float32))).to(input.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        # The squares about the own mean, not about zero: their difference would cancel.
        own_mean = x.mean(dim=0)
        size = x.new_full((1,), len(x))
        own = torch.cat([size, own_mean, (x - own_mean).square().sum(dim=0)])
        sizes, means, squares = gather_embeddings(own[None]).split([1, x.shape[1], x.shape[1]], dim=1)
        total = sizes.sum()
        mean = (sizes * means).sum(dim=0) / total
        squares = (squares + sizes * (means - mean).square()).sum(dim=0)
        self._follow(mean, squares / (total - 1))
        normalised = (x - mean) * (squares / total + self.eps).rsqrt()
        return normalised if self.weight is None else normalised * self.weight + self.bias

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class BarlowTwinsProjector(nn.Module):
    """Three bias-free linear layers of equal width, BatchNorm + ReLU between (arXiv:2103.03230, 2.2).

    The last BatchNorm has no parameters: it only standardises. Statistics are those of the batch of all
    processes. In eval mode it uses running statistics, so an
    embedding does not depend on the other examples of its batch.

    Shape:
        `(batch, hidden_size)` to `(batch, projection_dim)`; in train mode the batch must have at least 2
        examples.
    """

    def __init__(self, hidden_size: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, projection_dim, bias=False),
            GatheredBatchNorm(projection_dim),
            nn.ReLU(),
            nn.Linear(projection_dim, projection_dim, bias=False),
            GatheredBatchNorm(projection_dim),
            nn.ReLU(),
            nn.Linear(projection_dim, projection_dim, bias=False),
            GatheredBatchNorm(projection_dim, affine=False),
        )

    def forward(self, joint_representation: Tensor) -> Tensor:
        """Project `(batch, hidden_size)` to `(batch, projection_dim)`."""
        return self.layers(joint_representation)


def build_projector(config: RMCLViltConfig) -> nn.Module:
    """Build the projector that `config.projector` names.

    Raises:
        ValueError: If the name is neither `"moco"` nor `"barlow_twins"`.
    """
    if config.projector == "moco":
        return MoCoProjector(config.hidden_size, config.projection_dim, config.projection_hidden_size)
    if config.projector == "barlow_twins":
        return BarlowTwinsProjector(config.hidden_size, config.projection_dim)
    raise ValueError(f"config.projector must be 'moco' or 'barlow_twins', got {config.projector!r}.")
