"""The model under attack, as attacks and metrics see it: an embedding of a batch, and its logits.

An encoder of your own takes part by a `Victim` of its own, three lambdas and its normalisation:

    victim = Victim(
        module=my_model,
        embed=lambda batch: my_model.encode(batch["pixel_values"], batch["input_ids"]),
        logits=lambda embedding, batch: my_model.head(embedding),
        word_embeddings=None,  # or the layer whose output `embed` takes as `inputs_embeds`
    )
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmcl_hub.attacks.base import Batch, model_inputs


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

    def predict(self, batch: Batch) -> Tensor:
        """Logits `(batch, classes)` without gradients."""
        with torch.no_grad():
            return self.logits(self.embed(batch), batch)


def as_victim(model: Any, processor: Any = None, task: str = "vqa", defence: str | None = None) -> Victim:
    """See a model as a victim: one of ours, Transformers' ViLT, or an image classifier.

    Args:
        model: A `Victim` is returned as it is. A model with `joint_representation` and `logits_from_joint`
            is attacked at its joint representation; any other model whose `forward` returns `logits`, at its
            logits.
        processor: Whose image processor's normalisation holds; 0.5 (ViLT's) without one.
        task: `"mlm"` reads the logits at the masked word.
        defence: See `Victim`.

    Raises:
        ValueError: If the model offers neither.
    """
    if isinstance(model, Victim):
        return model
    parts = _masked_word_parts(model) if task == "mlm" else _parts(model)
    return Victim(module=model, **parts, **_normalisation(processor), defence=defence)


def dual_encoder(
    model: Any, class_inputs: Batch, processor: Any = None, defence: str | None = None
) -> Victim:
    """A CLIP-like model as a zero-shot classifier: the image is attacked, the class texts are fixed.

    Args:
        model: With `get_image_features(pixel_values)` and `get_text_features(input_ids, attention_mask)`
            (CLIP, SigLIP).
        class_inputs: Tokenised class texts, `(classes, length)` each.
        processor: Whose image processor's normalisation holds.
        defence: See `Victim`.
    """
    with torch.no_grad():
        classes = _unit(model.get_text_features(**class_inputs))  # (classes, dim)
    scale = model.logit_scale.detach().exp() if hasattr(model, "logit_scale") else 1.0
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
    if getattr(model, "main_input_name", None) == "pixel_values":
        return {
            "embed": lambda batch: model(pixel_values=batch["pixel_values"]).logits,
            "logits": lambda embedding, batch: embedding,
            "reads_text": False,
        }
    if hasattr(model, "vilt"):  # Transformers' own ViLT heads, attacked at their logits
        return {
            "embed": lambda batch: model(**model_inputs(batch)).logits,
            "logits": lambda embedding, batch: embedding,
            "word_embeddings": model.get_input_embeddings(),
        }
    raise ValueError(
        f"{type(model).__name__} has neither joint_representation and logits_from_joint, nor a ViLT, nor "
        "pixel_values as its main input; wrap it in evaluation.victims.Victim (see the module's example)."
    )


def _masked_word_parts(model: Any) -> dict[str, Any]:
    """Masked language model: the state of the one masked word, and its word piece logits."""
    words = model.get_input_embeddings()

    def embed(batch: Batch) -> Tensor:
        output = model(**model_inputs(batch))
        return output.logits[torch.arange(len(output.logits)), _masked_place(batch, words)]

    return {"embed": embed, "logits": lambda embedding, batch: embedding, "word_embeddings": words}


def _masked_place(batch: Batch, words: nn.Module) -> Tensor:
    """Position of the masked word in every row, `(batch,)`."""
    mask_id = batch["mask_token_id"]  # (batch,)
    if "inputs_embeds" not in batch:
        return (batch["input_ids"] == mask_id[:, None]).int().argmax(dim=1)
    with torch.no_grad():
        mask = words(mask_id)[:, None]  # (batch, 1, hidden)
        return (batch["inputs_embeds"] == mask).all(dim=-1).int().argmax(dim=1)


def _unit(features: Any) -> Tensor:
    """Unit vectors; Transformers 5 wraps the features in an output class."""
    features = getattr(features, "pooler_output", features)
    return nn.functional.normalize(features, dim=-1)


def _normalisation(processor: Any) -> dict[str, Any]:
    image_processor = getattr(processor, "image_processor", processor)
    if image_processor is None:
        return {}
    if not getattr(image_processor, "do_normalize", True):
        return {"image_mean": 0.0, "image_std": 1.0}
    return {"image_mean": list(image_processor.image_mean), "image_std": list(image_processor.image_std)}
