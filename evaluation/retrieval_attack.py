"""Attacks on one side of pairs, through a cross-encoder: which text or picture changes, and against whom."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, model_inputs, select_rows
from rmcl_hub.attacks.threat_model import Norm, ThreatModel

from .attack_loop import check_words
from .metrics import perturbation_norms, within_radius
from .retrieval import PairScorer, Picture, stack_pictures

Item: TypeAlias = str | Picture
"""A text, or a picture as `pixel_values` `(1, 3, H, W)` and `pixel_mask` `(1, H, W)`."""


class PairAttacker:
    """Attacks texts against given pictures, or pictures against given texts.

    Args:
        scorer: The cross-encoder.
        images: Pixels of the gallery's pictures, from `PairScorer.pixels`.
        pictures: The same from `PairScorer.embed_image`.
        texts: The gallery's texts.

    Attributes:
        backwards: Pairs differentiated so far; the scorer counts the forwards.
    """

    def __init__(
        self,
        scorer: PairScorer,
        images: Sequence[Picture],
        pictures: Sequence[Picture],
        texts: Sequence[str],
    ) -> None:
        self.scorer = scorer
        self.images = images
        self.pictures = pictures
        self.texts = texts
        self.text_tokens = scorer.tokens(texts)
        self.backwards = 0

    def __call__(
        self,
        name: str,
        attack: Attack,
        items: Sequence[int],
        candidates: Sequence[NDArray[np.int_]],
        num_right: Sequence[int],
    ) -> list[Item | None]:
        """Attack every item on its own.

        The attack maximises `max over the wrong candidates of the pair score - max over the right ones`;
        where all candidates are right, minus the latter alone.

        Args:
            name: Of the attack, for messages.
            attack: On words: the items are texts and their candidates pictures. On pixels: the reverse.
            items: Which texts or pictures to attack.
            candidates: Per item, its partners of the other modality, the right ones first.
            num_right: Per item, how many of them are right.

        Returns:
            What became of every item; None where nothing changed.

        Raises:
            ValueError: If an attack leaves its threat model.
        """
        found: list[Item | None] = [None] * len(items)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (partners, right) in enumerate(zip(candidates, num_right, strict=True)):
            groups[len(partners), right].append(index)
        with tqdm(total=len(items), desc=f"attack: {name}", unit="item") as progress:
            for (num_candidates, right), members in groups.items():
                size = max(1, self.scorer.batch_size // num_candidates)
                for start in range(0, len(members), size):
                    chunk = members[start : start + size]
                    partners = torch.from_numpy(np.stack([candidates[index] for index in chunk]))
                    batch = self._batch(attack.threat_model, [items[index] for index in chunk])
                    batch["candidates"] = partners.to(self.scorer.device)  # (items, candidates)
                    result = attack(batch, self._objective(right))
                    self.backwards += result.backwards * num_candidates
                    for row, index in enumerate(chunk):
                        attacked = {field: values[row : row + 1] for field, values in result.batch.items()}
                        found[index] = self._changed(name, attack.threat_model, items[index], attacked)
                    progress.update(len(chunk))
        return found

    def _batch(self, threat_model: ThreatModel, items: Sequence[int]) -> dict[str, Any]:
        if threat_model.modality == "image":
            return stack_pictures([self.images[item] for item in items])
        texts = [self.texts[item] for item in items]
        return {"text": texts, **self.scorer.tokens(texts)}

    def _objective(self, num_right: int) -> JointObjective:
        scorer = self.scorer

        def embed(batch: Batch) -> Tensor:
            candidates = batch["candidates"]  # (items, candidates)
            own = model_inputs(batch)
            of_images = "pixel_values" in own
            if of_images:
                own = scorer.embed_image(own["pixel_values"], own["pixel_mask"])
            joint = []
            for rows in torch.arange(candidates.numel()).split(scorer.batch_size):
                partners = candidates.flatten()[rows].tolist()
                other = self._text_inputs(partners) if of_images else self._picture_inputs(partners)
                item_of_row = (rows // candidates.shape[1]).tolist()
                joint.append(scorer.joint({**select_rows(own, item_of_row), **other}))
            return torch.cat(joint).view(len(candidates), -1)  # (items, candidates * dim)

        def loss(joint: Tensor, batch: Batch) -> Tensor:
            items, num_candidates = batch["candidates"].shape
            scores = scorer.pair_score(joint.view(items * num_candidates, -1)).view(items, num_candidates)
            right = scores[:, :num_right].amax(dim=1)  # (items,)
            return scores[:, num_right:].amax(dim=1) - right if num_right < num_candidates else -right

        return JointObjective(embed, loss, word_embeddings=scorer.model.get_input_embeddings())

    def _text_inputs(self, texts: list[int]) -> dict[str, Tensor]:
        chosen = select_rows(self.text_tokens, texts)
        longest = int(chosen["attention_mask"].sum(dim=1).max())
        return {name: values[:, :longest] for name, values in chosen.items()}

    def _picture_inputs(self, pictures: list[int]) -> dict[str, Tensor]:
        return stack_pictures([self.pictures[picture] for picture in pictures])

    def _changed(
        self, name: str, threat_model: ThreatModel, item: int, attacked: Mapping[str, Any]
    ) -> Item | None:
        """What became of an item, checked against the threat model; None if nothing did."""
        if threat_model.modality == "text":
            before, after = self.texts[item], attacked["text"][0]
            check_words(name, threat_model, before, after)
            return after if after != before else None
        clean = self.images[item]
        height, width = clean["pixel_values"].shape[-2:]
        picture = {**clean, "pixel_values": attacked["pixel_values"][..., :height, :width].detach()}
        size = self.distance(item, picture, threat_model.norm or "linf")
        if not within_radius(size, threat_model.epsilon or 0.0):
            raise ValueError(
                f"attack {name!r} changed a picture by {size:.5f} ({threat_model.norm}), its threat model "
                f"allows {threat_model.epsilon:.5f}, both for pixels in [0, 1]."
            )
        return picture if size > 0 else None

    def distance(self, item: int, picture: Picture, norm: Norm = "linf") -> float:
        """How far a picture is from gallery picture `item`, for pixels in [0, 1]."""
        processor = self.scorer.processor.image_processor
        mean, std = (
            torch.tensor(value, dtype=torch.double, device=self.scorer.device).view(-1, 1, 1)
            for value in (processor.image_mean, processor.image_std)
        )
        before, after = (
            of["pixel_values"].double() * std + mean  # float32 would round at a millionth
            for of in (self.images[item], picture)
        )
        return float(perturbation_norms([before], [after], norm)[0])
