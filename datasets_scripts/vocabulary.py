"""Word-piece vocabulary of the small encoders, and vectors that their word embeddings start from."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).parent / "openpairs"


def vocabulary_path() -> Path:
    """Path of `vocab.txt`, one word piece per line, as `BertTokenizerFast` reads it."""
    return FOLDER / "vocab.txt"


def word_embeddings(width: int) -> "Tensor":
    """Vectors of the vocabulary, shape `(vocabulary, width)`, most important directions first.

    Raises:
        ValueError: If `width` is below 1; beyond the stored directions the rest is zero.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}; pass the encoder's hidden_size.")
    import torch
    from safetensors.torch import load_file

    stored = load_file(FOLDER / "word_embeddings.safetensors")["weight"].float()
    return torch.nn.functional.pad(stored[:, :width], (0, max(0, width - stored.shape[1])))
