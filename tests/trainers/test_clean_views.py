"""MCL: which views are made of a pair, that they reach the encoder, and what is counted and repeated."""

import io

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.testing import assert_close

from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.datasets_scripts.image_transforms import randaugment
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.datasets_scripts.text_views import rank_views
from rmcl_hub.trainers.clean_views import CleanViewCollator, PreparedView
from rmcl_hub.trainers.pretrain import pretrain
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator
from rmcl_hub.trainers.recipe import AttackRecipe, DataRecipe, PretrainRecipe

TABLE = SynonymTable({"dog": [("puppy", 0.8)], "big": [("large", 0.9)], "small": [("tiny", 0.9)]})
IMAGE = {"pixel_values", "pixel_mask"}
TEXT = {"input_ids", "attention_mask", "token_type_ids", "text"}


@pytest.fixture
def build_collator(processor):
    return lambda **kwargs: CleanViewCollator(processor, TABLE, **{"max_text_length": 24, **kwargs})


@pytest.fixture
def views_batch(build_collator, pairs):
    return build_collator()(pairs)


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], (
            name
        )


def view_names(batch):
    return {name.removeprefix("view_") for name in batch if name.startswith("view_")}


def test_the_clean_pair_stays_and_every_view_differs(views_batch, processor, pairs):
    clean = PairCollator(processor, max_text_length=24)(pairs)
    assert_equal({name: views_batch[name] for name in clean}, clean)
    assert view_names(views_batch) == IMAGE | TEXT
    moved = (views_batch["view_pixel_values"] - clean["pixel_values"]).abs().mean(dim=(1, 2, 3))
    assert (moved > 0.05).all()
    assert all(view != text for view, text in zip(views_batch["view_text"], clean["text"], strict=True))
    tokens = processor.tokenizer(views_batch["view_text"], padding=True, return_tensors="pt")
    assert torch.equal(views_batch["view_input_ids"], tokens["input_ids"])
    assert torch.equal(views_batch["view_attention_mask"], tokens["attention_mask"])


def test_views_are_as_large_as_their_pictures_and_padded_alike(build_collator):
    sizes = [(32, 32), (48, 32), (320, 480), (33, 100)]
    rows = [
        {"image": Image.new("RGB", size, "white"), "image_id": str(size), "captions": ["a dog"]}
        for size in sizes
    ]
    batch = build_collator()(rows)
    assert len(batch["pixel_mask"].unique(dim=0)) > 2
    assert torch.equal(batch["view_pixel_mask"], batch["pixel_mask"])
    inside = batch["pixel_mask"].unsqueeze(1).expand(-1, 3, -1, -1) == 1
    assert (batch["view_pixel_values"][~inside] == 0).all()
    assert batch["view_pixel_values"][inside].abs().max() <= 1
    white = torch.where(inside, batch["view_pixel_values"], torch.nan).flatten(1).nanmean(dim=1)
    assert (white.abs() > 0.1).all()  # bright, or dark if solarised: no padding within


