"""What several processes agree on."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.multiprocessing import start_processes

from rmcl_hub.trainers.processes import (
    ending_together,
    join_processes,
    means_over_processes,
    on_first_process,
    require_whole_weights,
)


@pytest.fixture(autouse=True)
def _forget_processes():
    """Accelerate keeps what it learned about the processes for good; other tests must not inherit it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_first_process_decides_for_all(tmp_path):
    def run():
        rank = PartialState(cpu=True).process_index

        def decide():
            (tmp_path / f"ran-{rank}").touch()
            return {"decided by": rank}

        assert PartialState().num_processes == 2
        assert on_first_process(decide) == {"decided by": 0}

    debug_launcher(run, num_processes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["ran-0"]
    assert on_first_process(lambda: "alone") == "alone"


def _end(rank, port, way, folder):
    """What a launcher starts: a program that ends in one of its ways."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def work():
        join_processes({"use_cpu": True})
        on_first_process(lambda: "an exchange")
        trainer = [dist.group.WORLD]
        trainer.append(trainer)  # in a cycle, as trainers are with their callbacks
        if way is not None:
            raise way

    with suppress(SystemExit, ValueError), ending_together():
        work()
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    left = {"group": dist.is_initialized(), "threads": any("gloo" in name for name in threads)}
    (folder / f"{rank}.json").write_text(json.dumps(left))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
@pytest.mark.parametrize(
    ("way", "left"),
    [(None, False), (SystemExit(0), False), (SystemExit(2), True), (ValueError("lost"), True)],
)
def test_a_program_ends_without_threads_that_exchange(tmp_path, way, left):
    """One that is left can abort the process; after an error the group stays, as its end could last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_end, (port, way, tmp_path), nprocs=2, start_method="fork")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [{"group": left, "threads": left}] * 2


def test_a_process_alone_ends_as_it_would():
    with ending_together():
        pass
    with pytest.raises(SystemExit), ending_together():
        raise SystemExit(0)


def test_means_are_over_the_values_of_all_processes():
    statistics = [{"loss": [torch.tensor(1.0), 2.0], "gain": [5.0]}, {"loss": [6.0]}]

    def run():
        means = means_over_processes(statistics[PartialState(cpu=True).process_index])
        assert means == {"loss": 3.0, "gain": 5.0}

    debug_launcher(run, num_processes=2)
    assert means_over_processes(statistics[0]) == {"loss": 1.5, "gain": 5.0}
    assert means_over_processes({}) == {}


def test_sharded_weights_are_refused():
    with pytest.raises(ValueError, match=r"FSDP shards them; launch with recipes/accelerate/gpu-8\.yaml"):
        require_whole_weights(DistributedType.FSDP)
    for kind in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED):
        require_whole_weights(kind)
