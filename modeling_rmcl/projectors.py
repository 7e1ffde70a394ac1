"""Projectors from the joint representation to the joint embedding, dropped after pre-training."""

from torch import Tensor, nn

from .configuration_rmcl import RMCLViltConfig


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


class BarlowTwinsProjector(nn.Module):
    """Three bias-free linear layers of equal width, BatchNorm + ReLU between (arXiv:2103.03230, 2.2).

    The last BatchNorm has no parameters: it only standardises. In eval mode it uses running statistics, so an
    embedding does not depend on the other examples of its batch.

    Shape:
        `(batch, hidden_size)` to `(batch, projection_dim)`; in train mode the batch must have at least 2
        examples.
    """

    def __init__(self, hidden_size: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim),
            nn.ReLU(),
            nn.Linear(projection_dim, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim),
            nn.ReLU(),
            nn.Linear(projection_dim, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim, affine=False),
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
