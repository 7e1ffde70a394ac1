"""One RMCL step against the formulas of the thesis, worked out here without the package's losses."""

import copy
from weakref import WeakSet

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import TrainerCallback, TrainingArguments

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.trainers.guarded_trainer import GuardedTrainer
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator
from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "pixel_mask")
TEMPERATURE, BARLOW_LAMBDA = 0.2, 0.05


def embed(model, batch):
    return model(**{name: batch[name] for name in INPUTS}).embeds


def unit(vectors):
    return vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()


def info_nce(query, key, queue, temperature=TEMPERATURE):
    """Thesis Eq. 2.9, per pair."""
    positive = ((query * key).sum(dim=1) / temperature).exp()
    negative = (query @ queue.T / temperature).exp().sum(dim=1)
    return -(positive / (positive + negative)).log()


def barlow_twins(query, key, center=True):
    """Thesis Eq. 2.10 from the cross-correlation itself; 1e-5 keeps a constant column finite."""
    columns = []
    for z in (query, key):
        if center:
            columns.append((z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt())
        else:
            columns.append(z / z.square().mean(dim=0).sqrt())
    correlation = columns[0].T @ columns[1] / len(query)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + BARLOW_LAMBDA * off_diagonal


def attacked_views(image_attack, text_attack):
    image, text = image_attack.results[-1].batch, text_attack.results[-1].batch
    return {"image": image, "text": text, "both": {**text, "pixel_values": image["pixel_values"]}}


@pytest.fixture
def moco_model(tiny_model):
    return tiny_model(contrastive_temperature=TEMPERATURE, momentum=0.5)


@pytest.fixture
def barlow_model(tiny_model):
    return tiny_model(projector="barlow_twins", barlow_lambda=BARLOW_LAMBDA)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("views", [["image", "text"], ["text"], ["both"], ["image", "text", "both"]])
def test_moco_loss_and_gradient_are_those_of_the_formula(
    build_trainer, moco_model, clean_batch, image_attack, text_attack, views, reduction
):
    reference, key_model = copy.deepcopy(moco_model), copy.deepcopy(moco_model)
    trainer = build_trainer(moco_model, views=views, reduction=reduction)
    with torch.no_grad():  # a key branch that is not a copy of the query branch
        for ours, theirs in zip(trainer.key_branch.encoder.parameters(), key_model.parameters(), strict=True):
            theirs.add_(torch.randn_like(theirs), alpha=0.05)
            ours.copy_(theirs)
        key = unit(embed(key_model, clean_batch))
    moco_model.train()

    loss, losses = trainer.compute_loss(moco_model, clean_batch, return_outputs=True)
    loss.backward()

    attacked = attacked_views(image_attack, text_attack) if len(views) > 1 or views == ["both"] else {}
    attacked = attacked or {"text": text_attack.results[-1].batch}
    queue = trainer.key_branch.queue
    expected = {view: info_nce(unit(embed(reference, attacked[view])), key, queue).mean() for view in views}
    total = sum(expected.values()) / (len(views) if reduction == "mean" else 1)
    total.backward()
    assert list(losses) == views
    assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    assert_close(loss, total, atol=1e-5, rtol=1e-5)
    assert_same_gradients(moco_model, reference)
    assert all(parameter.grad is None for parameter in trainer.key_branch.parameters())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_the_gradient_taken_view_by_view_is_that_of_all_at_once(
    build_trainer, tiny_model, recorder, monkeypatch, tmp_path, projector, reduction
):
    """Also while gradients accumulate, and with dropout, which draws in the same order."""
    model = tiny_model(projector=projector, momentum=0.5, hidden_dropout_prob=0.1)
    found = {}
    for at_once in (False, True):
        trainer = build_trainer(
            copy.deepcopy(model),
            views=["image", "text", "both"],
            reduction=reduction,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
        if at_once:
            monkeypatch.setattr(trainer, "_goes_back_early", lambda *_: False)
        recorder.gradients = []
        trainer.add_callback(recorder)
        trainer.train()
        found[at_once] = recorder.gradients[0], trainer.state.log_history[0]["loss"]
    (ours, loss), (theirs, expected) = found[False], found[True]
    assert loss == expected
    assert ours.keys() == theirs.keys()
    scale = max(1.0, *(value.abs().max().item() for value in theirs.values()))
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() / scale < 1e-6, name
    assert max(value.abs().max() for value in theirs.values()) > 0.01


def test_only_one_views_activations_live_at_a_time(build_trainer, moco_model, clean_batch, monkeypatch):
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    alive, before = WeakSet(), []

    def keep(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    forward = moco_model.forward
    monkeypatch.setattr(
        moco_model, "forward", lambda **inputs: before.append(len(alive)) or forward(**inputs)
    )
    trainer = build_trainer(moco_model, views=["image", "text", "both"])
    moco_model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        loss = trainer.compute_loss(moco_model, clean_batch)
    assert before == [0, 0, 0]
    assert len(alive) > 50  # of the last view, until the caller goes back
    loss.backward()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_barlow_twins_loss_and_gradient_are_those_of_the_formula(
    build_trainer, barlow_model, clean_batch, image_attack, text_attack, reduction, center
):
    reference = copy.deepcopy(barlow_model)
    trainer = build_trainer(barlow_model, reduction=reduction, barlow_center=center)
    barlow_model.train()

    loss = trainer.compute_loss(barlow_model, clean_batch)
    loss.backward()

    attacked = attacked_views(image_attack, text_attack)
    with torch.no_grad():
        key = embed(reference.eval(), clean_batch)
    reference.train()
    expected = sum(
        barlow_twins(embed(reference, attacked[view]), key, center) for view in ("image", "text")
    ) / (2 if reduction == "mean" else 1)
    expected.backward()
    assert trainer.key_branch is None
    assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    assert_same_gradients(barlow_model, reference)


def assert_same_gradients(model, reference):
    compared = 0
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.abs().max() > 0:
            assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)
            compared += 1
    assert compared > 30


def test_the_adversary_raises_moco_loss_of_every_pair(
    build_trainer, moco_model, clean_batch, image_attack, text_attack
):
    trainer = build_trainer(moco_model)
    trainer.compute_loss(moco_model, clean_batch)
    queue = trainer.key_branch.queue
    moco_model.eval()
    with torch.no_grad():
        key = unit(embed(moco_model, clean_batch))
        clean = info_nce(key, key, queue)
        views = attacked_views(image_attack, text_attack)
        image, text = (
            info_nce(unit(embed(moco_model, views[view])), key, queue) for view in ("image", "text")
        )
    assert (image > clean + 1e-3).all()
    assert (text >= clean - 1e-6).all()
    assert (text > clean + 1e-3).sum() >= 4
    assert_close(image_attack.results[-1].loss_after, image, atol=1e-5, rtol=1e-4)
    assert_close(text_attack.results[-1].loss_after, text, atol=1e-5, rtol=1e-4)


def test_the_adversary_raises_the_barlow_loss_of_the_batch_with_one_pair_replaced(
    build_trainer, barlow_model, clean_batch, image_attack
):
    reference = copy.deepcopy(barlow_model).eval()  # the queries move the running statistics
    build_trainer(barlow_model).compute_loss(barlow_model, clean_batch)
    with torch.no_grad():
        clean, attacked = embed(reference, clean_batch), embed(reference, image_attack.results[-1].batch)
    mean, std = clean.mean(dim=0), (clean.var(dim=0, correction=0) + 1e-5).sqrt()
    gains = []
    for row in range(len(clean)):
        z, key = (clean - mean) / std, (clean - mean) / std
        z[row] = (attacked[row] - mean) / std
        correlations = [left.T @ key / len(key) for left in ((clean - mean) / std, z)]
        before, after = (
            (1 - c.diagonal()).square().sum()
            + BARLOW_LAMBDA * (c.square().sum() - c.diagonal().square().sum())
            for c in correlations
        )
        gains.append(after - before)
    result = image_attack.results[-1]
    assert min(gains) > 0
    assert_close(result.loss_after - result.loss_before, torch.stack(gains), atol=1e-4, rtol=1e-3)


def test_queries_are_the_attacked_pairs(build_trainer, moco_model, clean_batch, monkeypatch):
    trainer = build_trainer(moco_model, views=["image", "text", "both"])
    moco_model.train()
    seen, forward = [], moco_model.forward
    monkeypatch.setattr(moco_model, "forward", lambda **inputs: seen.append(inputs) or forward(**inputs))

    trainer.compute_loss(moco_model, clean_batch)

    changed = [
        (
            (view["pixel_values"] != clean_batch["pixel_values"]).flatten(1).any(dim=1).all().item(),
            view["input_ids"].tolist() != clean_batch["input_ids"].tolist(),
        )
        for view in seen
    ]
    assert changed == [(True, False), (False, True), (True, True)]
    for view in (seen[0], seen[2]):
        delta = (view["pixel_values"] - clean_batch["pixel_values"]).abs().max() / 2
        assert delta == pytest.approx(0.1, abs=1e-6)


def test_logged_curves_tell_an_attack_from_none(build_trainer, moco_model, no_attack):
    trainer = build_trainer(copy.deepcopy(moco_model))
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["attack_gain_image"] > 1e-3
    assert logged["attack_gain_text"] > 1e-3
    assert 0 < logged["word_change_rate"] <= 0.5
    assert 0.05 < logged["delta_norm"] <= 0.1 * 3**0.5 + 1e-6
    for view in ("image", "text"):
        assert logged[f"positive_cosine_{view}"] > logged[f"negative_cosine_{view}"]
        assert 0 < logged[f"positive_l2_{view}"] < logged[f"negative_l2_{view}"] <= 2

    idle = build_trainer(moco_model, attacks=(no_attack, no_attack))
    idle.train()
    logged = idle.state.log_history[0]
    assert logged["attack_gain_image"] == logged["attack_gain_text"] == 0
    assert logged["delta_norm"] == logged["word_change_rate"] == 0
    assert logged["positive_cosine_image"] == pytest.approx(1)


def test_encoder_passes_count_every_row(build_trainer, image_attack, text_attack):
    trainer = build_trainer()
    trainer.train()
    attacks = [*image_attack.results, *text_attack.results]
    queries_and_keys = 8 * (1 + 2 + 2)  # keys forward, two views forward and backward
    assert trainer.encoder_passes == queries_and_keys + sum(
        result.forwards + result.backwards for result in attacks
    )


def test_a_step_moves_the_query_by_gradient_the_key_by_momentum_and_fills_the_queue(
    build_trainer, moco_model, processor
):
    batches, collate = [], PairCollator(processor, max_text_length=24)
    collator = lambda examples: batches.append(collate(examples)) or batches[-1]  # noqa: E731
    before = copy.deepcopy(moco_model)
    trainer = build_trainer(moco_model, collator=collator)
    queue = trainer.key_branch.queue.clone()

    trainer.train()

    moved = 0
    query, key = dict(moco_model.named_parameters()), dict(trainer.key_branch.encoder.named_parameters())
    for name, old in before.named_parameters():
        assert_close(key[name], 0.5 * old + 0.5 * query[name], msg=name)
        moved += not torch.equal(query[name], old)
    assert moved > 30
    with torch.no_grad():
        keys = unit(embed(before.eval(), batches[0]))
    assert_close(trainer.key_branch.queue[:8], keys, atol=1e-5, rtol=1e-5)
    assert torch.equal(trainer.key_branch.queue[8:], queue[8:])
    assert trainer.key_branch.queue_pointer == 8


def test_heads_that_rmcl_does_not_use_stay(build_trainer, moco_model):
    before = copy.deepcopy(moco_model.state_dict())
    build_trainer(moco_model, optim="adamw_torch", weight_decay=0.5).train()
    for name, value in moco_model.state_dict().items():
        if name.startswith(("itm_score", "mlm_score.transform")):
            assert torch.equal(value, before[name]), name


def test_vilts_own_objectives_can_stay_beside(build_trainer, moco_model, clean_batch, processor, pairs):
    batch = PretrainingCollator(processor, max_text_length=24)(pairs)
    alone = build_trainer(moco_model).compute_loss(moco_model, batch)
    both = build_trainer(moco_model, pretraining_weight=0.5).compute_loss(moco_model, batch)
    targets = ("mlm_input_ids", "mlm_labels", "itm_image_index", "itm_labels")
    own = moco_model(**{name: batch[name] for name in (*INPUTS, *targets)}).loss
    assert_close(both, alone + 0.5 * own, atol=1e-4, rtol=1e-5)


def test_evaluation_leaves_the_queue_alone(build_trainer, moco_model, clean_batch):
    trainer = build_trainer(moco_model)
    moco_model.eval()
    trainer.compute_loss(moco_model, clean_batch)
    moco_model.train()
    trainer.compute_loss(moco_model, clean_batch)
    trainer.end_step()
    assert trainer.key_branch.queue_pointer == 8


def test_compiled_forwards_train_alike(build_trainer, moco_model, monkeypatch, tmp_path):
    """What the compiler generates is not run, which would take minutes: only what it traces."""
    weights = {}
    for backend in (None, "eager"):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # Transformers sets it, for good
        trainer = build_trainer(copy.deepcopy(moco_model), torch_compile_backend=backend, max_steps=2)
        counters.clear()
        trainer.train()
        assert (counters["stats"]["unique_graphs"] > 0) == (backend is not None)
        trainer.save_model(str(tmp_path / "model"))
        weights[backend] = load_file(tmp_path / "model" / "model.safetensors")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert_close(weights["eager"], weights[None], atol=1e-6, rtol=1e-5)


def test_an_evaluation_has_the_loss_of_its_batches(build_trainer, moco_model, pairs, processor):
    """Attacked, without dropout; it needs no labels."""
    collator = PairCollator(processor, max_text_length=24, draw_caption=False)
    evaluated = {"eval_dataset": pairs[:4], "per_device_eval_batch_size": 2}
    trainer = build_trainer(moco_model, collator, **evaluated)
    found = trainer.evaluate()["eval_loss"]
    moco_model.eval()
    losses = [trainer.compute_loss(moco_model, collator(pairs[first : first + 2])) for first in (0, 2)]
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    assert losses[0] != losses[1]
    assert trainer.key_branch.queue_pointer == 0


def test_eight_accumulated_batches_of_one_are_one_batch_of_eight(build_trainer, moco_model, tmp_path):
    models = [copy.deepcopy(moco_model), moco_model]
    sizes = [(8, 1), (1, 8)]
    trainers = []
    for model, (size, steps) in zip(models, sizes, strict=True):
        trainer = build_trainer(
            model,
            output_dir=str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        trainers.append(trainer)
    assert_close(models[0].state_dict(), models[1].state_dict(), atol=1e-5, rtol=1e-4)
    one, eight = (trainer.key_branch for trainer in trainers)
    assert_close(one.state_dict(), eight.state_dict(), atol=1e-5, rtol=1e-4)
    assert one.queue_pointer == 8
    losses = [trainer.state.log_history[0]["loss"] for trainer in trainers]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)  # rounded in the log


@pytest.mark.parametrize("step", [1, 2])  # in the middle of an epoch, and at its end
@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    build_trainer, tiny_model, text_attack, tmp_path, projector, step
):
    def trainer(name):
        model = tiny_model(projector=projector, momentum=0.5)
        attack = PGD(epsilon=0.1, step_size=0.05, num_steps=1, random_start=True)
        training = {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "save_strategy": "steps",
            "save_steps": 1,
        }
        return build_trainer(
            model,
            attacks=(attack, text_attack),
            output_dir=str(tmp_path / name),
            optim="adamw_torch",
            **training,
        )

    straight, resumed = trainer("straight"), trainer("resumed")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{step}"))

    assert resumed.state.global_step == straight.state.global_step == 3
    assert resumed.encoder_passes == straight.encoder_passes
    assert_bit_equal(resumed.model.state_dict(), straight.model.state_dict())
    if projector == "moco":
        assert straight.key_branch.queue_pointer == 12
        assert_bit_equal(resumed.key_branch.state_dict(), straight.key_branch.state_dict())


def assert_bit_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    # The decoder's bias under Transformers 4's name, filled when a file is read and never used.
    assert [name for name in different if not name.endswith("mlm_score.bias")] == []


def test_random_starts_differ_between_steps_and_micro_batches(build_trainer, text_attack):
    attack = PGD(epsilon=0.1, step_size=0.05, num_steps=1, random_start=True)
    seeds, manual_seed = [], attack.generator.manual_seed

    class Recorder(torch.Generator):
        def manual_seed(self, seed):
            seeds.append(seed)
            return manual_seed(seed)

    attack.generator = Recorder()
    build_trainer(
        attacks=(attack, text_attack),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
    ).train()
    assert len(set(seeds)) == 4


def test_resuming_needs_the_state_of_the_key_branch(build_trainer, tmp_path):
    trainer = build_trainer()
    with pytest.raises(FileNotFoundError, match=r"it holds no rmcl_state\.pt.*init_from"):
        trainer.load_state_beside(tmp_path)


class Poison(TrainerCallback):
    """Makes a weight infinite after a step, before the checkpoint of that step is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.vilt.pooler.parameters()).fill_(float("inf"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(build_trainer, tmp_path):
    trainer = build_trainer(max_steps=5, save_strategy="steps", save_steps=1)
    trainer.add_callback(Poison(step=2))
    with pytest.raises(FloatingPointError, match=r"loss is nan in step 3\. .*checkpoint: .*/checkpoint-1\. "):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_bad_loss_without_checkpoints_says_so(tiny_model, processor, pairs, tmp_path):
    model = tiny_model()
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=1, report_to="none", remove_unused_columns=False
    )
    trainer = GuardedTrainer(
        model=model, args=args, train_dataset=pairs, data_collator=PretrainingCollator(processor)
    )
    with torch.no_grad():
        model.itm_score.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"in step 1\. Last good checkpoint: none \(save_strategy"):
        trainer.train()


@pytest.mark.parametrize(("view", "missing"), [("image", 0), ("both", 0), ("text", 1), ("both", 1)])
def test_every_view_needs_its_attack(build_trainer, no_attack, view, missing):
    attacks = [no_attack, no_attack]
    attacks[missing] = None
    name = ("image", "text")[missing]
    with pytest.raises(ValueError, match=rf"views \['{view}'\] need a {name}_attack, got None"):
        build_trainer(attacks=attacks, views=[view])


def test_an_attack_that_no_view_needs_is_not_run(
    build_trainer, moco_model, clean_batch, text_attack, image_attack
):
    build_trainer(moco_model, views=["image"]).compute_loss(moco_model, clean_batch)
    assert len(image_attack.results) == 1
    assert text_attack.results == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": []}, r"views must be a non-empty subset of \['image', 'text', 'both'\], got \[\]"),
        ({"views": ["pixels"]}, r"got \['pixels'\]"),
        ({"reduction": "max"}, "reduction must be 'sum' or 'mean', got 'max'"),
        ({"queue_init": "zeros"}, "queue_init must be 'unit' or 'gaussian', got 'zeros'"),
    ],
)
def test_arguments_out_of_range_are_refused(build_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(**arguments)


def test_plain_training_arguments_are_refused(tiny_model, tmp_path, no_attack):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TypeError, match="needs args of RMCLArguments, got TrainingArguments"):
        RMCLTrainer(model=tiny_model(), args=args, image_attack=no_attack, text_attack=no_attack)


def test_a_model_without_such_a_projector_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"config\.projector must be 'moco' or 'barlow_twins', got 'simclr'"):
        tiny_model(projector="simclr")
