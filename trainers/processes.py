"""What several processes have to agree on: who decides, means over all of them, weights that are whole."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
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
