"""A Trainer for losses that are batch means, which stops at the first loss that is not a number."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback


class GuardedTrainer(Trainer):
    """`transformers.Trainer` that names step and last good checkpoint when the loss becomes NaN or infinite.

    It also tells a collator that has an `epoch` which one it is, so that a pair's random draws change from
    epoch to epoch and are the same in a resumed run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Every loss here is a batch mean, which Trainer must divide when it accumulates gradients.
        self.model_accepts_loss_kwargs = False
        if hasattr(self.data_collator, "epoch"):
            self.add_callback(_EpochCallback(self.data_collator))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loss of a batch; the raw sentences in it are for attacks, a model's forward does not take them."""
        tensors = {name: value for name, value in inputs.items() if name != "text"}
        return super().compute_loss(model, tensors, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one batch.

        Raises:
            FloatingPointError: If the loss is not finite. The weights are those of the step before.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss is {loss.item()} in step {self.state.global_step + 1}. Last good checkpoint: "
                f"{_last_finite_checkpoint(self.args.output_dir)}. Lower learning_rate or max_grad_norm, or "
                "look at the batch; then go on with training.resume_from_checkpoint."
            )
        return loss


def _last_finite_checkpoint(output_dir: str | None) -> str:
    """The newest complete checkpoint whose weights are finite; a bad gradient can spoil the newest one."""
    checkpoints = [path.parent for path in Path(output_dir or ".").glob("checkpoint-*/trainer_state.json")]
    for folder in sorted(
        checkpoints, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True
    ):
        weights = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
        if all(tensor.isfinite().all() for tensor in weights):
            return str(folder)
    return "none (save_strategy was 'no', or nothing was due)"


class _EpochCallback(TrainerCallback):
    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.collator.epoch = int(state.epoch or 0)
