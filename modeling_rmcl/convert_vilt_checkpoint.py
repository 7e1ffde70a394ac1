"""Convert a ViLT checkpoint of Transformers into an RMCL one.

Encoders of the same shape also load directly with `from_pretrained`; this adds checks, the processor, and the
modality types of further images.
"""

import argparse
import logging
from typing import Any, cast

import torch
from transformers import ViltConfig, ViltProcessor

from .configuration_rmcl import RMCLViltConfig
from .modeling_rmcl_vilt import RMCLViltModel, RMCLViltPreTrainedModel
from .modeling_rmcl_vilt_heads import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForQuestionAnswering,
)
from .modeling_rmcl_vilt_pretraining import RMCLViltForPreTraining

logger = logging.getLogger(__name__)

HEADS = {
    "none": RMCLViltModel,
    "pretraining": RMCLViltForPreTraining,
    "masked-lm": RMCLViltForMaskedLM,
    "question-answering": RMCLViltForQuestionAnswering,
    "images-and-text-classification": RMCLViltForImagesAndTextClassification,
    "retrieval": RMCLViltForImageAndTextRetrieval,
}


def convert_vilt_checkpoint(
    source: str, model_class: type[RMCLViltPreTrainedModel] = RMCLViltForPreTraining, **config_changes: Any
) -> RMCLViltPreTrainedModel:
    """Load ViLT weights into an RMCL class; layers that the checkpoint lacks are initialised.

    Args:
        source: Folder or Hub name of a checkpoint saved by a ViLT class of Transformers 4 or 5.
        model_class: Class to build.
        **config_changes: Fields of `RMCLViltConfig` to set. More `modality_type_vocab_size` than stored
            repeats the last stored type, as ViLT does for NLVR2's second image.

    Raises:
        ValueError: If the checkpoint lacks part of the encoder.
    """
    stored = ViltConfig.from_pretrained(source).to_diff_dict()
    stored = {name: value for name, value in stored.items() if name not in ("model_type", "architectures")}
    config = RMCLViltConfig(**{**stored, **config_changes})
    loaded = model_class.from_pretrained(
        source, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, info = cast(Any, loaded)  # a pair, because of output_loading_info
    prefix = "" if model_class is RMCLViltModel else "vilt."
    lost = sorted(name for name in info["missing_keys"] if name.startswith(prefix))
    if lost:
        raise ValueError(f"{source} is no complete ViLT checkpoint, it lacks {', '.join(lost)}.")
    num_types = stored.get("modality_type_vocab_size", 2)
    if config.modality_type_vocab_size != num_types:
        encoder = RMCLViltModel.from_pretrained(source, config=RMCLViltConfig(**stored))
        _repeat_last_row(
            encoder.embeddings.token_type_embeddings.weight,
            model.base_model.embeddings.token_type_embeddings.weight,
        )
    logger.info("Newly initialised: %s", sorted(info["missing_keys"]) or "nothing")
    logger.info("Left out: %s", sorted(info["unexpected_keys"]) or "nothing")
    return model


@torch.no_grad()
def _repeat_last_row(source: torch.Tensor, target: torch.Tensor) -> None:
    rows = torch.arange(len(target)).clamp_max(len(source) - 1)
    target.copy_(source[rows])


def main() -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(
        description="Convert a ViLT checkpoint of Transformers into an RMCL one."
    )
    parser.add_argument("source", help="folder or Hub name of the ViLT checkpoint")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--head", choices=HEADS, default="pretraining")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    changes = {"num_images": 2, "modality_type_vocab_size": 3} if arguments.head.startswith("images") else {}
    convert_vilt_checkpoint(arguments.source, HEADS[arguments.head], **changes).save_pretrained(
        arguments.target
    )
    ViltProcessor.from_pretrained(arguments.source).save_pretrained(arguments.target)


if __name__ == "__main__":
    main()
