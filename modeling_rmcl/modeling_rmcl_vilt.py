"""The ViLT encoder (arXiv:2102.03334); its weights interchange with those of Transformers' ViLT."""

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_rmcl import RMCLViltConfig
from .vilt_embeddings import ViltEmbeddings
from .vilt_encoder import ViltEncoder, ViltPooler

if TYPE_CHECKING:
    # A saved folder carries the files that its model's source names in relative imports, and Transformers 4
    # follows these one file deep. So this file and the two with heads name all files: every saved folder
    # then loads as every class of AUTO_MAP. At run time the imports would be circular.
    from .contrastive_losses import gather_embeddings as gather_embeddings
    from .modeling_rmcl_vilt_heads import RMCLViltForQuestionAnswering as RMCLViltForQuestionAnswering
    from .modeling_rmcl_vilt_pretraining import RMCLViltForPreTraining as RMCLViltForPreTraining
    from .projectors import build_projector as build_projector
    from .vqa_pipeline import VisualQuestionAnsweringPipeline as VisualQuestionAnsweringPipeline
    from .word_patch_alignment import word_patch_alignment_loss as word_patch_alignment_loss

try:  # Transformers 5 builds models on the meta device; its functions skip what the checkpoint has filled.
    from transformers import initialization as init
except ImportError:
    from torch.nn import init

AUTO_MAP = {
    "AutoConfig": "configuration_rmcl.RMCLViltConfig",
    "AutoModel": "modeling_rmcl_vilt.RMCLViltModel",
    "AutoModelForPreTraining": "modeling_rmcl_vilt_pretraining.RMCLViltForPreTraining",
    "AutoModelForMaskedLM": "modeling_rmcl_vilt_heads.RMCLViltForMaskedLM",
    "AutoModelForVisualQuestionAnswering": "modeling_rmcl_vilt_heads.RMCLViltForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_rmcl_vilt_heads.RMCLViltForImagesAndTextClassification",
    # Transformers has no auto class for retrieval; "does the second input belong to the first" is closest.
    "AutoModelForNextSentencePrediction": "modeling_rmcl_vilt_heads.RMCLViltForImageAndTextRetrieval",
    # What the pipeline "zero-shot-image-classification" loads.
    "AutoModelForZeroShotImageClassification": "modeling_rmcl_vilt_heads.RMCLViltForImageAndTextRetrieval",
}


class RMCLViltPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by all RMCL ViLT classes."""

    config_class = RMCLViltConfig
    base_model_prefix = "vilt"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["ViltEmbeddings", "ViltLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    # Old ViLT checkpoints store the constant position_ids.
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"text_embeddings\.position_ids"]

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        config.auto_map = dict(AUTO_MAP)
        vars(config).pop("custom_pipelines", None)  # of another head

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViltEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)

    def embed_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image tokens `(batch, tokens, hidden)` and their mask: the `image_embeds` and `pixel_mask` of any
        number of pairs with these images.
        """
        encoder = cast("RMCLViltModel", self.base_model)
        return encoder.embeddings.embed_image(pixel_values, pixel_mask)


