"""Work spread over processes, with what is done kept when one of them dies."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int | None = None
) -> Iterator[Result]:
    """Results in the jobs' order; one worker means this process.

    Args:
        function: Of a module, because it is sent to the processes by name.
        jobs: What they can pickle.
        num_workers: None: one per processor.

    Raises:
        ValueError: If `num_workers` is below 1.
        OSError: If a process was killed.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    try:
        # Started afresh rather than forked: a fork would never free the locks of Arrow's or torch's threads.
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from pool.map(function, jobs)
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process was killed, probably for want of memory; run the same command again with a "
            "smaller --num-workers: what is finished is kept."
        ) from error
