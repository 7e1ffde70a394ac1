"""How hard the on-the-fly attacks hit: the thesis's delta-norm and word-change curves, and the gain."""

from typing import Any

from torch import Tensor

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.evaluation.metrics import word_change_rate


def view_statistics(clean: dict[str, Any], attacked: dict[str, AttackResult]) -> dict[str, Tensor | float]:
    """Means over the batch of what each attack did.

    Args:
        clean: Clean batch with `pixel_values` normalised by mean and std 0.5, `pixel_mask` and `text`.
        attacked: Results by view, `image` and/or `text`.

    Returns:
        `attack_gain_<view>`: loss after minus before; a view that is made without the model has none.
        `delta_norm`: mean over a picture's pixels of the L2 norm over channels, in [0, 1] pixel units (thesis
        Fig. 4.16). `word_change_rate`: share of changed words (thesis Fig. 4.17). Both are means over pairs.
    """
    values: dict[str, Tensor | float] = {
        f"attack_gain_{view}": (result.loss_after - result.loss_before).mean()
        for view, result in attacked.items()
        if not result.loss_before.isnan().all()
    }
    if "image" in attacked:
        delta = attacked["image"].batch["pixel_values"] - clean["pixel_values"]
        norm, mask = delta.norm(dim=-3) / 2, clean["pixel_mask"] != 0  # 2 normalised units are 1 pixel unit
        values["delta_norm"] = ((norm * mask).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1))).mean()
    if "text" in attacked:
        values["word_change_rate"] = word_change_rate(clean["text"], attacked["text"].batch["text"])
    return values
