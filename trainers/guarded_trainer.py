"""A Trainer for long runs: it may be killed at any moment, and it says what to do when it fails."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from rmcl_hub.datasets_scripts.mixture import MixtureStream

from .checkpoints import (
    checkpoint_folders,
    delete_older,
    discard,
    fault,
    mark_complete,
    newest_complete,
    recorded_run,
)
from .run_fingerprint import changes, fingerprint
from .stop_signal import StopSignal, shield_workers

logger = logging.getLogger(__name__)


class GuardedTrainer(Trainer):
    """`transformers.Trainer` for losses that are batch means, in runs that are long and may be killed.

    A checkpoint is whole or not taken: it is marked when all of it is on the disk, and only then older ones
    are deleted. A run that goes on from it has, on the same machine, the weights of one that was never
    killed; it is refused if processes, data or recipe are others. SIGTERM saves a checkpoint after the step
    and ends the process with status 0. A loss that is not finite, exhausted memory and a full disk raise
    what names the step or folder and the remedy.

    It also tells a collator that has an `epoch` which one it is, so that a pair's random draws change from
    epoch to epoch and are the same in a resumed run.

    Args:
        recipe: Dataclass that the run was built from; a change of it is noticed when the run is resumed.
        *args: Passed to `transformers.Trainer`.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, recipe: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Every loss here is a batch mean, which Trainer must divide when it accumulates gradients.
        self.model_accepts_loss_kwargs = False
        self._recipe = recipe
        self._run: dict[str, Any] = {}
        self._stop = StopSignal(self.accelerator)
        for callback in (_EpochCallback(self), _LogAtSaveCallback(), self._stop):
            self.add_callback(callback)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; a `MixtureStream` has cut itself for the processes, accelerate must not again."""
        stream = self.train_dataset
        if not isinstance(stream, MixtureStream):
            return shield_workers(super().get_train_dataloader())
        # Transformers 4 takes `_train_batch_size` from the checkpoint, whatever the arguments say.
        expected = self._train_batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        if stream.batch_size != expected:
            raise ValueError(
                f"The stream has batches of {stream.batch_size} rows, the trainer of "
                f"{expected}; give both the same batch_size."
            )
        return shield_workers(
            DataLoader(
                stream,
                batch_size=stream.batch_size,
                collate_fn=_SkippingCollator(self.data_collator),
                num_workers=self.args.dataloader_num_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                pin_memory=self.args.dataloader_pin_memory,
                drop_last=self.args.dataloader_drop_last,
            )
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint as if the run had never ended.

        Args:
            resume_from_checkpoint: A checkpoint folder; True for the newest whole one of `output_dir`, or to
                begin anew where there is none, so that one command starts a run and takes it up again.
            **kwargs: Passed to `Trainer.train`.

        Raises:
            FileNotFoundError: If the checkpoint was not saved by this trainer, or not to its end.
            ValueError: If the run is another than the checkpoint's; `args.resume_inexactly` goes on anyway.
                If it is finished, and its weights are in shards.
            SystemExit: With status 0, after SIGTERM.
        """
        self._run = fingerprint(self, self._recipe)
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if checkpoint is not None:
            self._check_run(checkpoint)
            self.load_state_beside(checkpoint)
            if self._is_finished(checkpoint):
                return self._take_finished(checkpoint)
            if isinstance(self.train_dataset, MixtureStream):
                self._resume_stream(self.train_dataset, checkpoint)
        with self._stop.listening(), self._explained_memory():
            return super().train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs
            )

    def save_state_beside(self, checkpoint: Path) -> None:
        """Save what else a resumed run needs; called on all processes."""

    def load_state_beside(self, checkpoint: Path) -> None:
        """Load what `save_state_beside` saved."""

    def _checkpoint_to_resume(self, given: str | bool | None) -> Path | None:
        if not given:
            return None
        if given is True:
            newest = newest_complete(self.args.output_dir or ".")
            if newest is None:
                logger.warning("No whole checkpoint in %s: the run begins anew.", self.args.output_dir)
            return newest
        if reason := fault(Path(given)):
            raise FileNotFoundError(
                f"Cannot resume from {given}: {reason}. Give a checkpoint folder that was saved to its end, "
                "or true for the newest of them; weights alone can start a new run through init_from."
            )
        return Path(given)

    def _check_run(self, checkpoint: Path) -> None:
        differences = changes(recorded_run(checkpoint), self._run)
        if not (checkpoint / "scheduler.pt").is_file():
            differences.append("it has weights only (save_only_model)")
        if not differences:
            return
        told = f"{checkpoint} cannot be gone on with exactly: {'; '.join(differences)}."
        if not getattr(self.args, "resume_inexactly", False):
            raise ValueError(
                f"{told} Undo this, or set training.resume_inexactly to go on with other rows, draws or "
                "steps than an unbroken run would have had."
            )
        logger.warning("%s Going on inexactly.", told)

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether all steps are done, as of a run that was killed after its last checkpoint."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.max_steps > 0:
            return state.global_step >= self.args.max_steps
        return state.global_step >= state.max_steps and recorded_run(checkpoint) == self._run

    def _take_finished(self, checkpoint: Path) -> TrainOutput:
        """The weights of the last checkpoint, or the best: `Trainer` itself would make another step."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{checkpoint} is the end of its run: nothing is left to train. Its weights are in shards; "
                "put them together by accelerate merge-weights (FSDP) or its zero_to_fp32.py (DeepSpeed)."
            )
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        logger.warning("%s is the end of its run: nothing is left to train.", checkpoint)
        losses = [row["loss"] for row in self.state.log_history if "loss" in row]
        return TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), {})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in `Trainer`, but marked when it is complete, and older ones deleted only then.

        Overridden because `Trainer` deletes before its callbacks could add or check anything.
        """
        run_folder = Path(self._get_output_dir(trial))
        checkpoint = run_folder / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with _explained_disk(checkpoint):
                if self.args.should_save:
                    discard(checkpoint)  # what a killed run may have left
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.save_state_beside(checkpoint)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_complete(checkpoint, self._run)
                    delete_older(checkpoint, limit, self.state.best_model_checkpoint)
        finally:
            self.args.save_total_limit = limit

    @contextmanager
    def _explained_memory(self) -> Iterator[None]:
        """Says which knobs to turn when memory is exhausted."""
        try:
            yield
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            raise torch.OutOfMemoryError(
                f"Out of memory in step {self.state.global_step + 1} with "
                f"per_device_train_batch_size {self.args.per_device_train_batch_size}: {error} Lower it and "
                "raise gradient_accumulation_steps as much, set gradient_checkpointing, or lower "
                "attack.text.candidate_batch_size (per_device_eval_batch_size if it was validating). "
                f"Last whole checkpoint: {_last_finite_checkpoint(self.args.output_dir)}."
            ) from error

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

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """As in `Trainer`; without labels, which pre-training has none of, the loss is all there is."""
        if "labels" in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

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
    """The newest whole checkpoint whose weights are finite; a bad gradient can spoil the newest one."""
    for folder in checkpoint_folders(output_dir or "."):
        if fault(folder) is None and all(
            tensor.isfinite().all()
            for file in folder.glob("*.safetensors")
            for tensor in load_file(file).values()
        ):
            return str(folder)
    return "none (save_strategy was 'no', or nothing was due)"


@contextmanager
def _explained_disk(checkpoint: Path) -> Iterator[None]:
    """Says what to do when a checkpoint cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save raises a RuntimeError from this file of its own
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        free = shutil.disk_usage(checkpoint.parent).free / 1e9
        before = newest_complete(checkpoint.parent)
        raise OSError(
            f"{checkpoint} cannot be written: {error}. Of that disk {free:.1f} GB are free. Make room, lower "
            "training.save_total_limit or choose another output_dir, then go on with "
            f"training.resume_from_checkpoint; the last whole checkpoint is {before or 'none'}."
        ) from error


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


class _LogAtSaveCallback(TrainerCallback):
    """Ends the means of the curves at every checkpoint: a resumed run would know only their later part."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step_end(args, state, control)


class _SkippingCollator:
    """Collates what a resumed stream reads, and nothing of what it passes over."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        return None if examples[0] is None else self.collator(examples)
