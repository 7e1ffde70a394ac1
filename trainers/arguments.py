"""Arguments of the RMCL trainer on top of Transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

VIEWS = ("image", "text", "both")


@dataclass
class GuardedArguments(TrainingArguments):
    """`TrainingArguments` of a `GuardedTrainer`."""

    resume_inexactly: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint though processes, data or recipe are not the same."},
    )


@dataclass
class RMCLArguments(GuardedArguments):
    """`GuardedArguments` plus what is RMCL's own; encoder and projector sizes are in `RMCLViltConfig`."""

    views: list[str] = field(
        default_factory=lambda: ["image", "text"],
        metadata={
            "help": "Attacked views in the loss: image, text (thesis) and both (the author's third term)."
        },
    )
    reduction: str = field(
        default="sum",
        metadata={"help": "How the views' losses combine: sum (thesis Eq. 2.9, 2.10) or mean (author)."},
    )
    queue_init: str = field(
        default="unit",
        metadata={"help": "First negatives of MoCo: unit vectors, or gaussian as the author's code."},
    )
    barlow_center: bool = field(
        default=True, metadata={"help": "Standardise by mean and std; False is the thesis's printed Eq. 2.4."}
    )
    pretraining_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of ViLT's own objectives kept beside the contrastive loss; the thesis uses none."
        },
    )

    def __post_init__(self) -> None:
        """Check RMCL's own fields, then Transformers'."""
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise ValueError(f"views must be a non-empty subset of {list(VIEWS)}, got {self.views}.")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}.")
        super().__post_init__()


def training_arguments(cls: type[TrainingArguments], output_dir: str, given: dict[str, Any]) -> Any:
    """Build `cls` from a recipe's `training` section with the defaults that every stage here shares.

    Raises:
        ValueError: If a setting is not allowed, or several processes would get batches of different sizes.
    """
    dispatching = {"dispatch_batches": False}
    if isinstance(given.get("accelerator_config"), dict):
        given = {**given, "accelerator_config": {**dispatching, **given["accelerator_config"]}}
    shared = {
        "remove_unused_columns": False,  # the collators read the columns
        # Said to `Trainer` lest several processes without a GPU train each for itself and know of no other.
        "use_cpu": not torch.accelerator.is_available(),
        # Of a stream every process reads its own shards: slicing one batch would leave its `text` whole.
        "accelerator_config": dispatching,
        "report_to": "none",
        "disable_tqdm": False,  # else a quiet log level would take the progress bars away too
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "save_strategy": "no",
        "ddp_timeout": 600,  # seconds; a process that hangs ends the others then, one that dies at once
        "adam_beta2": 0.98,  # ViLT's optimiser
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
    }
    if hasattr(cls, "warmup_ratio") and 0 < given.get("warmup_steps", 0) < 1:
        # a share of all steps: `warmup_steps` to Transformers 5, a field of its own to Transformers 4
        given = {**given, "warmup_ratio": given["warmup_steps"], "warmup_steps": 0}
    args = cls(output_dir=output_dir, **{**shared, **given})
    evened: Any = args.accelerator_config
    if args.world_size > 1 and not (evened.even_batches or args.dataloader_drop_last):
        raise ValueError(
            "accelerator_config.even_batches is False, so the last batches of the processes would differ in "
            "size and could not be gathered; set dataloader_drop_last as well."
        )
    return args
