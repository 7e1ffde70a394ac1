"""A Trainer for losses that are batch means, which stops at the first loss that is not a number."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from rmcl_hub.datasets_scripts.mixture import MixtureStream


class GuardedTrainer(Trainer):
    """`transformers.Trainer` that names step and last good checkpoint when the loss becomes NaN or infinite.

    It also tells a collator that has an `epoch` which one it is, so that a pair's random draws change from
    epoch to epoch and are the same in a resumed run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Every loss here is a batch mean, which Trainer must divide when it accumulates gradients.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_EpochCallback(self))

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; a `MixtureStream` has cut itself for the processes, accelerate must not again."""
        stream = self.train_dataset
        if not isinstance(stream, MixtureStream):
            return super().get_train_dataloader()
        if stream.batch_size != self._train_batch_size:
            raise ValueError(
                f"The stream has batches of {stream.batch_size} rows, the trainer of "
                f"{self._train_batch_size}; give both the same batch_size."
            )
        return DataLoader(
            stream,
            batch_size=stream.batch_size,
            collate_fn=_SkippingCollator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=self.args.dataloader_drop_last,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; a resumed run takes a `MixtureStream` up at the exact next row."""
        folder = (
            get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is True
            else resume_from_checkpoint
        )
        if folder and isinstance(self.train_dataset, MixtureStream):
            self._resume_stream(self.train_dataset, Path(folder))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _resume_stream(self, stream: MixtureStream, checkpoint: Path) -> None:
        """The place that `Trainer` is about to skip to, by its own arithmetic."""
        step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        accumulated = self.args.gradient_accumulation_steps
        steps_per_epoch = max(-(-len(self.get_train_dataloader()) // accumulated), 1)
        stream.resume_at(step // steps_per_epoch, step % steps_per_epoch * accumulated)

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
    """Tells stream and collator the epoch before they are asked for its first batch."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epoch = int(state.epoch or 0)
        collator: Any = self.trainer.data_collator
        if hasattr(collator, "epoch"):
            collator.epoch = epoch
        if isinstance(self.trainer.train_dataset, MixtureStream):
            self.trainer.train_dataset.set_epoch(epoch)


class _SkippingCollator:
    """Collates what a resumed stream reads, and nothing of what it passes over."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        return None if examples[0] is None else self.collator(examples)
