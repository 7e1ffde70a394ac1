"""What several processes have to agree on: who decides, means over all of them, weights that are whole."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from traceback import clear_frames
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor

Value = TypeVar("Value")


def join_processes(training: Mapping[str, Any]) -> PartialState:
    """Let the processes that were launched together know of each other, before any trainer does.

    Args:
        training: Section of a recipe; `use_cpu` and `ddp_timeout` count.
    """
    cpu = training.get("use_cpu", False) or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(seconds=training.get("ddp_timeout", 1800)))


@contextmanager
def ending_together() -> Iterator[None]:
    """Let the processes of a program wait for each other at its end, and part before their interpreters end.

    A thread of gloo can hold the tensors of the last exchange for a moment, and the interpreter aborts the
    process if such a thread wants to free them while it ends. A trainer that is still referred to keeps the
    threads alive. After an error nobody is waited for, nor is the group destroyed: either would last until
    the exchange that the others wait in times out.
    """
    try:
        yield
    except SystemExit as ended:
        if ended.code == 0:  # SIGTERM ends all of them after the same step
            clear_frames(ended.__traceback__)
            _part()
        raise
    _part()


def _part() -> None:
    if dist.is_initialized():
        gc.collect()  # what trained has the group, too
        PartialState().wait_for_everyone()
        dist.destroy_process_group()


def on_first_process(function: Callable[[], Value]) -> Value:
    """What a function returns on the first process, on all; it runs there only, the others wait for it.

    They wait as long as `training.ddp_timeout` lets them, half an hour by default. The processes have been
    joined, by `join_processes` or by a trainer's arguments.

    Args:
        function: Takes nothing, returns what can be pickled. If it raises, the others wait until whoever
            launched them ends them, as torchrun and Accelerate do.
    """
    value = [function() if PartialState().is_main_process else None]
    return broadcast_object_list(value)[0]  # type: ignore[return-value]


def means_over_processes(statistics: Mapping[str, Sequence[Tensor | float]]) -> dict[str, float]:
    """Mean of every name's values on all processes, which all have to ask; batches count alike.

    A name may be missing on some: an attack that had nothing to do there has no gain.
    """
    own = {name: (float(sum(values)), len(values)) for name, values in statistics.items()}
    totals: dict[str, list[tuple[float, int]]] = {}
    for process in gather_object([own]):
        for name, pair in process.items():
            totals.setdefault(name, []).append(pair)
    return {
        name: sum(total for total, _ in pairs) / sum(number for _, number in pairs)
        for name, pairs in totals.items()
    }


def require_whole_weights(distributed_type: Any) -> None:
    """Refuse weights that are shared out among the processes.

    Attacks and momentum encoder call the encoder between the trainer's forwards, where no weight is gathered.

    Raises:
        ValueError: If FSDP shards them.
    """
    if distributed_type == DistributedType.FSDP:
        raise ValueError(
            "Attacks and momentum encoder need whole weights on every process, and FSDP shards them; launch "
            "with recipes/accelerate/gpu-8.yaml, or gpu-8-deepspeed-zero2.yaml to shard the optimiser."
        )