class RMCLViltModel(RMCLViltPreTrainedModel):
    """Single-stream transformer over word and patch tokens.

    Inputs of `forward` and `joint_representation`:
        input_ids: `(batch, length)`; or inputs_embeds: word vectors `(batch, length, hidden)` in their place.
        attention_mask: `(batch, length)`, 1 = real token; default all.
        token_type_ids: `(batch, length)`; default zeros.
        pixel_values: `(batch, channels, height, width)`, normalised by `(x - 0.5) / 0.5`, sides multiples of
            the patch size.
        pixel_mask: `(batch, height, width)`, 1 = real pixel; default all.
        image_embeds: image tokens `(batch, tokens, hidden)` from `embeddings.embed_image` in place of
            `pixel_values`; `pixel_mask` is then their token mask `(batch, tokens)`.
        image_token_type_idx: modality type of the image, an int or one per row `(batch,)`; default 1.
    """

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        self.embeddings = ViltEmbeddings(config)
        self.encoder = ViltEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViltPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Word embeddings; their output is what `inputs_embeds` replaces."""
        return self.embeddings.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.text_embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_type_idx: int | Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode pairs.

        Returns:
            `last_hidden_state` `(batch, length + 1 + patches, hidden)`: text, class token, patches; and
            `pooler_output` `(batch, hidden)`, the joint representation.

        Raises:
            ValueError: If inputs are missing or do not fit, or if fused attention is asked for its weights.
        """
        tokens, mask = self._join(
            *self._embed_text(input_ids, attention_mask, token_type_ids, inputs_embeds),
            *self._embed_image(pixel_values, pixel_mask, image_embeds, image_token_type_idx),
        )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r} returns no attention weights; "
                "call model.set_attn_implementation('eager')."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoded = self.encoder(
            tokens, mask, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        states = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.pooler(states),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def joint_representation(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_type_idx: int | Tensor | None = None,
    ) -> Tensor:
        """Joint representation `(batch, hidden)` of pairs (thesis Eq. 2.6): the pooler output, cheaper."""
        tokens, mask = self._join(
            *self._embed_text(input_ids, attention_mask, token_type_ids, inputs_embeds),
            *self._embed_image(pixel_values, pixel_mask, image_embeds, image_token_type_idx),
        )
        return self._pool(tokens, mask)

    def text_representation(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Pooled `(batch, hidden)` of the encoder run on text alone."""
        return self._pool(*self._embed_text(input_ids, attention_mask, token_type_ids, inputs_embeds))

    def image_representation(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> Tensor:
        """Pooled `(batch, hidden)` of the encoder run on the image alone, behind an empty text.

        The text is one `[CLS]` (`config.cls_token_id`): the image is read where pairs and texts are, so
        what is learned about images alone is there in the joint representation too.
        """
        image, image_mask = self._embed_image(pixel_values, pixel_mask, image_embeds, None)
        if self.config.cls_token_id >= self.config.vocab_size:
            raise ValueError(
                f"config.cls_token_id={self.config.cls_token_id} is outside the vocabulary of "
                f"{self.config.vocab_size}; set it to tokenizer.cls_token_id."
            )
        cls = torch.full((len(image), 1), self.config.cls_token_id, device=image.device)
        text, text_mask = self._embed_text(cls, None, None, None)
        return self._pool(*self._join(text, text_mask, image, image_mask))

    def _join(
        self, text: Tensor, text_mask: Tensor, image: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        if len(text) != len(image):
            raise ValueError(f"Each text needs one image, got {len(text)} texts and {len(image)} images.")
        return torch.cat([text, image], dim=1), torch.cat([text_mask, image_mask], dim=1)

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        encoded = self.encoder(tokens, mask, first_token_only=True)
        return self.pooler(self.layernorm(encoded.last_hidden_state))  # (batch, hidden)

    def _embed_text(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        text = self.embeddings.embed_text(input_ids, token_type_ids, inputs_embeds)
        if attention_mask is None:
            attention_mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return text, attention_mask

    def _embed_image(
        self,
        pixel_values: Tensor | None,
        pixel_mask: Tensor | None,
        image_embeds: Tensor | None,
        image_token_type_idx: int | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if image_embeds is None and pixel_values is not None:
            image_embeds, pixel_mask = self.embeddings.embed_image(pixel_values, pixel_mask)
        elif image_embeds is None or pixel_values is not None:
            raise ValueError("Give exactly one of pixel_values and image_embeds.")
        elif pixel_mask is None:
            pixel_mask = torch.ones(image_embeds.shape[:2], dtype=torch.long, device=image_embeds.device)
        modality = torch.as_tensor(1 if image_token_type_idx is None else image_token_type_idx)
        modality = modality.to(image_embeds.device).view(-1, 1)  # (1 or batch, 1)
        return image_embeds + self.embeddings.token_type_embeddings(modality), pixel_mask
