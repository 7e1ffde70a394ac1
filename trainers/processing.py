"""The processor of a run: loaded beside its starting weights, or built from the packaged vocabulary."""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoProcessor,
    BertTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue] - transformers 5 knows it as an alias
    ProcessorMixin,
    ViltImageProcessor,
    ViltProcessor,
)

from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path, word_embeddings


def build_processor(init_from: str | None, image_size: int, patch_size: int) -> ProcessorMixin:
    """Processor of the checkpoint `init_from`, or a new one: our words, pictures of `image_size` pixels."""
    if init_from is not None:
        return load_processor(init_from)
    # positional: as a keyword, transformers 5 ignores the file and builds a vocabulary of five tokens
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    images = ViltImageProcessor(size={"shortest_edge": image_size}, size_divisor=patch_size)  # pyright: ignore[reportCallIssue]
    return ViltProcessor(image_processor=images, tokenizer=tokenizer)


def load_processor(name: str) -> ProcessorMixin:
    """The processor saved with a model, by its folder or Hub id."""
    # Makes the Auto classes know `rmcl_vilt`, which the command `rmcl-hub` has not done yet: they would ask
    # whether to run the code that lies in the folder.
    from rmcl_hub import modeling_rmcl  # noqa: F401

    return AutoProcessor.from_pretrained(name)


@torch.no_grad()
def start_from_pretrained_words(embeddings: nn.Embedding, tokenizer: Any) -> None:
    """Start the word embeddings of a small encoder from sentence-encoder vectors reduced to its width.

    ViLT starts from BERT's word embeddings; a from-scratch encoder on a few thousand pairs cannot learn what
    words mean that it never saw. The visual side still starts from scratch.
    """
    vectors = word_embeddings(embeddings.embedding_dim)  # (vocabulary, hidden)
    if len(vectors) != len(tokenizer):
        raise ValueError(
            f"The packaged vectors have {len(vectors)} words, the tokenizer {len(tokenizer)}; use the "
            "packaged vocabulary."
        )
    embeddings.weight.copy_(vectors)
