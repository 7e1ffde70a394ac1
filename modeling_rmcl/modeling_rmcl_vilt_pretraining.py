"""ViLT pre-training losses and the joint embedding that RMCL trains, in one model."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_rmcl import RMCLViltConfig
from .contrastive_losses import gather_embeddings, mean_over_processes
from .modeling_rmcl_vilt import RMCLViltModel
from .modeling_rmcl_vilt_heads import RMCLViltMLMModel, ViltMLMHead
from .projectors import build_projector
from .word_patch_alignment import inner_word_mask, word_patch_alignment_loss

if TYPE_CHECKING:  # see modeling_rmcl_vilt
    from .vilt_embeddings import ViltEmbeddings as ViltEmbeddings
    from .vilt_encoder import ViltEncoder as ViltEncoder
    from .vqa_pipeline import VisualQuestionAnsweringPipeline as VisualQuestionAnsweringPipeline

try:  # see modeling_rmcl_vilt
    from transformers import initialization as init
except ImportError:
    from torch.nn import init


@dataclass
class RMCLViltForPreTrainingOutput(ModelOutput):
    """Losses are scalars without their weights, except `loss`, which is the weighted sum.

    Args:
        loss: `mlm_loss + itm_loss + wpa_weight * wpa_loss + itc_weight * itc_loss`, of those computed.
        mlm_loss: Cross-entropy at masked word pieces.
        itm_loss: Cross-entropy of image-text matching.
        wpa_loss: Word-patch alignment, see `word_patch_alignment_loss`.
        itc_loss: Contrast of the modalities encoded alone (not in the thesis).
        embeds: Joint embeddings `(batch, projection_dim)`, not normalised.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    wpa_loss: Tensor | None = None
    itc_loss: Tensor | None = None
    embeds: Tensor | None = None


