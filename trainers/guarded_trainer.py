"""A Trainer that stops at the first loss that is not a number."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint


class GuardedTrainer(Trainer):
    """`transformers.Trainer` that names the step and the last good checkpoint when the loss becomes NaN or infinite."""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one batch.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            checkpoint = (
                get_last_checkpoint(self.args.output_dir) or "none: save_strategy was 'no' or nothing was due"
            )
            raise FloatingPointError(
                f"The loss is {loss.item()} in step {self.state.global_step + 1}. Last good checkpoint: {checkpoint}. "
                "Lower learning_rate, set max_grad_norm, or look at the batch; then resume from that checkpoint."
            )
        return loss
