"""On-the-fly attacks and an RMCL step written the usual way, from their description in papers.

Nothing here is how this package does it: the model is copied for every attack, all weights keep their
gradients, attention is eager, texts are padded to the longest that the model takes, pictures are embedded
again for every candidate text, every sentence has its candidates to itself, and the search goes on to its
last loop though the budget of changes is spent.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from rmcl_hub.attacks import SynonymTable
from rmcl_hub.attacks.base import model_inputs
from rmcl_hub.attacks.synonyms import STOP_WORDS

TEMPERATURE, LAMBDA = 0.07, 5e-3

PairLosses = Callable[[Tensor, Tensor], Tensor]
"""(embeddings `(n, dim)`, the row of the batch that each belongs to `(n,)`) to losses `(n,)`."""


class UsualModel(nn.Module):
    """Transformers' ViLT under a projector, with the weights of ours."""

    def __init__(self, model: Any, dropout: float) -> None:
        super().__init__()
        names = ViltConfig().to_dict().keys() & model.config.to_dict().keys() - {"model_type"}
        fields = {name: getattr(model.config, name) for name in names}
        self.vilt = ViltModel(ViltConfig(**{**fields, "hidden_dropout_prob": dropout}))
        self.vilt.load_state_dict(model.vilt.state_dict())
        self.projector = copy.deepcopy(model.projector)
        self.vilt.train()
        self.projector.eval()  # Barlow Twins' running statistics: candidates must not change each other

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Joint embeddings `(batch, dim)`."""
        return self.projector(self.vilt(**model_inputs(batch)).pooler_output)


@dataclass
class UsualStep:
    """One step: keys, both attacks, the views and their gradients, the queue.

    Attributes:
        model: Trained; its gradients are left in it.
        key_model: The momentum encoder.
        queue: Negative keys `(queue_size, dim)`; None is Barlow Twins.
        tokenizer: Encodes texts, padded to `max_length`.
        synonyms: Substitutes of words.
        epsilon: Radius of the attack on pixels, in normalised pixels.
        num_steps: Its steps, ten times epsilon long.
        max_loops: Words tried per text.
        max_length: Tokens of a text.
        momentum: Of the momentum encoder.
    """

    model: UsualModel
    key_model: UsualModel
    queue: Tensor | None
    tokenizer: Any
    synonyms: SynonymTable
    epsilon: float
    num_steps: int = 5
    max_loops: int = 10
    max_length: int = 40
    momentum: float = 0.999

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts at full length."""
        return self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.max_length,
            return_token_type_ids=True,
            return_tensors="pt",
        )

    def run(self, batch: dict[str, Any], views: list[str]) -> Tensor:
        """Loss of the views, with gradients taken."""
        batch = {**batch, **self.encode(batch["text"])}
        self.model.zero_grad()
        with torch.no_grad():
            for key, query in zip(self.key_model.parameters(), self.model.parameters(), strict=True):
                key.data = key.data * self.momentum + query.data * (1 - self.momentum)
            keys = self.embed(self.key_model, batch)
        clean = self.embed(self.model, batch)  # looked at for the success rate alone, but with its graph
        losses = self.pair_losses(keys, clean.detach())
        attacked = {
            "text": {**batch, **self.encode(self.attack_words(batch, losses))},
            "image": {**batch, "pixel_values": self.attack_pixels(batch, losses)},
        }
        attacked["both"] = {**attacked["text"], "pixel_values": attacked["image"]["pixel_values"]}
        loss = sum((self.view_loss(attacked[view], keys) for view in views), torch.zeros(()))
        loss.backward()
        if self.queue is not None:
            self.queue = torch.cat([self.queue[len(keys) :], keys])
        return loss.detach()

    def embed(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Joint embeddings as the objective takes them."""
        return F.normalize(model(batch), dim=1) if self.queue is not None else model(batch)

    def view_loss(self, batch: dict[str, Any], keys: Tensor) -> Tensor:
        """Loss of one attacked view."""
        embeddings = self.embed(self.model, batch)
        if self.queue is None:
            return barlow_twins(embeddings, keys)
        return info_nce(embeddings, keys, self.queue).mean()

    def pair_losses(self, keys: Tensor, clean: Tensor) -> PairLosses:
        """What the adversary raises: of MoCo a pair's own loss, of Barlow Twins the batch's with it alone."""
        queue = self.queue

        def of_moco(embeddings: Tensor, rows: Tensor) -> Tensor:
            assert queue is not None
            return info_nce(embeddings, keys[rows], queue)

        def of_barlow_twins(embeddings: Tensor, rows: Tensor) -> Tensor:
            places = torch.arange(len(clean))[:, None]
            return torch.stack(
                [
                    barlow_twins(torch.where(places == row, embedding, clean), keys)
                    for embedding, row in zip(embeddings, rows, strict=True)
                ]
            )

        return of_barlow_twins if queue is None else of_moco

    def attack_pixels(self, batch: dict[str, Any], losses: PairLosses) -> Tensor:
        """PGD from the clean pixels: steps along the gradient over its largest magnitude."""
        attacked = copy.deepcopy(self.model)
        clean, rows = batch["pixel_values"], torch.arange(len(batch["pixel_values"]))
        delta = torch.zeros_like(clean)
        for _ in range(self.num_steps):
            delta.requires_grad_()
            embeddings = self.embed(attacked, {**batch, "pixel_values": clean + delta})
            losses(embeddings, rows).sum().backward()
            assert delta.grad is not None
            direction = delta.grad / delta.grad.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)
            delta = (delta.detach() + 10 * self.epsilon * direction).clamp(-self.epsilon, self.epsilon)
            delta = (clean + delta).clamp(-1, 1) - clean
        return clean + delta

    def attack_words(self, batch: dict[str, Any], losses: PairLosses) -> list[str]:
        """Greedy search: of each text, loop by loop, the word of largest gradient, with its best synonym."""
        attacked = copy.deepcopy(self.model)
        texts = [text.split() for text in batch["text"]]
        left = [
            {place for place, word in enumerate(words) if word not in STOP_WORDS} & self._known(words)
            for words in texts
        ]
        budgets = [int(0.2 * len(words)) for words in texts]
        for _ in range(self.max_loops):
            current, influence = self._differentiate(attacked, batch, texts, losses)
            for row, words in enumerate(texts):
                candidates = [words]  # a finished text is scored again
                if left[row] and budgets[row]:
                    place = max(left[row], key=lambda place: influence[row][place])
                    left[row].remove(place)
                    candidates = [
                        [*words[:place], synonym, *words[place + 1 :]]
                        for synonym, _ in self.synonyms.candidates(words[place])
                    ]
                scores = self._score(attacked, batch, row, candidates, losses)
                best = int(scores.argmax())
                if budgets[row] and candidates[best] != words and scores[best] > current[row]:
                    texts[row], budgets[row] = candidates[best], budgets[row] - 1
        return [" ".join(words) for words in texts]

    def _known(self, words: list[str]) -> set[int]:
        return {place for place, word in enumerate(words) if self.synonyms.candidates(word)}

    def _differentiate(
        self, model: UsualModel, batch: dict[str, Any], texts: list[list[str]], losses: PairLosses
    ) -> tuple[Tensor, list[dict[int, float]]]:
        """Losses of the texts as they stand, and the gradient norm of every word's pieces."""
        encoding: Any = self.encode([" ".join(words) for words in texts])
        kept: list[Tensor] = []
        handle = model.vilt.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        embeddings = self.embed(model, {**batch, **encoding})
        handle.remove()
        kept[0].retain_grad()
        of_pairs = losses(embeddings, torch.arange(len(texts)))
        of_pairs.sum().backward()
        gradients = kept[0].grad
        assert gradients is not None
        influence = []
        for row, words in enumerate(texts):
            word_of_piece = encoding.word_ids(row)
            pieces = [
                [position for position, word in enumerate(word_of_piece) if word == place]
                for place in range(len(words))
            ]
            influence.append(
                {place: float(gradients[row, of].mean(dim=0).norm()) for place, of in enumerate(pieces)}
            )
        return of_pairs.detach(), influence

    @torch.no_grad()
    def _score(
        self,
        model: UsualModel,
        batch: dict[str, Any],
        row: int,
        candidates: list[list[str]],
        losses: PairLosses,
    ) -> Tensor:
        image = {
            name: batch[name][row].expand(len(candidates), *batch[name].shape[1:])
            for name in ("pixel_values", "pixel_mask")
        }
        embeddings = self.embed(model, {**image, **self.encode([" ".join(words) for words in candidates])})
        # embedded together, but the loss of each for itself
        return torch.cat([losses(embedding[None], torch.tensor([row])) for embedding in embeddings])


def info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """MoCo's loss per pair `(batch,)`; as in MoCo's published code every call has a copy of the queue."""
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.clone().T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long), reduction="none")


def barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Eq. 1 of Barlow Twins with its matrix."""
    z_a, z_b = (
        (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b)
    )  # (batch, dim)
    correlation = z_a.T @ z_b / len(z_a)  # (dim, dim)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + LAMBDA * off_diagonal
