"""Training on a stream of corpora: every process its own rows, and a resumed run goes on at the next row."""

import shutil

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from torch.testing import assert_close

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus
from rmcl_hub.datasets_scripts.task_collators import PairCollator


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """The miniature of COCO Captions as shards of 8 rows."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco_captions(folder / "published")
    prepare(
        CocoCaptions, folder / "published", folder / "shards", ["train"], 8, num_workers=1, unofficial=True
    )
    return PreparedCorpus(str(folder / "shards"))


@pytest.fixture(autouse=True)
def _forget_processes():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class RecordingCollator(PairCollator):
    """Leaves the ids of every batch in the batch."""

    def __call__(self, examples):
        return {**super().__call__(examples), "text": [example["image_id"] for example in examples]}


@pytest.fixture
def run(build_trainer, tiny_model, processor, coco, no_attack, tmp_path):
    """A function that trains on the stream and leaves, per process, the ids of its steps and the weights."""

    def run(name, max_steps, resume=None, workers=0, **training):
        trainer = build_trainer(
            tiny_model(momentum=0.5),
            collator=RecordingCollator(processor, max_text_length=24),
            attacks=(no_attack, None),
            views=["image"],
            output_dir=str(tmp_path / name),
            max_steps=max_steps,
            per_device_train_batch_size=3,
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=4,
            dataloader_num_workers=workers,
            **training,
        )
        trainer.train_dataset = MixtureStream(
            [MixturePart(coco, ["train"])],
            batch_size=3,
            buffer_size=5,
            rank=trainer.args.process_index,
            world_size=trainer.args.world_size,
        )
        seen, compute_loss = [], trainer.compute_loss

        def recorded(model, inputs, *args, **kwargs):
            seen.append(inputs["text"])
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = recorded
        trainer.train(resume_from_checkpoint=resume)
        state = {"model": trainer.model, "key_branch": trainer.key_branch}
        weights = {
            f"{part}.{name}": value
            for part, module in state.items()
            for name, value in module.state_dict().items()
            if not name.endswith("mlm_score.bias")  # never used; a loaded file fills it, a new model does not
        }
        result = {"seen": seen, "weights": weights, "epoch": trainer.state.epoch}
        torch.save(result, tmp_path / f"{name}-{trainer.args.process_index}.pt")
        return result

    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_killed_run_resumes_with_the_same_rows_and_weights(run, tmp_path, workers, accumulated):
    """Step 4 lies within the first epoch, or with accumulation within the second."""
    settings = {"workers": workers, "gradient_accumulation_steps": accumulated}
    whole = run("whole", 12, **settings)
    assert whole["epoch"] > 1  # it goes through an end of an epoch
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    resumed = run("resumed", 12, resume=True, **settings)
    assert resumed["seen"] == whole["seen"][4 * accumulated :]
    assert_close(resumed["weights"], whole["weights"], atol=0, rtol=0)


def test_an_epoch_of_training_sees_every_row_once(run, coco):
    epoch = -(-coco.split("train").rows // 3)
    first, second = (
        sorted(image_id for batch in batches for image_id in batch)
        for seen in [run("epochs", 2 * epoch)["seen"]]
        for batches in (seen[:epoch], seen[epoch:])
    )
    assert first == second
    assert len(first) == len(set(first)) == coco.split("train").rows


def test_two_processes_with_two_workers_resume_with_the_same_rows_each(run, coco, tmp_path):
    debug_launcher(run, ("whole", 6, None, 2), num_processes=2)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    debug_launcher(run, ("resumed", 6, True, 2), num_processes=2)
    whole, resumed = (
        [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)] for name in ("whole", "resumed")
    )
    for before, after in zip(whole, resumed, strict=True):
        assert after["seen"] == before["seen"][4:]
        assert_close(after["weights"], before["weights"], atol=0, rtol=0)
    rows = coco.split("train").rows
    steps = -(-(rows // 2) // 3)
    epoch = [image_id for process in whole for batch in process["seen"][:steps] for image_id in batch]
    assert len(epoch) == len(set(epoch)) == rows // 2 * 2


def test_stream_and_trainer_must_agree_on_the_batch_size(build_trainer, coco):
    trainer = build_trainer(per_device_train_batch_size=4)
    trainer.train_dataset = MixtureStream([MixturePart(coco, ["train"])], batch_size=3)
    with pytest.raises(ValueError, match="batches of 3 rows, the trainer of 4"):
        trainer.get_train_dataloader()
