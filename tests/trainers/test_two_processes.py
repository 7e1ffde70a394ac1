"""Two processes over gloo do what one does with the whole batch: loss, gradients, curves, counters, queue."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import debug_launcher
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from torch.testing import assert_close
from transformers import TrainingArguments, set_seed

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.datasets_scripts.retrieval_collator import RetrievalCollator, caption_table
from rmcl_hub.datasets_scripts.task_collators import PairCollator, QuestionCollator, StatementCollator
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForQuestionAnswering,
)
from rmcl_hub.trainers.arguments import training_arguments
from rmcl_hub.trainers.clean_views import CleanViewCollator, PreparedView
from rmcl_hub.trainers.experiment import with_equal_passes
from rmcl_hub.trainers.finetune_trainer import FinetuneTrainer
from rmcl_hub.trainers.guarded_trainer import GuardedTrainer
from rmcl_hub.trainers.pretrain import load_training_data
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator
from rmcl_hub.trainers.recipe import DataRecipe, ExperimentRecipe, PretrainRecipe, load_recipe

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIGS = ROOT / "trainers" / "quickstart.py", ROOT / "recipes" / "accelerate"
ANSWERS = ["yes", "no", "red"]
SGD = {  # no clipping, so that weights show gradients
    "use_cpu": True,
    "disable_tqdm": True,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
}
PRETRAINING = {
    # name: projector, fields of the model, what the collator prepares, fields of RMCLArguments
    "moco": ("moco", {}, [], {"views": ["image", "text", "both"]}),
    "moco beside masked words and matching": ("moco", {}, ["mlm", "itm"], {"pretraining_weight": 0.1}),
    "barlow_twins": ("barlow_twins", {}, [], {}),
    "mcl": ("barlow_twins", {}, [], {"barlow_center": False, "reduction": "mean"}),
    "vilt": ("moco", {"itc_weight": 1.0, "wpa_weight": 0.1}, ["mlm", "itm"], {}),
}


@pytest.fixture
def forget_processes():
    """Accelerate keeps what it learned about the processes for good; other tests must not inherit it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pretraining(build_trainer, tiny_model, processor, pairs, in_parts):
    """A function to the trainer of an objective of `PRETRAINING`."""

    def build(objective, output_dir, halves, **training):
        projector, fields, targets, arguments = PRETRAINING[objective]
        model = tiny_model(projector=projector, momentum=0.5, contrastive_temperature=0.2, **fields)
        if objective == "mcl":
            collator = CleanViewCollator(processor, SynonymTable.load(), max_text_length=24)
        elif targets:
            collator = PretrainingCollator(processor, targets, max_text_length=24)
        else:
            collator = PairCollator(processor, max_text_length=24)
        training |= arguments
        if halves:
            collator = in_parts(collator, halves)
        if objective == "vilt":
            args = training_arguments(TrainingArguments, output_dir, {**SGD, **training})
            return GuardedTrainer(model, args, train_dataset=pairs, data_collator=collator)
        attacks = {"attacks": (PreparedView("image"), PreparedView("text"))} if objective == "mcl" else {}
        return build_trainer(model, collator, output_dir=output_dir, **attacks, **training)

    return build


@pytest.fixture
def finetuning(tiny_config, processor, pairs, in_parts):
    """A function to the trainer of a task, for retrieval against an attack."""
    for index, row in enumerate(pairs):
        row |= {"question": row["captions"][0], "statement": row["captions"][0], "label": index % 2}
        row |= {"left_image": row["image"], "right_image": pairs[-1 - index]["image"]}
        row |= {"answers": [ANSWERS[index % 3]], "scores": [1.0 if index % 2 else 0.6]}
    captions = pa.table({name: [row[name] for row in pairs] for name in ("image_id", "captions")})

    def build(task, output_dir, halves, **training):
        tiny_config.num_labels = len(ANSWERS)
        if task == "nlvr2":
            tiny_config.num_images, tiny_config.modality_type_vocab_size = 2, 3
        head, collator = {
            "vqa": (RMCLViltForQuestionAnswering, QuestionCollator(processor, ANSWERS)),
            "nlvr2": (RMCLViltForImagesAndTextClassification, StatementCollator(processor)),
            "retrieval": (
                RMCLViltForImageAndTextRetrieval,
                RetrievalCollator(processor, caption_table(captions), num_negatives=3),
            ),
        }[task]
        set_seed(0)
        model = head(tiny_config)
        with torch.no_grad():  # logits that differ between examples
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        attack = {"image_attack": PGD(0.05, 0.05, num_steps=1)} if task == "retrieval" else {}
        return FinetuneTrainer(
            model=model,
            args=training_arguments(TrainingArguments, output_dir, {**SGD, **training}),
            train_dataset=pairs,
            data_collator=in_parts(collator, halves) if halves else collator,
            **attack,
        )

    return build


