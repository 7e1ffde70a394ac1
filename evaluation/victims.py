"""The model under attack, as attacks and metrics see it: an embedding of a batch, and its logits.

Attack your own model: say how it embeds a batch and what it answers, and how its pictures were normalised.
A `Task` says how rows become batches. Everything else is as for the models of this package:

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    >>> mine = Victim(
    ...     module=network,
    ...     embed=lambda batch: network[:3](batch["pixel_values"]),
    ...     logits=lambda embedding, batch: network[3](embedding),
    ...     reads_text=False,
    ... )
    >>> mine.predict({"pixel_values": torch.zeros(5, 3, 4, 4)}).shape
    torch.Size([5, 2])

    evaluate_robustness(mine, processor, dataset, "image-classification", ["linf-4"])

A model that reads text takes it from `input_ids`, and from `inputs_embeds` if attacks are to follow the
gradient at its words: `word_embeddings` is then the layer that turns the first into the second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rmcl_hub.attacks.base import Batch, frozen, isolated_rng, model_inputs


@dataclass(frozen=True)
class Victim:
    """A model under attack.

    Attributes:
        module: Owner of all parameters that the two functions use.
        embed: Batch to embedding `(batch, dim)`, every row independently of the others. Reads `pixel_values`
            and, for a model that reads text, `input_ids` or `inputs_embeds (batch, length, hidden)`.
        logits: (embedding, batch) to logits `(batch, classes)`.
        word_embeddings: Layer from `input_ids` to `inputs_embeds`, for attacks that need word gradients.
            None: the text cannot be attacked through gradients.
        reads_text: Whether the answer depends on the text at all.
        image_mean: What `pixel_values` were normalised with, one number or one per channel.
        image_std: The same for the deviation.
        defence: What the model does at test time to blunt attacks; `"none"`, or None where nobody has said.
    """

    module: nn.Module
    embed: Callable[[Batch], Tensor]
    logits: Callable[[Tensor, Batch], Tensor]
    word_embeddings: nn.Module | None = None
    reads_text: bool = True
    image_mean: float | Sequence[float] = 0.5
    image_std: float | Sequence[float] = 0.5
    defence: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next(self.module.parameters()).device

    def on_device(self, batch: Batch) -> dict[str, Any]:
        """The batch with its tensors where the model is."""
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def predict(self, batch: Batch) -> Tensor:
        """Logits `(batch, classes)` without gradients."""
        with torch.no_grad():
            return self.logits(self.embed(batch), batch)


def as_victim(model: Any, processor: Any = None, task: str = "vqa", defence: str | None = None) -> Victim:
    """See a model as a victim: one of ours, Transformers' ViLT, or an image classifier.

    The heads on ViLT, ours and Transformers' alike, are embedded at what their last part reads: the pooled
    pair, or the state of the masked word. Transformers' ViLT draws the order of its patches; here it draws
    the same one in every forward, and the global random state stays as it is.

    Args:
        model: A `Victim` is returned as it is. A model with `joint_representation` and `logits_from_joint`,
            Transformers' ViLT with a `classifier`, or any model that turns `pixel_values` alone into
            `logits`. For `"mlm"`: one with `vilt` and `mlm_score`.
        processor: Whose image processor's normalisation holds; 0.5 (ViLT's) without one.
        task: `"mlm"` reads the answer at the masked word.
        defence: See `Victim`; overrides that of a `Victim`.

    Raises:
        ValueError: If the model is none of these, or draws random patches of large images.
    """
    if isinstance(model, Victim):
        return model if defence is None else replace(model, defence=defence)
    _check_all_patches(model)
    parts = _masked_word_parts(model) if task == "mlm" else _parts(model)
    return Victim(module=model, **parts, **_normalisation(processor), defence=defence)


def dual_encoder(
    model: Any, class_inputs: Batch, processor: Any = None, defence: str | None = None
) -> Victim:
    """A CLIP-like model as a zero-shot classifier: the image is attacked, the class texts are fixed.

    Args:
        model: With `get_image_features(pixel_values)`, `get_text_features` and `logit_scale` (CLIP, SigLIP).
        class_inputs: Tokenised class texts, `(classes, length)` each, padded as in training (SigLIP: to the
            full length).
        processor: Whose image processor's normalisation holds.
        defence: See `Victim`.
    """
    with torch.no_grad(), frozen(model):
        inputs = {name: values.to(model.device) for name, values in class_inputs.items()}
        classes = _unit(model.get_text_features(**inputs))  # (classes, dim)
        # SigLIP's bias is the same for all classes, so it changes no probability among them.
        scale = model.logit_scale.exp()
    return Victim(
        module=model,
        embed=lambda batch: _unit(model.get_image_features(pixel_values=batch["pixel_values"])),
        logits=lambda embedding, batch: scale * embedding @ classes.T,
        reads_text=False,
        **_normalisation(processor),
        defence=defence,
    )


def _parts(model: Any) -> dict[str, Any]:
    if hasattr(model, "joint_representation") and hasattr(model, "logits_from_joint"):
        return {
            "embed": lambda batch: model.joint_representation(**model_inputs(batch)),
            "logits": lambda embedding, batch: model.logits_from_joint(embedding),
            "word_embeddings": model.get_input_embeddings(),
        }
    if hasattr(model, "vilt") and hasattr(model, "classifier"):  # Transformers' own heads
        return {
            "embed": lambda batch: _pooled_pairs(model, batch),
            "logits": lambda embedding, batch: model.classifier(embedding),
            "word_embeddings": model.get_input_embeddings(),
        }
    if getattr(model, "main_input_name", None) == "pixel_values":
        return {
            "embed": lambda batch: _image_logits(model, batch),
            "logits": lambda embedding, batch: embedding,
            "reads_text": False,
        }
    raise ValueError(
        f"{type(model).__name__} has neither joint_representation and logits_from_joint, nor vilt and "
        "classifier, nor pixel_values as its main input. A masked language model needs task='mlm', CLIP and "
        "SigLIP victims.dual_encoder, and a model of your own a victims.Victim (see the module's example)."
    )


def _image_logits(model: Any, batch: Batch) -> Tensor:
    output = model(pixel_values=batch["pixel_values"])
    if not hasattr(output, "logits"):
        raise ValueError(
            f"{type(model).__name__} returns {type(output).__name__}, which has no logits; load the model "
            "with its head (AutoModelForImageClassification)."
        )
    return output.logits


def _pooled_pairs(model: Any, batch: Batch) -> Tensor:
    """Pooled pair of the text and each image of an example, side by side, `(batch, images * hidden)`."""
    inputs = model_inputs(batch)
    pixels, masks = inputs.pop("pixel_values"), inputs.pop("pixel_mask")
    if pixels.ndim == 4:  # one image
        pixels, masks = pixels.unsqueeze(1), masks.unsqueeze(1)  # (batch, 1, ...)
    images = zip(pixels.unbind(1), masks.unbind(1), strict=True)
    pooled = [
        _encode(model, **inputs, pixel_values=image, pixel_mask=mask, image_token_type_idx=1 + place)
        for place, (image, mask) in enumerate(images)
    ]
    return torch.cat([output.pooler_output for output in pooled], dim=1)


def _masked_word_parts(model: Any) -> dict[str, Any]:
    """Masked language model: the state of the one masked word, and its word piece logits."""
    if not (hasattr(model, "vilt") and hasattr(model, "mlm_score")):
        raise ValueError(
            f"{type(model).__name__} has no vilt and mlm_score, so it predicts no masked words; load the "
            "model with AutoModelForMaskedLM, or choose the task of its head."
        )
    words = model.get_input_embeddings()

    def embed(batch: Batch) -> Tensor:
        place = _masked_place(batch, words)  # (batch,)
        states = _encode(model, **model_inputs(batch)).last_hidden_state
        return states[torch.arange(len(place), device=place.device), place]

    return {
        "embed": embed,
        "logits": lambda embedding, batch: model.mlm_score(embedding),
        "word_embeddings": words,
    }


def _masked_place(batch: Batch, words: nn.Module) -> Tensor:
    """Position of the masked word in every row, `(batch,)`."""
    mask_id = batch["mask_token_id"][:, None]  # (batch, 1)
    if "inputs_embeds" in batch:
        with torch.no_grad():
            masked = (batch["inputs_embeds"] == words(mask_id)).all(dim=-1)  # (batch, length)
    else:
        masked = batch["input_ids"] == mask_id
    masked = masked & (batch["attention_mask"] != 0)
    if not (masked.sum(dim=1) == 1).all():
        raise ValueError(
            f"rows have {masked.sum(dim=1).tolist()} masked words; expected one in each, of the id "
            f"{mask_id.flatten().tolist()}. Mask one word, within the first max_text_length word pieces."
        )
    return masked.int().argmax(dim=1)


def _encode(model: Any, **inputs: Any) -> Any:
    """States of a ViLT, the same in every call: Transformers' permutes its patches at random."""
    with isolated_rng(inputs["pixel_values"]):
        torch.default_generator.manual_seed(0)
        return model.vilt(**inputs)


