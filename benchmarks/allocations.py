"""Memory that torch's operations ask for, counted operation by operation, on every device alike."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Allocations(TorchDispatchMode):
    """Counts the memory of tensors that operations make inside the context, backward passes included.

    What exists before is not counted, nor what an operation needs for itself alone while it runs.

    Attributes:
        live: Bytes of the tensors made here that are still alive.
        peak: The most bytes alive at one time.
        largest: Elements of the largest tensor that an operation returned, views included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.setdefault(value.untyped_storage(), True)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        self.largest = max(self.largest, tensor.numel())
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self.live -= size