@pytest.fixture
def run(pretraining, finetuning, recorder, tmp_path):
    """A function that trains two steps on the processes there are; each leaves `<name>-<rank>.pt`."""

    def run(name, objective, batch_size):
        trainer = (pretraining if objective in PRETRAINING else finetuning)(
            objective,
            output_dir=str(tmp_path / name),
            halves=0 if name == "two" else 4,
            per_device_train_batch_size=batch_size,
            learning_rate=0.01,  # small, lest two steps make much of rounding
            max_steps=2,
        )
        losses, compute_loss = [], trainer.compute_loss
        recorder.gradients.clear()

        def recorded(*args, **kwargs):
            losses.append(compute_loss(*args, **kwargs))
            return losses[-1]

        trainer.compute_loss = recorded
        trainer.add_callback(recorder)
        trainer.train()
        key_branch = getattr(trainer, "key_branch", None)
        result = {
            "weights": trainer.model.state_dict(),
            "key_branch": {} if key_branch is None else key_branch.state_dict(),
            "losses": torch.stack([loss.detach() for loss in losses]),
            "gradients": recorder.gradients,
            "log": trainer.state.log_history,
            "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        }
        torch.save(result, tmp_path / f"{name}-{trainer.args.process_index}.pt")

    return run


def worst(ours, theirs):
    """Largest difference of named tensors, over the largest value if that is above 1."""
    assert ours.keys() == theirs.keys()
    scale = max([1.0, *(value.abs().max().item() for value in theirs.values())])
    return max([(ours[name] - theirs[name]).abs().max().item() for name in ours], default=0.0) / scale


@pytest.mark.usefixtures("forget_processes")
@pytest.mark.parametrize("objective", [*PRETRAINING, "vqa", "nlvr2", "retrieval"])
def test_two_processes_equal_one_with_the_doubled_batch(run, tmp_path, objective):
    """The tolerance is float32's. Barlow Twins' three normalisations over eight pairs magnify rounding; how
    exact they are is tested in float64 in test_projectors.
    """
    debug_launcher(run, ("two", objective, 4), num_processes=2)
    run("one", objective, 8)
    first, second, one = (torch.load(tmp_path / f"{name}.pt") for name in ("two-0", "two-1", "one-0"))
    assert (first["world_size"], second["world_size"], one["world_size"]) == (2, 2, 1)
    barlow = PRETRAINING.get(objective, ("",))[0] == "barlow_twins"
    steps = [(1e-6, 2e-5), (1e-4, 5e-3)] if barlow else [(1e-6, 1e-6)] * 2  # of loss, of gradient
    for step, (of_loss, of_gradient) in enumerate(steps):
        loss = (first["losses"][step] + second["losses"][step]) / 2
        assert loss == pytest.approx(one["losses"][step].item(), rel=of_loss)
        assert worst(first["gradients"][step], one["gradients"][step]) < of_gradient
        assert max(value.abs().max() for value in one["gradients"][step].values()) > 0.01
    for name in ("gradients", "weights", "key_branch"):
        assert_close(first[name], second[name], atol=0, rtol=0)
    assert worst(first["weights"], one["weights"]) < (3e-4 if barlow else 1e-6)
    assert worst(first["key_branch"], one["key_branch"]) < 1e-6
    assert curves(first) == curves(second)
    for ours, theirs in zip(curves(first), curves(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4 if barlow else 1e-6, abs=3e-4 if barlow else 1e-6)
        assert ours.get("encoder_passes") == theirs.get("encoder_passes")


def curves(result):
    """What was logged, but for times and Transformers' own estimate of the work."""
    no_curves = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    return [{name: row[name] for name in row.keys() - no_curves} for row in result["log"]]


@pytest.mark.usefixtures("forget_processes")
@pytest.mark.parametrize(("rows", "batch_size", "accumulated"), [(7, 2, 1), (5, 1, 2)])
def test_the_queue_stays_the_same_though_the_last_batch_is_short(
    build_trainer, tiny_model, processor, pairs, tmp_path, rows, batch_size, accumulated
):
    """Accelerate fills it up from the epoch's start; with accumulation the last step has fewer batches."""
    del pairs[rows:]

    def run():
        sizes, collate = [], PairCollator(processor, max_text_length=24)

        def counted(examples):
            sizes.append(len(examples))
            return collate(examples)

        trainer = build_trainer(
            tiny_model(momentum=0.5, queue_size=64),
            counted,
            views=["image"],
            max_steps=5,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulated,
        )
        trainer.train()
        torch.save((trainer.key_branch.state_dict(), sizes), tmp_path / f"{trainer.args.process_index}.pt")

    debug_launcher(run, num_processes=2)
    (first, sizes), (second, other_sizes) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_close(first, second, atol=0, rtol=0)
    assert sizes == other_sizes
    assert set(sizes) == {batch_size}
    batches = {1: 5, 2: 2 + 1 + 2 + 1 + 2}[accumulated]  # of three batches an epoch, two and one
    assert first["queue_pointer"] == batches * batch_size * 2


@pytest.mark.usefixtures("forget_processes")
def test_batches_of_different_sizes_are_refused(tmp_path):
    def run():
        settings = {"use_cpu": True, "accelerator_config": {"dispatch_batches": False, "even_batches": False}}
        with pytest.raises(ValueError, match=r"even_batches is False.*set dataloader_drop_last"):
            training_arguments(TrainingArguments, str(tmp_path), settings)
        args = training_arguments(
            TrainingArguments, str(tmp_path), {**settings, "dataloader_drop_last": True}
        )
        data = DataRecipe(streaming=True)
        assert next(iter(load_training_data(data, args)))["captions"]
        args.dataloader_drop_last = False
        with pytest.raises(ValueError, match=r"different numbers of rows.*dataloader_drop_last true"):
            load_training_data(data, args)

    debug_launcher(run, num_processes=2)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config(path):
    given, config = yaml.safe_load(path.read_text()), load_config_from_file(str(path))
    for name in ("distributed_type", "num_processes", "fsdp_config", "deepspeed_config"):
        assert getattr(config, name) == given.get(name, {}), name
    assert config.num_processes == int(re.findall(r"\d+", path.stem)[0])
    assert ("Untested" in path.read_text()) == (path.stem != "cpu-2")
    command = ["--config_file", str(path), "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    kind = {"fsdp2": "use_fsdp", "zero2": "use_deepspeed", "1": None}.get(
        path.stem.split("-")[-1], "multi_gpu"
    )
    chosen = [name for name in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, name)]
    assert chosen == ([kind] if kind else [])


def test_accelerate_launch_runs_the_quickstart_on_two_processes(tmp_path):
    """Cut down to a step or two per stage, one protocol and one attack."""
    recipe = load_recipe(ExperimentRecipe, "quickstart")
    training = {"max_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": True, "logging_steps": 1}
    for name in ("pretrain", "rmcl", "control"):
        stage = getattr(recipe, name)
        stage.data, stage.training = replace(stage.data, max_examples=16), training
    recipe.rmcl.training = {**training, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    recipe.pretrain.model |= {**small, "queue_size": 64}
    protocol = recipe.protocols["frozen"]
    protocol = replace(protocol, data=replace(protocol.data, max_examples=16), training=training)
    recipe.protocols = {"frozen": protocol}
    attacks = {"pgd-2": recipe.evaluation.attacks["pgd-2"]}
    recipe.evaluation = replace(recipe.evaluation, attacks=attacks, max_questions=4, max_pairs=4)
    recipe.output_dir = str(tmp_path / "run")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(asdict(recipe)))

    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / "cpu-2.yaml"),
    ]
    finished = subprocess.run(
        [*launch, str(SCRIPT), str(path)], capture_output=True, text=True, timeout=600, check=False
    )

    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("| task, protocol | attack |") == 1, "one process reports"
    assert (tmp_path / "run" / "results.json").is_file()
    stages = tmp_path / "run" / "seed-0"
    checkpoint = stages / "rmcl" / "checkpoint-2"
    state = torch.load(checkpoint / "rmcl_state.pt", weights_only=True)
    assert state["key_branch"]["queue_pointer"] == 2 * 4 * 2  # steps x pairs of a process x processes
    assert (checkpoint / "rng_state_1.pth").is_file()  # of the second process
    rmcl, control = (json.loads((stages / arm / "stage.json").read_text()) for arm in ("rmcl", "control"))
    assert rmcl["encoder_passes"] == state["encoder_passes"] > 2 * 8 * 5  # keys, attacks and queries of both
    assert abs(control["encoder_passes"] - rmcl["encoder_passes"]) <= 8 * 4 / 2  # half a step of the control


def test_the_control_of_two_processes_takes_half_the_steps():
    control = PretrainRecipe(objectives=["mlm", "itm"], training={"per_device_train_batch_size": 10})
    assert with_equal_passes(control, 4000, itc_weight=0, processes=2).training["max_steps"] == 50