def _check_all_patches(model: Any) -> None:
    """Refuse Transformers' ViLT where it drops patches: always the same ones, it would seem deterministic."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) == "vilt" and (config.max_image_length or 0) > 0:
        raise ValueError(
            f"config.max_image_length is {config.max_image_length}, so {type(model).__name__} looks at that "
            "many patches of a larger image, drawn at random in every forward, and an attack on a random "
            "model overstates its robustness. Set model.config.max_image_length = -1."
        )


def _unit(features: Any) -> Tensor:
    """Unit vectors; Transformers 5 wraps the features in an output class."""
    features = getattr(features, "pooler_output", features)
    return nn.functional.normalize(features, dim=-1)


def _normalisation(processor: Any) -> dict[str, Any]:
    image_processor = getattr(processor, "image_processor", processor)
    if image_processor is None:
        return {}
    if not hasattr(image_processor, "image_mean"):
        raise ValueError(
            f"{type(image_processor).__name__} has no image_mean, so epsilon cannot be put into pixels; "
            "pass the model's processor or image processor (AutoProcessor, AutoImageProcessor)."
        )
    if not image_processor.do_normalize:
        return {"image_mean": 0.0, "image_std": 1.0}
    return {"image_mean": list(image_processor.image_mean), "image_std": list(image_processor.image_std)}
