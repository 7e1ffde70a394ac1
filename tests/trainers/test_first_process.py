"""What several processes agree on."""

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from rmcl_hub.trainers.processes import means_over_processes, on_first_process, require_whole_weights


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
