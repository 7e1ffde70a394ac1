"""SIGTERM, with which machines that others may claim announce their end, ends a run after a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class StopSignal(TrainerCallback):
    """Lets the step in which any process gets SIGTERM be the last one: saved, then exit status 0.

    Args:
        accelerator: Of the trainer, to ask the other processes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.received = self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signal instead of dying from it; outside of the main thread Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _note(self, *_: Any) -> None:
        self.received = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree with the other processes, which get the signal in other steps, and ask for a checkpoint."""
        received = torch.tensor([int(self.received)], device=self.accelerator.device)
        if self.accelerator.gather(received).any():
            self.stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End here: after its loop `Trainer` would go on to what comes after a finished training.

        Raises:
            SystemExit: With status 0.
        """
        if self.stopping:
            if state.is_world_process_zero:
                logger.warning(
                    "SIGTERM: checkpoint-%d is saved; the same command goes on from there with "
                    "training.resume_from_checkpoint true.",
                    state.global_step,
                )
            raise SystemExit(0)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Put a loader's workers into process groups of their own.

    Launchers send SIGTERM to the whole group, but the step still needs its workers. The signals that the
    process itself ends them with reach them as before, so nothing is ignored.
    """
    start = partial(_start_worker, loader.worker_init_fn)
    for each in (loader, getattr(loader, "base_dataloader", None)):  # accelerate's loader has one within
        if each is not None:
            each.worker_init_fn = start
    return loader


def _start_worker(seed_worker: Callable[[int], None] | None, worker: int) -> None:
    os.setpgid(0, 0)
    if seed_worker is not None:
        seed_worker(worker)
