"""Toys that the attack tests share: a tokenizer over a few words, and objectives whose optimum is known."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.base import JointObjective
from rmcl_hub.attacks.synonyms import SynonymTable

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


class LinearWords:
    """Joint embedding `sum_i a_i E[token_i]` and loss `c . q`: every word contributes on its own.

    The norm of the gradient at place i is `|a_i| |c|`: `places` sets the order in which words are attacked,
    and `values` (one number per token, drawn from `seed` if not given) sets what each word adds to the loss.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        values: dict[str, float] | None = None,
        places: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        if values is None:
            vocabulary = sorted(token for token in tokenizer.get_vocab() if not token.startswith("["))
            draws = torch.randn(len(vocabulary), generator=generator).tolist()
            values = dict(zip(vocabulary, draws, strict=True))
        self.words = nn.Embedding(len(tokenizer), 2)
        nn.init.zeros_(self.words.weight)
        for token, value in values.items():
            self.words.weight.data[tokenizer.convert_tokens_to_ids(token), 0] = value
        self.places = torch.rand(64, generator=generator) + 0.5 if places is None else places
        self.tokenizer = tokenizer
        self.objective = JointObjective(self.embed, self.loss, self.words)

    def embed(self, batch: dict[str, Any]) -> Tensor:
        words = batch["inputs_embeds"] if "inputs_embeds" in batch else self.words(batch["input_ids"])
        weights = self.places[: words.shape[1]] * batch["attention_mask"]
        return (words * weights.unsqueeze(-1)).sum(dim=1)

    @staticmethod
    def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
        return embedding @ torch.tensor([2.0, 0.0])

    def loss_of_texts(self, texts: list[str]) -> Tensor:
        encoding = self.tokenizer(texts, padding=True, return_tensors="pt")
        return self.objective(dict(encoding)).detach()


@pytest.fixture
def linear_words(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LinearWords]:
    return partial(LinearWords, tokenizer)


@pytest.fixture(scope="session")
def synonyms() -> SynonymTable:
    return SynonymTable(
        {
            "big": [("large", 0.9), ("huge", 0.7)],
            "small": [("little", 0.9), ("tiny", 0.6)],
            "car": [("automobile", 0.9), ("auto", 0.8)],
            "road": [("street", 0.7)],
            "person": [("individual", 0.7)],
            "picture": [("image", 0.9), ("photo", 0.8)],
            "happy": [("glad", 0.8), ("merry", 0.6)],
            "the": [("a", 0.9)],
            "shirt": [("unspellable", 0.9)],
            "smile": [("grin", 0.8), ("beam", 0.7)],
        }
    )


@pytest.fixture
def texts() -> list[str]:
    """Captions of many lengths, one empty, one of a single word; capitals and punctuation."""
    return [
        "A big car on the road.",
        "a happy person",
        "the picture of a small car, the big road and a happy person",
        "a road",
        "",
        "the Picture of the BIG road",
        "tiny",
    ]


@pytest.fixture
def changed_words() -> Callable[[str, str], list[tuple[str, str]]]:
    """The words of a text that another text has otherwise, and what it has."""

    def words_of(text: str) -> list[str]:
        return text.replace(",", " ,").replace(".", " .").split()

    def compare(before: str, after: str) -> list[tuple[str, str]]:
        pairs = list(zip(words_of(before), words_of(after), strict=True))
        return [(old, new) for old, new in pairs if old != new]

    return compare


@pytest.fixture
def every_exchange(synonyms: SynonymTable) -> Callable[..., list[str]]:
    """All texts that exchanging at most so many words for any of their synonyms gives, fewest first."""

    def exchange(text: str, most: int = 99) -> list[str]:
        options = []
        for word in text.split(" "):
            core = word.strip(".,")
            others = [] if core == "the" else [other for other, _ in synonyms.candidates(core)]
            options.append([word, *(word.replace(core, other) for other in others)])
        chosen = [
            (sum(new != old[0] for new, old in zip(words, options, strict=True)), " ".join(words))
            for words in itertools.product(*options)
        ]
        return [words for changes, words in sorted(chosen, key=lambda pair: pair[0]) if changes <= most]

    return exchange


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Tensor]:
    """Random normalised images of a shape."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    return draw


class LinearPixels:
    """Loss `w . x` of raw pixels x in [0, 1]: what attacks make of it is known in closed form."""

    def __init__(self, weight: Tensor, mean: Tensor | float = 0.5, std: Tensor | float = 0.5) -> None:
        self.weight, self.mean, self.std = weight, mean, std

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        raw = batch["pixel_values"] * self.std + self.mean
        return (raw * self.weight).flatten(1).sum(dim=1)


@pytest.fixture(scope="session")
def linear_pixels() -> type[LinearPixels]:
    return LinearPixels


class CountedPixels:
    """A smooth objective of the pixels alone that counts the rows it sees, forwards and backwards."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        images = batch["pixel_values"]
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        return images.sin().flatten(1).sum(dim=1)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.fixture
def counted_pixels() -> CountedPixels:
    return CountedPixels()


class ToyClassifier:
    """Two hundred random images, all classified correctly by a small convolutional network.

    The convolution does not see the last row and column of images of even size.
    """

    def __init__(self, size: int, classes: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            width = 8 * ((size - 1) // 2) ** 2
            layers = [nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(width, classes)]
            self.network = nn.Sequential(*layers).requires_grad_(False).eval()
            self.raw = torch.rand(200, 3, size, size)
        self.network[-1].bias -= self.network(self.raw).mean(dim=0)  # every class occurs
        self.labels = self.network(self.raw).argmax(dim=1)
        self.batch = {"pixel_values": self.raw * 2 - 1, "labels": self.labels}

    def logits(self, batch: dict[str, Any]) -> Tensor:
        return self.network(batch["pixel_values"] / 2 + 0.5)

    def cross_entropy(self, batch: dict[str, Any]) -> Tensor:
        return nn.functional.cross_entropy(self.logits(batch), batch["labels"], reduction="none")

    def margin(self, batch: dict[str, Any]) -> Tensor:
        """Best wrong logit minus the right one: positive where the network errs."""
        logits, right = self.logits(batch), batch["labels"][:, None]
        wrong = logits.scatter(1, right, -torch.inf).amax(dim=1)
        return wrong - logits.gather(1, right).squeeze(1)

    def fooled(self, raw: Tensor) -> Tensor:
        return self.network(raw).argmax(dim=1) != self.labels


@pytest.fixture(scope="session")
def toy_classifier() -> Callable[..., ToyClassifier]:
    def build(size: int = 9, classes: int = 4) -> ToyClassifier:
        return ToyClassifier(size, classes)

    return build
