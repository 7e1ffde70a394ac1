"""Heads on the ViLT encoder for masked language modelling and the downstream tasks (thesis section 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_rmcl import RMCLViltConfig
from .modeling_rmcl_vilt import RMCLViltModel, RMCLViltPreTrainedModel

if TYPE_CHECKING:  # see modeling_rmcl_vilt
    from .contrastive_losses import gather_embeddings as gather_embeddings
    from .modeling_rmcl_vilt_pretraining import RMCLViltForPreTraining as RMCLViltForPreTraining
    from .projectors import build_projector as build_projector
    from .vilt_embeddings import ViltEmbeddings as ViltEmbeddings
    from .vilt_encoder import ViltEncoder as ViltEncoder
    from .vqa_pipeline import VisualQuestionAnsweringPipeline as VisualQuestionAnsweringPipeline
    from .word_patch_alignment import word_patch_alignment_loss as word_patch_alignment_loss

try:  # see modeling_rmcl_vilt
    from transformers import initialization as init
except ImportError:
    from torch.nn import init


class RMCLViltJointHead(RMCLViltPreTrainedModel):
    """A head that reads nothing but the joint representation. Subclasses define the layer and the loss."""

    vilt: RMCLViltModel
    classifier: nn.Module

    def joint_representation(self, **inputs: Any) -> Tensor:
        """What the head reads, `(batch, dim)`; inputs as in `RMCLViltModel`."""
        return self.vilt.joint_representation(**inputs)

    def logits_from_joint(self, joint: Tensor) -> Tensor:
        """Logits of joint representations `(batch, dim)`."""
        return self.classifier(joint)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar training loss."""
        raise NotImplementedError

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
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss when `labels` are given; inputs as in `RMCLViltModel`, labels as in `loss`."""
        joint = self.joint_representation(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
        )
        logits = self.logits_from_joint(joint)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss(logits, labels), logits=logits
        )


class RMCLViltForQuestionAnswering(RMCLViltJointHead):
    """Visual question answering over a fixed answer vocabulary (`config.num_labels` answers)."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        self.vilt = RMCLViltModel(config)
        self.classifier = _two_layer_classifier(config.hidden_size, 2 * config.hidden_size, config.num_labels)
        config.custom_pipelines = {  # their code lies in the saved folder
            "visual-question-answering": {
                "impl": "vqa_pipeline.VisualQuestionAnsweringPipeline",
                "pt": ["AutoModelForVisualQuestionAnswering"],
            }
        }
        self.post_init()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy summed over answers, as ViLT; labels `(batch, num_labels)` in [0, 1].

        With `config.problem_type == "single_label_classification"` (one right answer per question) it is
        the softmax cross-entropy, which learns from far fewer steps.
        """
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits, labels.to(logits.dtype))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * labels.shape[1]


class RMCLViltForImagesAndTextClassification(RMCLViltJointHead):
    """Classification of a sentence about `config.num_images` images (NLVR2: two images, true or false).

    `pixel_values` is `(batch, num_images, channels, height, width)`, `pixel_mask` is
    `(batch, num_images, height, width)`. Image i has modality type i + 1.
    """

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        if config.num_images < 1 or config.modality_type_vocab_size <= config.num_images:
            raise ValueError(
                "num_images must be at least 1 and modality_type_vocab_size greater than it, got "
                f"{config.num_images} and {config.modality_type_vocab_size}; NLVR2 uses num_images=2, "
                "modality_type_vocab_size=3."
            )
        self.vilt = RMCLViltModel(config)
        width = config.hidden_size * config.num_images
        self.classifier = _two_layer_classifier(width, width, config.num_labels)
        self.post_init()

    def joint_representation(self, **inputs: Any) -> Tensor:
        """Pooled pairs of the text with each image, concatenated, `(batch, num_images * hidden)`."""
        images = inputs.get("pixel_values") if inputs.get("image_embeds") is None else inputs["image_embeds"]
        num_images = self.config.num_images
        if images is None or images.shape[1] != num_images:
            raise ValueError(
                f"Expected {num_images} images per text, pixel_values (batch, {num_images}, channels, "
                f"height, width), got {None if images is None else tuple(images.shape)}."
            )
        # One pass over batch * num_images rows: the text is repeated, image i gets modality type i + 1.
        rows = {
            name: value.flatten(0, 1)
            if name in ("pixel_values", "pixel_mask", "image_embeds")
            else value.repeat_interleave(num_images, dim=0)
            for name, value in inputs.items()
            if value is not None
        }
        modality = torch.arange(1, num_images + 1, device=images.device).repeat(len(images))
        pooled = self.vilt.joint_representation(**rows, image_token_type_idx=modality)
        return pooled.view(len(images), -1)  # (batch, num_images * hidden)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; labels `(batch,)` are class indices."""
        return F.cross_entropy(logits, labels)


@dataclass
class RMCLViltForImageAndTextRetrievalOutput(SequenceClassifierOutput):
    """Scores of pairs.

    Args:
        logits_per_image: `(1, texts)`, the scores of the candidate texts of a single image, else None.
    """

    logits_per_image: Tensor | None = None


