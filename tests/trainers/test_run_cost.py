"""Closed formulas of passes, operations and memory, against what runs of toy size really do."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.joint import IndependentAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
from rmcl_hub.trainers.clean_views import CleanViewCollator, PreparedView
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator
from rmcl_hub.trainers.recipe import AttackRecipe, DataRecipe, FinetuneRecipe, PretrainRecipe
from rmcl_hub.trainers.run_cost import (
    Passes,
    Tokens,
    activation_bytes,
    forward_flops,
    image_attack_passes,
    memory_bytes,
    passes_per_example,
    row_tokens,
    rows_per_example,
    text_attack_passes,
)

IMAGE = {"epsilon": 0.1, "step_size": 0.05, "num_steps": 2}
TEXT = {"max_change_share": 0.5}
SHORT = DataRecipe(max_text_length=24)


@pytest.fixture
def config():
    """Four blocks of width 64; pictures of 96 x 128 pixels have 6 x 8 patches."""
    return RMCLViltConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=96,
        patch_size=16,
        vocab_size=400,
    )


@pytest.fixture
def inputs():
    """Four rows of 16 word pieces and 48 patches."""
    return {"input_ids": torch.randint(5, 400, (4, 16)), "pixel_values": torch.randn(4, 3, 96, 128)}


@pytest.mark.parametrize(
    "attack",
    [
        IMAGE,
        {**IMAGE, "random_start": True},
        {**IMAGE, "random_start": True, "restarts": 3},
        {**IMAGE, "epsilon": 0.0},
        {**IMAGE, "keep": "last"},
        {**IMAGE, "keep": "last", "random_start": True},
        {"preset": "thesis"},
        {"preset": "standard"},
    ],
)
def test_pgd_costs_what_its_result_says(attack, tiny_batch):
    recipe = PretrainRecipe(attack=AttackRecipe(image=attack))
    result = recipe.attack.image_attack()(tiny_batch, lambda batch: batch["pixel_values"].sum(dim=(1, 2, 3)))
    cost = image_attack_passes(recipe) * len(tiny_batch["text"])
    assert (cost.forwards, cost.backwards, cost.exact) == (result.forwards, result.backwards, True)


@pytest.mark.parametrize("views", [["image"], ["image", "text"], ["text"], ["image", "text", "both"]])
@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_passes_of_a_step_of_rmcl(views, projector, build_trainer, tiny_model, image_attack, text_attack):
    """PGD's part to the row; the word attack's is a bound, of which it takes at least the clean pass."""
    trainer = build_trainer(tiny_model(projector=projector), views=views)
    trainer.train()
    recipe = PretrainRecipe(
        attack=AttackRecipe(IMAGE, TEXT), data=SHORT, training={"views": views}, stage="rmcl"
    )
    estimate = passes_per_example(recipe, trainer.model.config) * 8
    if not {"text", "both"} & set(views):
        assert estimate.exact
        assert estimate.total == trainer.encoder_passes
        return
    bound, (spent,) = text_attack_passes(recipe) * 8, text_attack.results
    rest = trainer.encoder_passes - spent.forwards - spent.backwards
    shared = 8 if "image" in views else 0  # PGD passes the clean pairs for both attacks
    assert not estimate.exact
    assert estimate.total == rest + bound.total - 2 * shared
    assert 8 < spent.forwards <= bound.forwards - shared
    assert 0 <= spent.backwards <= bound.backwards - shared
    assert spent.backwards > 0 or shared


def test_a_random_start_shares_no_pass(tiny_model):
    config = tiny_model().config
    clean, random = (
        passes_per_example(
            PretrainRecipe(attack=AttackRecipe({**IMAGE, "keep": "last", "random_start": start}, TEXT)),
            config,
        )
        for start in (False, True)
    )
    assert (random.forwards - clean.forwards, random.backwards - clean.backwards) == (1, 1)


def test_the_bound_of_the_word_attack_is_reached(tiny_tokenizer, tiny_model, build_trainer):
    """Eight words of five substitutes each, a budget of four, and an objective that always rises."""
    words = "dog cat puppy bird tree flower house car".split()
    others = "ball cup apple man woman".split()
    attack = GeometryAttack(
        tiny_tokenizer,
        SynonymTable({word: [(other, 0.9) for other in others] for word in words}),
        max_change_share=0.5,
        max_loops=10,
    )
    text = [" ".join(words)]
    batch = {
        "text": text,
        **tiny_tokenizer(text, return_tensors="pt"),
        "pixel_values": torch.zeros(1, 3, 32, 32),
    }
    recipe = PretrainRecipe(
        attack=AttackRecipe(text={"max_change_share": 0.5, "max_loops": 10}),
        data=DataRecipe(max_text_length=10),
    )
    bound = text_attack_passes(recipe)
    # loops: all eight words; after each of four changes but the last, the gradient anew
    assert bound == Passes(1 + 8 * 5 + 3, 1 + 3, exact=False)
    rising = _RisingObjective(tiny_model())
    result = attack(batch, rising.objective)
    # the search ends with the fourth change, so four loops of five substitutes are what it can spend at most
    assert (result.forwards, result.backwards) == (1 + 4 * 5 + 3, 1 + 3)


class _RisingObjective:
    """A loss that grows with every call of it, so that each substitute is accepted."""

    def __init__(self, model):
        from rmcl_hub.attacks.base import JointObjective, model_inputs

        self.calls = 0
        self.objective = JointObjective(
            lambda batch: model.joint_embedding(**model_inputs(batch)),
            self._loss,
            model.get_input_embeddings(),
        )

    def _loss(self, embedding, batch):
        self.calls += 1
        return embedding.sum(dim=1) * 1e-6 + self.calls


def test_no_budget_costs_the_clean_forward():
    recipe = PretrainRecipe(attack=AttackRecipe(text={"max_change_share": 0.0}))
    assert text_attack_passes(recipe) == Passes(forwards=1)


def test_passes_of_a_step_of_mcl(build_trainer, tiny_model, processor):
    collator = CleanViewCollator(processor, SynonymTable({}), max_text_length=24)
    views = (PreparedView("image"), PreparedView("text"))
    trainer = build_trainer(tiny_model(), collator, views)
    trainer.train()
    recipe = PretrainRecipe(stage="mcl", data=SHORT)
    assert (passes_per_example(recipe, trainer.model.config) * 8).total == trainer.encoder_passes == 8 * 5


@pytest.mark.parametrize("itc_weight", [0.0, 1.0])
def test_passes_of_objectives_kept_beside(itc_weight, build_trainer, tiny_model, processor):
    collator = PretrainingCollator(processor, ["mlm", "itm"], max_text_length=24)
    model = tiny_model(itc_weight=itc_weight)
    trainer = build_trainer(model, collator, views=["image"], pretraining_weight=1.0)
    trainer.train()
    recipe = PretrainRecipe(
        attack=AttackRecipe(image=IMAGE), training={"views": ["image"], "pretraining_weight": 1.0}
    )
    assert (passes_per_example(recipe, model.config) * 8).total == trainer.encoder_passes
    alone = PretrainRecipe(stage="vilt")
    assert passes_per_example(alone, model.config) == Passes(trained=2 + bool(itc_weight))


@pytest.mark.parametrize(
    ("fields", "rows"),
    [({"task": "vqa"}, 1), ({"task": "nlvr2"}, 2), ({"task": "retrieval", "num_negatives": 3}, 4)],
)
def test_passes_of_fine_tuning(fields, rows):
    data = {"vqa": "vqa", "nlvr2": "nlvr2", "retrieval": "captions"}[fields["task"]]
    recipe = FinetuneRecipe(**fields, data=DataRecipe(data))
    assert rows_per_example(recipe) == rows
    assert passes_per_example(recipe, None) == Passes(trained=rows)
    recipe.freeze_encoder = True
    assert passes_per_example(recipe, None) == Passes(forwards=rows)
    recipe.freeze_encoder, recipe.attack = False, AttackRecipe(image=IMAGE)
    # three forwards and two backwards of PGD, then the clean and the attacked batch
    assert passes_per_example(recipe, None) == Passes(3 * rows, 2 * rows, 2 * rows)


def test_two_attacks_of_fine_tuning_score_their_combination(tiny_batch, tiny_tokenizer, tiny_model):
    recipe = FinetuneRecipe(
        attack=AttackRecipe(IMAGE, {"max_change_share": 0.0}), data=DataRecipe("vqa", max_text_length=24)
    )
    text = GeometryAttack(tiny_tokenizer, SynonymTable({}), max_change_share=0.0)
    result = IndependentAttack(PGD(**IMAGE), text)(tiny_batch, _RisingObjective(tiny_model()).objective)
    cost = passes_per_example(recipe, None) * 4
    assert (cost.forwards, cost.backwards) == (result.forwards, result.backwards)


def test_tokens_of_a_row_are_those_of_the_processor(processor):
    """ViLT's own resize of pictures of several shapes: never more patches than the longest shape has."""
    from PIL import Image
    from transformers import ViltImageProcessor

    vilt = RMCLViltConfig()
    images = ViltImageProcessor(size={"shortest_edge": 384}, size_divisor=32)
    for width, height in ((640, 480), (480, 640), (500, 500), (1000, 400), (640, 361)):
        pixels = images(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        patches = pixels.shape[2] // 32 * (pixels.shape[3] // 32)
        ratio = max(width, height) / min(width, height)
        assert patches <= row_tokens(vilt, 40, 384, ratio).patches <= 12 * 19
    assert row_tokens(vilt, 40, 384, 4 / 3) == Tokens(40, 12 * 16)
    assert row_tokens(vilt, 40, 384, 2) == Tokens(40, 12 * 19)
    assert Tokens(40, 228).total == 269


@pytest.mark.parametrize("first_token_only", [True, False])
def test_operations_of_a_forward(first_token_only, config, inputs):
    config._attn_implementation = "eager"  # whose products torch counts on every device
    encoder = RMCLViltForPreTraining(config).eval().vilt
    with FlopCounterMode(display=False) as counter:
        (encoder.joint_representation if first_token_only else encoder)(**inputs)
    expected = forward_flops(config, Tokens(16, 48), first_token_only)
    assert expected == pytest.approx(counter.get_total_flops() / 4, rel=0.01)


@pytest.mark.parametrize("first_token_only", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_what_autograd_keeps(first_token_only, half, config, inputs):
    """Bytes of all distinct storages that the backward will need, without weights and pixels."""
    model = RMCLViltForPreTraining(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        casts = half and tensor.ndim == 2 and tensor.shape[0] in (64, 256) and tensor.shape[1] in (64, 256)
        if storage.data_ptr() not in weights and not casts:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    encode = model.vilt.joint_representation if first_token_only else model.vilt
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, half):
        output = encode(**inputs)  # held, or the graph would go and storages be counted twice
    assert output is not None
    pixels = inputs["pixel_values"].nbytes // (2 if half else 1)
    measured = sum(size for size, _ in kept.values()) - pixels
    expected = 4 * activation_bytes(config, Tokens(16, 48), half, first_token_only)
    assert expected == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_memory_of_weights_gradients_and_moments_to_the_byte(projector, build_trainer, tiny_model):
    recipe = PretrainRecipe(attack=AttackRecipe(IMAGE, TEXT), data=SHORT)
    trainer = build_trainer(tiny_model(projector=projector), optim="adamw_torch", learning_rate=1e-3)
    gradients = {}
    trained = [item for item in trainer.model.named_parameters() if item[1].requires_grad]
    for name, parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda parameter, name=name: gradients.update({name: parameter.grad.nbytes})
        )
    trainer.train()
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    moments = [
        state[name].nbytes for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    estimate = memory_bytes(recipe, trainer.model, sum(gradients.values()) // 4, Tokens(24, 4), 8, 1)
    assert estimate["weights"] == weights
    assert estimate["gradients"] == sum(gradients.values())
    assert estimate["AdamW"] == sum(moments)
    if projector == "moco":
        encoder = trainer.key_branch.encoder
        assert estimate["key encoder"] == sum(parameter.nbytes for parameter in encoder.parameters())
        assert estimate["queue"] == trainer.key_branch.queue.nbytes
    else:
        assert not {"key encoder", "queue"} & set(estimate)


def test_memory_grows_with_what_it_is_for(config):
    recipe = PretrainRecipe(attack=AttackRecipe(IMAGE, TEXT))
    model, tokens = RMCLViltForPreTraining(config), Tokens(16, 48)
    one = memory_bytes(recipe, model, 1000, tokens, 1, 1)
    four = memory_bytes(recipe, model, 1000, tokens, 4, 1)
    assert {name for name in one if one[name] != four[name]} == {"activations", "pixels"}
    assert four["activations"] == 4 * one["activations"]
    assert memory_bytes(recipe, model, 1000, tokens, 1, 2)["gradients"] == 2 * one["gradients"]
    recipe.training = {"views": ["image", "text", "both"]}  # of which one at a time has activations
    assert memory_bytes(recipe, model, 1000, tokens, 1, 1)["activations"] == one["activations"]
    recipe.training |= {"gradient_checkpointing": True}
    assert memory_bytes(recipe, model, 1000, tokens, 1, 1)["activations"] < one["activations"]
    recipe.training = {"fp16": True}
    half = memory_bytes(recipe, model, 1000, tokens, 1, 1)
    assert half["weights"] == 1.5 * one["weights"]
    assert half["activations"] < one["activations"]