def test_views_depend_on_seed_epoch_and_image_alone(build_collator, pairs):
    state, collator = torch.get_rng_state(), build_collator()
    first = collator(pairs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    alone = [build_collator()([pair]) for pair in reversed(pairs)][::-1]
    assert torch.equal(torch.cat([batch["view_pixel_values"] for batch in alone]), first["view_pixel_values"])
    assert [batch["view_text"][0] for batch in alone] == first["view_text"]

    collator.epoch = 1
    for other in (build_collator(seed=1)(pairs), collator(pairs)):
        assert other["view_text"] != first["view_text"]
        same = (other["view_pixel_values"] == first["view_pixel_values"]).flatten(1).all(dim=1)
        assert not same.any()


def test_two_images_that_look_alike_have_views_of_their_own(build_collator, pairs):
    batch = build_collator()([{**pairs[0], "image_id": str(number)} for number in range(6)])
    assert len(batch["view_pixel_values"].unique(dim=0)) == 6
    assert len(set(batch["view_text"])) > 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_pictures_have_views(build_collator, pairs, mode):
    stream = io.BytesIO()
    pairs[0]["image"].convert(mode).save(stream, "JPEG")
    row = {**pairs[0], "image": {"bytes": stream.getvalue(), "path": None}}
    batch = build_collator()([row])
    assert batch["view_pixel_values"].shape == (1, 3, 32, 32)
    assert batch["view_pixel_values"].std() > 0.05


def test_a_replaced_row_brings_its_own_views(build_collator, pairs):
    broken = {**pairs[0], "image": {"bytes": b"none", "path": None}, "image_id": "broken"}
    batch, alone = build_collator()([broken, pairs[1]]), build_collator()([pairs[1]])
    assert batch["view_text"] == alone["view_text"] * 2
    assert torch.equal(batch["view_pixel_values"], alone["view_pixel_values"].repeat(2, 1, 1, 1))


def test_views_are_made_of_what_the_clean_branch_sees(build_collator, pairs):
    def blackened(image, draws):
        return Image.new("RGB", image.size)

    batch = build_collator(transform=blackened)(pairs)
    assert (batch["pixel_values"] == -1).all()
    assert (batch["view_pixel_values"] == -1).all()


@pytest.mark.parametrize(
    ("views", "expected"), [(["image"], IMAGE), (["text"], TEXT), (["both"], IMAGE | TEXT)]
)
def test_what_no_view_needs_is_not_made(build_collator, pairs, views, expected):
    assert view_names(build_collator(views=views)(pairs)) == expected


def test_vilts_own_targets_can_stay_beside(build_collator, processor, pairs):
    batch = build_collator(objectives=["mlm", "itm"])(pairs)
    targets = PretrainingCollator(processor, max_text_length=24)(pairs)
    assert_equal({name: batch[name] for name in targets}, targets)


def test_a_column_of_ranked_paraphrases_is_read_epoch_by_epoch(build_collator, pairs):
    dataset = Dataset.from_list(
        [{"image_id": pair["image_id"], "captions": pair["captions"]} for pair in pairs]
    )

    def embed(texts):
        return [[1.0, len(text)] for text in texts]

    def add_views(row):
        return {"views": [rank_views(text, [f"a {text}", f"so a {text}"], embed) for text in row["captions"]]}

    rows = [{**row, "image": pairs[0]["image"]} for row in dataset.map(add_views)]
    collator = build_collator()
    for epoch, prefix in ((0, "a"), (1, "so a"), (7, "so a")):
        collator.epoch = epoch
        batch = collator(rows)
        assert batch["view_text"] == [f"{prefix} {text}" for text in batch["text"]]
    assert (
        len({tuple(pair["captions"]).index(text) for pair, text in zip(pairs, batch["text"], strict=True)})
        == 2
    )


@pytest.mark.parametrize("views", [["a puppy"], [["a puppy"]], ["a puppy", "one"], [["a"], ["b"], ["c"]]])
def test_paraphrases_of_another_shape_are_refused(build_collator, pairs, views):
    with pytest.raises(
        ValueError, match=r"Image 'image-0' has 2 captions, but its column views is .* one list per"
    ):
        build_collator()([{**pairs[0], "views": views}])


@pytest.mark.parametrize(("modality", "fields"), [("image", IMAGE), ("text", TEXT)])
def test_a_prepared_view_replaces_one_modality_and_asks_the_model_nothing(views_batch, modality, fields):
    before = dict(views_batch)
    result = PreparedView(modality)(views_batch)
    for name, value in before.items():
        assert views_batch[name] is value
        assert result.batch[name] is before[f"view_{name}" if name in fields else name]
    assert (result.forwards, result.backwards) == (0, 0)
    assert result.loss_before.isnan().all()
    assert result.loss_after.shape == (8,)


@pytest.mark.parametrize(("modality", "missing"), [("image", "pixel_values"), ("text", "input_ids")])
def test_a_batch_without_views_is_refused(clean_batch, modality, missing):
    with pytest.raises(
        KeyError, match=f"The batch has no view of {missing}, .*collate with CleanViewCollator"
    ):
        PreparedView(modality)(clean_batch)


@pytest.fixture
def build_mcl(build_trainer, build_collator):
    def build(model=None, collator=None, **training):
        attacks = PreparedView("image"), PreparedView("text")
        collator = collator or build_collator(views=training.get("views", ("image", "text")))
        return build_trainer(model, collator, attacks, **training)

    return build


def test_the_views_reach_the_encoder(build_mcl, tiny_model, views_batch, monkeypatch):
    model = tiny_model()
    trainer = build_mcl(model, views=["image", "text", "both"])
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: seen.append(inputs) or forward(**inputs))
    trainer.compute_loss(model, views_batch)
    assert len(seen) == 3
    for inputs, replaced in zip(seen, (IMAGE, TEXT, IMAGE | TEXT), strict=True):
        for name, value in inputs.items():
            assert_close(value, views_batch[f"view_{name}" if name in replaced else name], msg=name)


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_twenty_steps_of_mcl_pull_views_to_their_pairs(build_mcl, tiny_model, projector):
    model = tiny_model(projector=projector)
    before = {name: value.clone() for name, value in model.vilt.state_dict().items()}
    trainer = build_mcl(model, max_steps=20, learning_rate=1e-3, optim="adamw_torch")
    trainer.train()
    logged = trainer.state.log_history[:20]
    losses = [step["loss"] for step in logged[2:]]  # two steps fill the queue, until then MoCo has it easy
    assert sum(losses[-5:]) < sum(losses[:5])
    assert any(not torch.equal(value, before[name]) for name, value in model.vilt.state_dict().items())
    for step in logged:
        assert "attack_gain_image" not in step  # nobody asked what the views do to the loss
        assert step["delta_norm"] > 0.05
        assert 0 < step["word_change_rate"] < 1.5
        assert step["positive_cosine_image"] < 1 - 1e-4
        assert step["positive_cosine_text"] < 1 - 1e-6


