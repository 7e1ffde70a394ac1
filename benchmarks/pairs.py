"""Model, texts and pictures that the programs of this folder measure on: ViLT-B/32 with random weights."""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizerFast

from rmcl_hub.attacks import PGD, SynonymTable
from rmcl_hub.attacks.base import Batch, JointObjective, model_inputs
from rmcl_hub.attacks.synonyms import STOP_WORDS
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
from rmcl_hub.modeling_rmcl.contrastive_losses import info_nce_loss

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
STOP_WORD = "the"
EPSILON = 0.0025  # the thesis's, in [0, 1] pixel units
SYNONYMS_PER_WORD = 4  # the thesis's five candidates count the word itself


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Sizes of batch and model; the default is ViLT-B/32."""
    parser.add_argument("--batch", type=int, default=4, help="pairs (default: 4)")
    parser.add_argument("--words", type=int, default=12, help="words of a text (default: 12)")
    parser.add_argument("--image-size", type=int, default=384, help="side of a picture (default: 384)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the encoder (default: 12)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")


def build_config(arguments: argparse.Namespace, **fields: Any) -> RMCLViltConfig:
    """The configuration that the options ask for; `fields` are further ones."""
    size = {**SMALL, "queue_size": 64} if arguments.quick else {"num_hidden_layers": arguments.layers}
    if arguments.quick and fields.get("projector") == "barlow_twins":
        fields = {**fields, "projection_dim": 128}
    return RMCLViltConfig(**{"image_size": arguments.image_size, **size, **fields})


def build_model(config: RMCLViltConfig) -> RMCLViltForPreTraining:
    """Random weights, always the same."""
    torch.manual_seed(0)
    return RMCLViltForPreTraining(config)


def build_tokenizer() -> Any:
    """BERT's, of the packaged vocabulary."""
    return BertTokenizerFast(str(vocabulary_path()))


def write_texts(tokenizer: Any, num_texts: int, num_words: int) -> list[str]:
    """Texts whose words are one piece each; every third is a stop word."""
    vocabulary = _six_letters(tokenizer)
    words = [vocabulary[number * 7 % len(vocabulary)] for number in range(num_texts * num_words)]
    return [
        " ".join(
            STOP_WORD if place % 3 == 2 else words[row * num_words + place] for place in range(num_words)
        )
        for row in range(num_texts)
    ]


def build_synonyms(tokenizer: Any, texts: list[str], per_word: int = SYNONYMS_PER_WORD) -> SynonymTable:
    """Substitutes of one piece for every word that is no stop word: what they mean costs nothing."""
    words = sorted({word for text in texts for word in text.split()} - STOP_WORDS)
    others = [word for word in _six_letters(tokenizer) if word not in words]
    return SynonymTable(
        {
            word: [(others[(per_word * row + rank) % len(others)], 0.9) for rank in range(per_word)]
            for row, word in enumerate(words)
        }
    )


def build_batch(tokenizer: Any, texts: list[str], image_size: int) -> dict[str, Any]:
    """Texts, encoded and padded to the longest, with random pictures of one size."""
    pixels = torch.rand(len(texts), 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return {
        "text": texts,
        **tokenizer(texts, padding=True, return_token_type_ids=True, return_tensors="pt"),
        "pixel_values": 2 * pixels - 1,
        "pixel_mask": torch.ones(len(texts), image_size, image_size, dtype=torch.long),
    }


def thesis_pgd(steps: int = 5) -> PGD:
    """The thesis's attack on pixels, as in training: the last iterate is not scored."""
    return PGD(EPSILON, 10 * EPSILON, steps, gradient="linf", keep="last")


def moco_objective(model: Any, keys: Tensor, queue: Tensor) -> JointObjective:
    """What RMCL's adversary maximises: InfoNCE of every pair against its key `(batch, dim)`."""

    def embed(batch: Batch) -> Tensor:
        return F.normalize(model.joint_embedding(**model_inputs(batch)), dim=1)

    def loss(embedding: Tensor, batch: Batch) -> Tensor:
        return info_nce_loss(embedding, keys[batch["row"]], queue, reduction="none")

    def embed_images(batch: Batch) -> dict[str, Tensor]:
        tokens, mask = model.embed_image(batch["pixel_values"], batch["pixel_mask"])
        return {"image_embeds": tokens, "pixel_mask": mask}

    return JointObjective(embed, loss, model.get_input_embeddings(), embed_images=embed_images)


def _six_letters(tokenizer: Any) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(word for word in vocabulary if word.isalpha() and len(word) == 6 and word not in STOP_WORDS)
