"""Attacks on both modalities of a pair."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .base import Attack, AttackResult, Batch, Objective, check_losses, isolated_rng
from .text_encoding import ENCODED_FIELDS
from .threat_model import ThreatModel

_TEXT_FIELDS = ("text", *ENCODED_FIELDS)


class _JointAttack:
    """An attack on images and one on texts.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.
    """

    compares: ClassVar[bool] = True  # the objectives that the two attacks report

    def __init__(self, image_attack: Attack, text_attack: Attack) -> None:
        for attack, modality in ((image_attack, "image"), (text_attack, "text")):
            if attack.threat_model.modality != modality:
                raise ValueError(
                    f"{modality}_attack is a {type(attack).__name__} on {attack.threat_model.modality}; "
                    f"expected an attack on {modality}."
                )
        if self.compares and getattr(image_attack, "keep", "best") == "last":
            raise ValueError(
                f"{type(self).__name__} keeps the pair of largest objective, which an image attack with "
                "keep='last' does not compute; give it keep='best'."
            )
        self.image_attack = image_attack
        self.text_attack = text_attack

    @property
    def threat_model(self) -> ThreatModel:
        """What the two attacks are allowed to do together."""
        return self.image_attack.threat_model.combined_with(self.text_attack.threat_model)


class IndependentAttack(_JointAttack):
    """Attack image and text separately, each against the clean other one, then combine (the thesis's
    PGD+GEOM).

    The combination is not optimised: `loss_after` is the objective of the combined pair and may be below that
    of one of its halves. Cost: both attacks, plus one forward per example to score the combination.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.

    Raises:
        ValueError: If an attack is on another modality.
    """

    compares = False

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch; see `Attack`."""
        image = self.image_attack(batch, objective)
        text = self.text_attack(batch, objective)
        both = {**batch, **_texts(text.batch), "pixel_values": image.batch["pixel_values"]}
        rows = len(image.loss_before)
        with torch.no_grad(), isolated_rng(both["pixel_values"]):
            loss_after = check_losses(objective(dict(both)), rows).detach()
        loss_before = torch.where(image.loss_before.isnan(), text.loss_before, image.loss_before)
        forwards = image.forwards + text.forwards + rows
        return AttackResult(both, loss_before, loss_after, forwards, image.backwards + text.backwards)


class CoAttack(_JointAttack):
    """Attack the text, then the image beside the attacked text (Zhang et al., arXiv:2206.09391).

    In the paper the image's steps move the pair's embedding away from where the clean pair and the attacked
    text put it; here they raise the objective that the text attack raised, so that one loss says what damage
    is. The paper returns that pair; here every example gets the best of that pair and of what either attack
    finds alone, so it is never weaker than its parts on the same objective.

    Cost: the text attack once and the image attack twice.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.

    Raises:
        ValueError: If an attack is on another modality, or the one on images does not score what it finds.
    """

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch; see `Attack`."""
        search = _PairSearch(batch)
        search.offer(search.run(self.image_attack, batch, objective))
        text = search.run(self.text_attack, batch, objective)
        search.offer(text)
        search.offer(search.run(self.image_attack, {**batch, **_texts(text.batch)}, objective))
        return search.result()


class AlternatingAttack(_JointAttack):
    """Attack the text, then image and text in turns, each against the best other one so far.

    Every turn starts again from the clean image, or the clean text, beside the other modality as it stands,
    so that the image stays in the ball around the clean one and the text within its budget. A turn that does
    not raise an example's objective is dropped for it. Never weaker than its parts on the same objective, nor
    than `CoAttack`, whose attacked pair is the first turn; nor than itself with fewer rounds.

    Cost: each attack `rounds + 1` times.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.
        rounds: How often the image, then the text, is attacked again.

    Raises:
        ValueError: If `rounds` is below one or an attack is on another modality.
    """

    def __init__(self, image_attack: Attack, text_attack: Attack, rounds: int = 2) -> None:
        super().__init__(image_attack, text_attack)
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}; expected at least 1.")
        self.rounds = rounds

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch; see `Attack`."""
        search = _PairSearch(batch)
        image_alone = search.run(self.image_attack, batch, objective)
        search.offer(search.run(self.text_attack, batch, objective))
        for _ in range(self.rounds):
            clean_image = {**search.best, "pixel_values": batch["pixel_values"]}
            search.offer(search.run(self.image_attack, clean_image, objective))
            clean_text = {**search.best, **_texts(batch)}
            search.offer(search.run(self.text_attack, clean_text, objective))
        search.offer(image_alone)  # last: every turn before follows an attacked text
        return search.result()


