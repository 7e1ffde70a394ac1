"""Configuration of the RMCL encoder: ViLT's fields plus those of the pre-training objectives."""

from typing import Any

import transformers
from transformers import ViltConfig


class RMCLViltConfig(ViltConfig):
    """All fields of `transformers.ViltConfig`, and what RMCL adds. The defaults are ViLT-B/32 with MoCo.

    Smaller models are configurations, for instance `RMCLViltConfig(hidden_size=192, num_hidden_layers=4,
    num_attention_heads=6, intermediate_size=768, image_size=64, patch_size=16)`.

    Args:
        projector: `"moco"` or `"barlow_twins"`, the map from joint representation to joint embedding.
        projection_dim: Width of the joint embedding (MoCo 128, Barlow Twins 8192).
        projection_hidden_size: Width of the projector's hidden layers; `None` is the paper's choice.
        contrastive_temperature: Temperature of the InfoNCE losses, > 0.
        queue_size: Number of negative keys that MoCo keeps.
        momentum: Share of the old key weights kept per update, in [0, 1].
        barlow_lambda: Weight of Barlow Twins' redundancy term.
        itc_weight: Weight of the image-text contrast of the two modalities encoded alone, >= 0. This loss
            is an addition to the thesis; 0 builds no parameters for it.
        wpa_weight: Weight of word-patch alignment in the ViLT pre-training loss, >= 0 (ViLT: 0.1).
        tie_word_embeddings: Share word embeddings and the decoder of masked language modelling. Transformers
            5 sets this to true whatever is given.
        cls_token_id: Id of `[CLS]`, the text that stands before an image encoded alone (BERT's: 101).
        **kwargs: Fields of `ViltConfig`.

    Raises:
        ValueError: If a field is out of range.
    """

    model_type = "rmcl_vilt"

    def __init__(
        self,
        projector: str = "moco",
        projection_dim: int = 128,
        projection_hidden_size: int | None = None,
        contrastive_temperature: float = 0.07,
        queue_size: int = 65536,
        momentum: float = 0.999,
        barlow_lambda: float = 5e-3,
        itc_weight: float = 0.0,
        wpa_weight: float = 0.1,
        tie_word_embeddings: bool = True,
        cls_token_id: int = 101,
        **kwargs: Any,
    ) -> None:
        if projector not in ("moco", "barlow_twins"):
            raise ValueError(f"projector must be 'moco' or 'barlow_twins', got {projector!r}.")
        if contrastive_temperature <= 0:
            raise ValueError(
                f"contrastive_temperature must be positive, got {contrastive_temperature}; MoCo uses 0.07."
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}; MoCo uses 0.999.")
        if itc_weight < 0 or wpa_weight < 0:
            raise ValueError(
                f"Loss weights must be at least 0, got itc_weight={itc_weight}, wpa_weight={wpa_weight}."
            )
        self.projector = projector
        self.projection_dim = projection_dim
        self.projection_hidden_size = projection_hidden_size
        self.contrastive_temperature = contrastive_temperature
        self.queue_size = queue_size
        self.momentum = momentum
        self.barlow_lambda = barlow_lambda
        self.itc_weight = itc_weight
        self.wpa_weight = wpa_weight
        self.cls_token_id = cls_token_id
        kwargs.pop("model_type", None)  # a stock checkpoint says "vilt"
        # Transformers 4 has the pipeline itself, and would ask to trust the one in the folder instead.
        if transformers.__version__.startswith("4."):
            kwargs.pop("custom_pipelines", None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` stores: non-default fields, and tying, whose default depends on the version."""
        return super().to_diff_dict() | {"tie_word_embeddings": self.tie_word_embeddings}