class RMCLViltForImageAndTextRetrieval(RMCLViltJointHead):
    """Score of a pair, `logits` `(batch, 1)`: higher means the text describes the image.

    A single image may come with several candidate texts. `pipeline("zero-shot-image-classification", ...)`
    ranks them so, by the softmax that the head is trained with (`hypothesis_template="{}"` for whole
    sentences; one image at a time, `batch_size=1`).
    """

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        self.vilt = RMCLViltModel(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
        self.post_init()

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
        labels: Tensor | None = None,
    ) -> RMCLViltForImageAndTextRetrievalOutput:
        """Scores, and the loss when `labels` are given; inputs as in `RMCLViltModel`, labels as in `loss`."""
        joint = self.joint_representation(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
        )
        logits = self.logits_from_joint(joint)
        images = cast(Tensor, image_embeds if pixel_values is None else pixel_values)
        return RMCLViltForImageAndTextRetrievalOutput(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            logits_per_image=logits.T if len(images) == 1 else None,
        )

    def joint_representation(self, **inputs: Any) -> Tensor:
        """What the head reads, `(batch, hidden)`; a single image is paired with each of several texts."""
        words = inputs.get("input_ids") if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        pixels = inputs.get("pixel_values")
        if words is not None and pixels is not None and len(pixels) == 1 < len(words):
            tokens, mask = self.embed_image(pixels, inputs.get("pixel_mask"))  # once
            inputs["image_embeds"] = tokens.expand(len(words), -1, -1)
            inputs["pixel_mask"] = mask.expand(len(words), -1)
            inputs["pixel_values"] = None
        return super().joint_representation(**inputs)

    def logits_from_joint(self, joint: Tensor) -> Tensor:
        """Scores `(batch, 1)` of joint representations `(batch, hidden)`."""
        return self.rank_output(joint)

    @torch.no_grad()
    def copy_itm_head(self, itm_score: nn.Linear) -> None:
        """Start from the true-pair logit of a pre-trained image-text matching head (ViLT, section 4.2)."""
        self.rank_output.weight.copy_(itm_score.weight[1:])
        self.rank_output.bias.copy_(itm_score.bias[1:])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over groups of candidates.

        Args:
            logits: `(batch, 1)`; consecutive rows form groups of equal size (thesis: the true text and 15
                random ones).
            labels: `(groups,)`, index of the true pair within its group.
        """
        if len(labels) == 0 or len(logits) % len(labels):
            raise ValueError(
                f"{len(logits)} pairs do not divide into {len(labels)} groups; "
                "give one label per group of candidates."
            )
        return F.cross_entropy(logits.view(len(labels), -1), labels)


class ViltMLMTransform(nn.Module):
    """Dense layer of the masked language model before its decoder."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        """Transform `(..., hidden)`."""
        return self.LayerNorm(self.activation(self.dense(states)))


class ViltMLMHead(nn.Module):
    """Word piece logits of text states.

    The decoder's bias is `decoder.bias` to Transformers 5 and `bias` to Transformers 4. Files hold both
    names; the buffer `bias` is there to receive the second and is never used itself.
    """

    bias: Tensor

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.transform = ViltMLMTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.register_buffer("bias", torch.zeros(config.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        """Map `(..., hidden)` to `(..., vocab_size)`."""
        return self.decoder(self.transform(states))


class RMCLViltMLMModel(RMCLViltPreTrainedModel):
    """Loading and saving of models with `vilt` and `mlm_score`."""

    vilt: RMCLViltModel
    mlm_score: ViltMLMHead

    _tied_weights_keys: ClassVar = {
        "mlm_score.decoder.weight": "vilt.embeddings.text_embeddings.word_embeddings.weight"
    }

    def get_output_embeddings(self) -> nn.Module:
        """Decoder of the masked language model."""
        return self.mlm_score.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the decoder."""
        self.mlm_score.decoder = value

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViltMLMHead):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in Transformers; a bias stored under Transformers 4's name is used."""
        loaded = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = cast(Any, loaded)  # a pair, because of output_loading_info
        missing = info["missing_keys"]
        if "mlm_score.decoder.bias" in missing and "mlm_score.bias" not in missing:
            with torch.no_grad():
                model.mlm_score.decoder.bias.copy_(model.mlm_score.bias)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """As in Transformers, with the decoder's bias under both names."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        state_dict["mlm_score.bias"] = state_dict["mlm_score.decoder.bias"].clone()
        super().save_pretrained(*args, state_dict=state_dict, **kwargs)


class RMCLViltForMaskedLM(RMCLViltMLMModel):
    """Word piece prediction at masked places of the text."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__(config)
        self.vilt = RMCLViltModel(config)
        self.mlm_score = ViltMLMHead(config)
        self.post_init()

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
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits `(batch, length, vocab_size)`; labels `(batch, length)` are ids, -100 where not scored."""
        states = self.vilt(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
        ).last_hidden_state
        words = cast(Tensor, inputs_embeds if input_ids is None else input_ids)  # the encoder refuses neither
        length = words.shape[1]
        logits = self.mlm_score(states[:, :length])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


def _two_layer_classifier(in_features: int, hidden: int, num_labels: int | None) -> nn.Sequential:
    if not num_labels:
        raise ValueError("The head needs num_labels in its configuration, got none.")
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, num_labels)
    )