class RMCLViltForPreTraining(RMCLViltMLMModel):
    """ViLT pre-training (MLM, ITM, word-patch alignment, optional ITC) and the projector of RMCL."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        self.vilt = RMCLViltModel(config)
        self.mlm_score = ViltMLMHead(config)
        self.itm_score = nn.Linear(config.hidden_size, 2)
        self.projector = build_projector(config)
        self.itc_log_scale = None
        if config.itc_weight > 0:
            self.image_projection = nn.Linear(config.hidden_size, config.projection_dim)
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim)
            self.itc_log_scale = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.itc_log_scale is not None:
            init.constant_(self.itc_log_scale, -math.log(self.config.contrastive_temperature))

    def joint_representation(self, **inputs: Any) -> Tensor:
        """Pooled pairs `(batch, hidden)`; inputs as in `RMCLViltModel`."""
        return self.vilt.joint_representation(**inputs)

    def joint_embedding(self, **inputs: Any) -> Tensor:
        """Projected pairs `(batch, projection_dim)`, not normalised."""
        return self.projector(self.joint_representation(**inputs))

    def logits_from_joint(self, joint: Tensor) -> Tensor:
        """Image-text matching logits `(batch, 2)` of pooled pairs; class 1 is a true pair."""
        return self.itm_score(joint)

    def text_embedding(self, **inputs: Any) -> Tensor:
        """Unit vectors `(batch, projection_dim)` of texts alone; inputs as in `text_representation`."""
        self._require_itc()
        return F.normalize(self.text_projection(self.vilt.text_representation(**inputs)), dim=1)

    def image_embedding(self, **inputs: Any) -> Tensor:
        """Unit vectors `(batch, projection_dim)` of images alone; inputs as in `image_representation`."""
        self._require_itc()
        return F.normalize(self.image_projection(self.vilt.image_representation(**inputs)), dim=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        itm_image_index: Tensor | None = None,
        itm_labels: Tensor | None = None,
    ) -> RMCLViltForPreTrainingOutput:
        """Joint embeddings, or the ViLT pre-training losses when their targets are given.

        Inputs are those of `RMCLViltModel`, and the targets:
            mlm_input_ids: Masked text `(batch, length)`, of the same images.
            mlm_labels: Original ids `(batch, length)` at masked places, -100 elsewhere.
            itm_image_index: `(batch,)`, row of the image that each unmasked text is paired with.
            itm_labels: `(batch,)`, 1 = that image is the text's own.
        """
        for given, its_labels in ((mlm_input_ids, mlm_labels), (itm_image_index, itm_labels)):
            if (given is None) != (its_labels is None):
                raise ValueError(
                    "mlm_input_ids go with mlm_labels, itm_image_index with itm_labels; "
                    "one of two is missing."
                )
        if mlm_input_ids is None and itm_image_index is None:
            embeds = self.joint_embedding(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                pixel_values=pixel_values,
                pixel_mask=pixel_mask,
            )
            return RMCLViltForPreTrainingOutput(embeds=embeds)
        if input_ids is None or pixel_values is None:
            raise ValueError(
                "The pre-training losses need input_ids and pixel_values; "
                "inputs_embeds is for joint embeddings."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        # Patches are embedded once and shared by all passes.
        image, image_mask = self.vilt.embeddings.embed_image(pixel_values, pixel_mask)
        losses = {}
        if mlm_input_ids is not None and mlm_labels is not None:
            encoded = self.vilt(mlm_input_ids, image_embeds=image, pixel_mask=image_mask, **text)
            text_states = encoded.last_hidden_state[:, : mlm_input_ids.shape[1]]
            losses["mlm_loss"] = self._mlm_loss(text_states, mlm_labels)
        if itm_image_index is not None and itm_labels is not None:
            paired = image[itm_image_index], image_mask[itm_image_index]
            losses |= self._matching_losses(input_ids, *paired, itm_labels, attention_mask, token_type_ids)
        if self.config.itc_weight > 0:
            losses["itc_loss"] = self._itc_loss(input_ids, image, image_mask, **text)
        weights = {"wpa_loss": self.config.wpa_weight, "itc_loss": self.config.itc_weight}
        total = sum((weights.get(name, 1.0) * loss for name, loss in losses.items()), image.new_zeros(()))
        return RMCLViltForPreTrainingOutput(loss=total, **losses)

    def _mlm_loss(self, text_states: Tensor, labels: Tensor) -> Tensor:
        scored = labels != -100  # (batch, length); the vocabulary is large, so only these places are decoded
        logits = self.mlm_score(text_states[scored])  # (scored places, vocab_size)
        places = scored.sum().float()
        if self.training:  # processes mask different numbers of words, and their losses are averaged
            places = mean_over_processes(places)
        return F.cross_entropy(logits, labels[scored], reduction="sum") / places.clamp_min(1e-9)

    def _matching_losses(
        self,
        input_ids: Tensor,
        image: Tensor,
        image_mask: Tensor,
        is_match: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """Image-text matching, and word-patch alignment on the states of the same pass."""
        encoded = self.vilt(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            image_embeds=image,
            pixel_mask=image_mask,
        )
        losses = {"itm_loss": F.cross_entropy(self.itm_score(encoded.pooler_output), is_match.long())}
        if self.config.wpa_weight > 0:
            length = input_ids.shape[1]
            losses["wpa_loss"] = word_patch_alignment_loss(
                encoded.last_hidden_state[:, :length],
                encoded.last_hidden_state[:, length + 1 :],  # without the class token
                inner_word_mask(attention_mask),
                image_mask[:, 1:].bool(),
                is_match,
            )
        return losses

    def _itc_loss(
        self, input_ids: Tensor, image: Tensor, image_mask: Tensor, **text: Tensor | None
    ) -> Tensor:
        """Symmetric InfoNCE of texts and images encoded alone (CLIP, arXiv:2103.00020), not in the thesis."""
        texts = gather_embeddings(self.text_embedding(input_ids=input_ids, **text))  # (world * batch, dim)
        images = gather_embeddings(self.image_embedding(image_embeds=image, pixel_mask=image_mask))
        logits = self._require_itc().exp().clamp(max=100) * texts @ images.T  # CLIP's limit on the scale
        target = torch.arange(len(texts), device=texts.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _require_itc(self) -> Tensor:
        """The learned log scale of the contrast, if this model has the single-modality projections."""
        if self.itc_log_scale is None:
            raise ValueError(
                "This model has no single-modality projections: config.itc_weight is 0. Pre-train with "
                "itc_weight > 0, or rank pairs with RMCLViltForImageAndTextRetrieval."
            )
        return self.itc_log_scale