@pytest.mark.parametrize(("views", "passes"), [(["image"], 3), (["image", "text"], 5), (["both"], 3)])
def test_mcl_costs_its_own_passes_only(build_mcl, views, passes):
    """One of the clean pair, and of every view a forward and a backward."""
    trainer = build_mcl(views=views)
    trainer.train()
    assert trainer.encoder_passes == 8 * passes


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_sees_the_same_views(build_mcl, build_collator, tiny_model, tmp_path, step):
    def trainer(name):
        return build_mcl(
            tiny_model(momentum=0.5),
            collator=build_collator(),
            output_dir=str(tmp_path / name),
            max_steps=3,
            per_device_train_batch_size=4,
            save_strategy="steps",
            save_steps=1,
        )

    straight, resumed = trainer("straight"), trainer("resumed")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{step}"))
    for name, value in straight.model.vilt.state_dict().items():
        assert torch.equal(resumed.model.vilt.state_dict()[name], value), name


@pytest.mark.parametrize("stage", ["vilt", "rmcl", "mcl"])
def test_a_recipe_augments_every_stage_and_gives_mcl_its_views(tmp_path, stage):
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    recipe = PretrainRecipe(
        stage=stage,
        output_dir=str(tmp_path),
        image_size=32,
        model={**model, "patch_size": 16, "projection_dim": 8, "queue_size": 16},
        data=DataRecipe(max_examples=8, max_text_length=12, augment="randaugment"),
        training={"max_steps": 1, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True}
        | {"views": ["text"] if stage == "mcl" else ["image"]},
        **({"attack": AttackRecipe(image={"preset": "thesis"})} if stage == "rmcl" else {}),
    )
    trainer = pretrain(recipe)
    assert trainer.data_collator.transform is randaugment
    if stage == "mcl":
        assert isinstance(trainer.data_collator, CleanViewCollator)
        assert trainer.data_collator.modalities == ["text"]
        assert isinstance(trainer.attacks["text"], PreparedView)
        assert len(trainer.data_collator.synonyms) > 1000
