"""Attacks on both modalities of a pair."""

import torch

from .base import Attack, AttackResult, Batch, Objective, check_losses, isolated_rng
from .threat_model import ThreatModel

_TEXT_FIELDS = ("text", "input_ids", "attention_mask", "token_type_ids")


class IndependentAttack:
    """Attack image and text separately, each against the clean other one, then combine (the thesis's
    PGD+GEOM).

    The combination is not optimised: `loss_after` is the objective of the combined pair and may be below that
    of one of its halves. Cost: both attacks, plus one forward per example to score the combination.

    Args:
        image_attack: Changes `pixel_values`.
        text_attack: Changes `text` and its encoded fields.
    """

    def __init__(self, image_attack: Attack, text_attack: Attack) -> None:
        self.image_attack = image_attack
        self.text_attack = text_attack

    @property
    def threat_model(self) -> ThreatModel:
        """What the two attacks are allowed to do together."""
        return self.image_attack.threat_model.combined_with(self.text_attack.threat_model)

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch; see `Attack`."""
        image = self.image_attack(batch, objective)
        text = self.text_attack(batch, objective)
        attacked_text = {name: text.batch[name] for name in _TEXT_FIELDS if name in text.batch}
        both = {**batch, **attacked_text, "pixel_values": image.batch["pixel_values"]}
        rows = len(image.loss_before)
        with torch.no_grad(), isolated_rng(both["pixel_values"]):
            loss_after = check_losses(objective(dict(both)), rows).detach()
        forwards = image.forwards + text.forwards + rows
        return AttackResult(both, image.loss_before, loss_after, forwards, image.backwards + text.backwards)