class SetGuidedAttack(_JointAttack):
    """Attack the text, then the image against a set of texts and at several sizes, then the text beside the
    attacked image (SGA, Lu et al., arXiv:2307.14061): an image attack that fits one text and one resolution
    less closely transfers better to other models.

    The image attack maximises the mean of the objective over the clean and the attacked text, and over the
    image as it is and resized to each of `scales` and back.

    Deviations from the paper: its set of texts is the attacked captions of an image, five per image, where
    a task's example has one text, so the clean one joins it; resizing is bilinear, not bicubic, which
    overshoots the valid range, and no noise is added, so that the attack is deterministic; and every example
    gets the best of the guided pair and of what either attack finds alone, so it is never weaker than its
    parts on the same objective.

    Cost: the image attack once and the text attack twice, plus the guided image attack: `2 * (1 +
    len(scales))` times the forwards and backwards of an image attack, whose memory grows by that factor too.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.
        scales: Factors on height and width.

    Raises:
        ValueError: If a scale is not positive or an attack is on another modality.
    """

    def __init__(
        self,
        image_attack: Attack,
        text_attack: Attack,
        scales: Sequence[float] = (0.5, 0.75, 1.25, 1.5),
    ) -> None:
        super().__init__(image_attack, text_attack)
        if not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales are {tuple(scales)}; expected positive factors on height and width.")
        self.scales = tuple(scales)

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch; see `Attack`."""
        search = _PairSearch(batch)
        search.offer(search.run(self.image_attack, batch, objective))
        text = search.run(self.text_attack, batch, objective)
        search.offer(text)
        guides = {_GUIDE + name: values for name, values in _texts(text.batch).items()}
        members = 2 * (1 + len(self.scales))
        guided = search.run(self.image_attack, {**batch, **guides}, self._mean_over_set(objective), members)
        attacked_image = {**batch, "pixel_values": guided.batch["pixel_values"]}
        search.offer(search.run(self.text_attack, attacked_image, objective))
        return search.result()

    def _mean_over_set(self, objective: Objective) -> Callable[[Batch], Tensor]:
        """The objective averaged over both texts of a batch and all sizes of its images."""

        def mean(batch: Batch) -> Tensor:
            # The second text travels in the batch, so that an attack may score some rows only.
            clean = {name: values for name, values in batch.items() if not name.startswith(_GUIDE)}
            attacked = {name: batch[_GUIDE + name] for name in _TEXT_FIELDS if _GUIDE + name in batch}
            rows = len(batch["pixel_values"])
            losses = [
                check_losses(objective({**clean, **texts, "pixel_values": pixels}), rows)
                for pixels in self._sizes(batch["pixel_values"], batch.get("pixel_mask"))
                for texts in ({}, attacked)
            ]
            return torch.stack(losses).mean(dim=0)

        return mean

    def _sizes(self, pixels: Tensor, pixel_mask: Tensor | None) -> list[Tensor]:
        """The images as they are, and resized to every scale and back."""
        height, width = pixels.shape[-2:]
        images = pixels.flatten(0, -4)  # (batch * images, channels, height, width)
        sizes = [pixels]
        for scale in self.scales:
            size = (max(int(scale * height), 1), max(int(scale * width), 1))
            resized = functional.interpolate(images, size=size, mode="bilinear")
            resized = functional.interpolate(resized, size=(height, width), mode="bilinear")
            resized = resized.reshape(pixels.shape)  # (batch, ..., channels, height, width)
            if pixel_mask is not None:
                resized = torch.where((pixel_mask != 0).unsqueeze(-3), resized, pixels)  # padding stays
            sizes.append(resized)
        return sizes


_GUIDE = "guide_"


class _PairSearch:
    """The best pair of every example among those offered, the clean one included, and the cost."""

    def __init__(self, batch: Batch) -> None:
        self.best = dict(batch)
        self.loss_before: Tensor | None = None
        self.loss: Tensor | None = None
        self.forwards = self.backwards = 0

    def run(self, attack: Attack, batch: Batch, objective: Any, members: int = 1) -> AttackResult:
        """Run an attack, and count its work; `members` is what one row of its objective costs."""
        result = attack(batch, objective)
        self.forwards += members * result.forwards
        self.backwards += members * result.backwards
        if self.loss is None:  # the first attack is on the clean pairs
            self.loss_before = self.loss = result.loss_before
        return result

    def offer(self, result: AttackResult) -> None:
        """Keep an attacked pair where its loss is above that of the best one (NaN never is)."""
        assert self.loss is not None  # `result` came from `run`
        better = result.loss_after > self.loss
        pixels = self.best["pixel_values"]
        rows = better.reshape(-1, *[1] * (pixels.ndim - 1))  # (batch, 1, ..., 1)
        self.best["pixel_values"] = torch.where(rows, result.batch["pixel_values"], pixels)
        self.best.update(_merge_texts(better, result.batch, self.best))
        self.loss = torch.where(better, result.loss_after, self.loss)

    def result(self) -> AttackResult:
        """The best pairs."""
        assert self.loss_before is not None
        assert self.loss is not None
        return AttackResult(self.best, self.loss_before, self.loss, self.forwards, self.backwards)


def _texts(batch: Batch) -> dict[str, Any]:
    return {name: batch[name] for name in _TEXT_FIELDS if name in batch}


def _merge_texts(chosen: Tensor, ours: Batch, theirs: Batch) -> dict[str, Any]:
    """Text fields with the chosen rows from one batch and the other rows from the other, padded on the right
    to the longest.
    """
    rows = chosen.tolist()
    lengths = [batch["attention_mask"].sum(dim=1) for batch in (ours, theirs)]
    width = int(torch.where(chosen, *lengths).max())
    hidden = torch.cat([batch["input_ids"][batch["attention_mask"] == 0] for batch in (ours, theirs)])
    # Without any padding to learn its id from, zero: no model looks at a token under the mask.
    padding = {"input_ids": int(hidden[0]) if len(hidden) else 0}
    merged: dict[str, Any] = {
        "text": [(ours if row else theirs)["text"][index] for index, row in enumerate(rows)]
    }
    for name in ENCODED_FIELDS:
        if name in theirs:
            some, others = (
                functional.pad(batch[name], (0, width - batch[name].shape[1]), value=padding.get(name, 0))
                for batch in (ours, theirs)
            )  # a negative amount cuts off
            merged[name] = torch.where(chosen.unsqueeze(1), some, others)  # (batch, width)
    return merged
