"""Toys that the attack tests share: a tokenizer over a few words, and objectives whose optimum is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective

WORDS = """
a the of on in not red big large huge small little tiny car automobile auto road street person individual
picture image photo happy glad merry ##ly ##hill up shirt t don smile grin beam
""".split()
PUNCTUATION = [",", ".", ":", "'", "-"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *PUNCTUATION]
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def make_batch(tokenizer: PreTrainedTokenizerFast) -> Callable[..., dict[str, Any]]:
    def make(texts: list[str], max_length: int = 40) -> dict[str, Any]:
        encoding = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        pixels = torch.rand(len(texts), 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return {"text": texts, **encoding, "pixel_values": pixels}

    return make


class ToyPairEncoder(nn.Module):
    """A joint embedding of pixels and words that depends on both nonlinearly, and on every token's place."""

    def __init__(self, vocabulary_size: int, dim: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, dim)
        self.places = nn.Embedding(64, dim)
        self.mix = nn.Linear(dim, dim)
        self.pixels = nn.Linear(3 * 4 * 4, dim)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        words = batch["inputs_embeds"] if "inputs_embeds" in batch else self.words(batch["input_ids"])
        mask = batch["attention_mask"].unsqueeze(-1)
        words = (
            torch.tanh(self.mix(words + self.places.weight[: words.shape[1]])) * mask
        )  # (batch, length, dim)
        joint = words.sum(dim=1) / mask.sum(dim=1) + 0.3 * self.pixels(batch["pixel_values"].flatten(1))
        return self.norm(self.dropout(torch.tanh(joint)))  # (batch, dim)


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> ToyPairEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ToyPairEncoder(len(tokenizer)).eval()


@pytest.fixture
def joint_objective(encoder: ToyPairEncoder) -> JointObjective:
    """Distance of every pair from a fixed point of the embedding space."""

    def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return (embedding - torch.linspace(-1, 1, embedding.shape[1])).square().sum(dim=1)

    return JointObjective(embed=encoder, loss=loss, word_embeddings=encoder.words)


class RowCounter:
    """Wraps a joint objective and counts the rows that pass its encoder, forwards and backwards."""

    def __init__(self, objective: JointObjective) -> None:
        self.forwards = self.backwards = 0
        self._embed = objective.embed
        self.objective = JointObjective(self.embed, objective.loss, objective.word_embeddings)

    def embed(self, batch: dict[str, Any]) -> Tensor:
        embedding = self._embed(batch)
        self.forwards += len(embedding)
        if embedding.requires_grad:
            embedding.register_hook(self._count_backwards)
        return embedding

    def _count_backwards(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.fixture
def row_counter() -> type[RowCounter]:
    return RowCounter
