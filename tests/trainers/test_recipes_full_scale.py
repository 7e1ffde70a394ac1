"""The recipes of full scale, against the figures of ViLT, the thesis and its author's code."""

import math
import re
from pathlib import Path

import pytest
import yaml

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.trainers import finetune, pretrain
from rmcl_hub.trainers.dry_run import build_on_meta, count_rows, plan
from rmcl_hub.trainers.recipe import FinetuneRecipe, PretrainRecipe, load_recipe
from rmcl_hub.trainers.run_cost import memory_bytes, row_tokens

FOLDER = Path(__file__).parents[2] / "recipes"
COCO, ALL = 414_113, 414_113 + 4_320_000 + 780_000 + 2_680_000  # captions: train2014, thesis Table 3.1
# Processes, global batch, and how many texts the run sees.
RUNS = {
    "vilt-pretraining": (8, 4096, 100_000 * 4096),  # ViLT, section 4.2
    "rmcl-moco-coco": (8, 128, COCO),  # thesis, section 4.2
    "rmcl-barlow-coco": (8, 128, COCO),
    "rmcl-moco-4corpora": (8, 128, 10 * ALL),  # thesis, sections 3.2 and 6
    "rmcl-barlow-4corpora": (8, 128, 10 * ALL),
    "mcl-moco-coco": (8, 128, COCO),
    "mcl-barlow-coco": (8, 128, COCO),
    "finetune-vqav2": (2, 256, 10 * 443_757),  # thesis, sections 3.3 and 3.4
    "finetune-nlvr2": (2, 128, 10 * 86_373),
    "finetune-coco-retrieval": (2, 256, 2 * (COCO + 152_634)),
    "finetune-flickr30k-retrieval": (2, 256, 10 * 145_000),
    "finetune-snli-ve": (2, 128, 10 * 529_527),
}
PRETRAINING = [name for name in RUNS if not name.startswith("finetune")]
FINETUNING = [name for name in RUNS if name.startswith("finetune")]


def load(name, *overrides):
    cls = PretrainRecipe if name in PRETRAINING else FinetuneRecipe
    return load_recipe(cls, name, overrides)


def test_every_packaged_recipe_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.yaml")} - {"quickstart", "openpairs"} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_the_header_says_how_the_run_is_launched(name):
    kind = "pretrain" if name in PRETRAINING else "finetune"
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"accelerate launch --num_processes {RUNS[name][0]} trainers/{kind}.py {name}\n" in text
    assert load(name).output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", RUNS)
def test_batch_length_and_rates(name):
    processes, batch, texts = RUNS[name]
    recipe = load(name)
    schedule = plan(recipe, count_rows(recipe)[0], processes)
    assert schedule.batch == batch
    assert schedule.steps * batch == pytest.approx(texts, rel=0.01)
    training = recipe.training
    assert (training["learning_rate"], training["weight_decay"]) == (1e-4, 0.01)
    assert (training["adam_beta1"], training["adam_beta2"]) == (0.9, 0.98)
    assert training["lr_scheduler_type"] == "linear"
    assert schedule.warmup_steps == math.ceil(0.1 * schedule.steps)
    assert training["fp16"] is True
    assert recipe.data.max_text_length == 40
    assert recipe.data.streaming


@pytest.mark.parametrize("name", RUNS)
def test_a_step_fits_the_thesiss_cards(name):
    """24 GB of a GeForce RTX 3090, less what the accelerator takes for itself."""
    recipe = load(name)
    model = build_on_meta(recipe)
    tokens = row_tokens(model.config, 40, 384, 2)
    micro_batch, trained = recipe.training["per_device_train_batch_size"], model.num_parameters()
    assert sum(memory_bytes(recipe, model, trained, tokens, micro_batch, RUNS[name][0]).values()) < 22e9


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_sees_no_picture_of_val2014(name):
    corpora = load(name).data.corpora
    assert [corpus.splits for corpus in corpora.values()] == [["train"]] * len(corpora)
    wanted = {"coco_captions"}
    if "coco" not in name:
        wanted |= {"visual_genome", "sbu_captions", "conceptual_captions"}
        weights = [corpus.weight for corpus in corpora.values()]
        assert sum(weights) == pytest.approx(ALL / 1e6, rel=0.001)
    assert set(corpora) == wanted
    assert {corpus.location for corpus in corpora.values()} == {f"shards/{name}" for name in corpora}


@pytest.mark.parametrize("name", [name for name in PRETRAINING if name.startswith("rmcl")])
def test_rmcl_attacks_as_in_section_4_1(name):
    recipe = load(name)
    image, preset = recipe.attack.image_attack(), PGD.preset("thesis")
    assert (image.epsilon, image.step_size) == (preset.epsilon, preset.step_size) == (0.0025, 0.025)
    assert (image.num_steps, image.gradient, image.random_start) == (5, "linf", False)
    assert image.keep == "last"  # Algorithm 1
    assert recipe.attack.text == {
        "max_candidates": 5,
        "max_loops": 10,
        "min_cosine": 0.5,
        "max_change_share": 0.2,
    }
    assert (recipe.training["views"], recipe.training["reduction"]) == (["image", "text"], "sum")


@pytest.mark.parametrize("name", [name for name in PRETRAINING if not name.startswith("vilt")])
def test_projectors_as_in_section_3_1(name):
    config = build_on_meta(load(name)).config
    if "moco" in name:
        assert (config.projector, config.projection_dim, config.queue_size) == ("moco", 128, 65536)
        assert (config.momentum, config.contrastive_temperature) == (0.999, 0.07)
    else:
        assert (config.projector, config.projection_dim) == ("barlow_twins", 8192)
        assert config.barlow_lambda == 5e-3


@pytest.mark.parametrize("kind", ["moco", "barlow"])
def test_the_control_differs_in_nothing_but_the_attack(kind):
    rmcl, mcl = (
        yaml.safe_load((FOLDER / f"{stage}-{kind}-coco.yaml").read_text()) for stage in ("rmcl", "mcl")
    )
    differing = {name for name in {*rmcl, *mcl} if rmcl.get(name) != mcl.get(name)}
    assert differing == {"stage", "output_dir", "attack"}


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_is_in_the_clean_protocol(name):
    recipe = load(name)
    assert recipe.protocol == "clean"
    assert recipe.data.augment == "randaugment"
    assert recipe.attack.image == recipe.attack.text == {}
    assert recipe.num_negatives == 15
    assert recipe.head_learning_rate == (1e-3 if recipe.task == "vqa" else None)  # ViLT's lr_mult
    if "snli" not in name:
        load(name, "--protocol", "thesis")


@pytest.mark.parametrize("name", FINETUNING)
def test_the_commented_overrides_make_it_adversarial(name):
    (comment,) = re.findall(r"# adversarial fine-tuning: (.*)", (FOLDER / f"{name}.yaml").read_text())
    overrides = [part.strip('"') for part in re.findall(r'--[\w.]+|"[^"]*"', comment)]
    attack = load(name, *overrides).attack
    assert attack.image_attack().epsilon == 0.0025
    assert bool(attack.text) == ("retrieval" not in name)


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_of_it_needs_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = pretrain if name in PRETRAINING else finetune
    assert command.main([name, "--dry-run", "--processes", str(RUNS[name][0])]) == 0
    out = capsys.readouterr().out
    assert f"  global batch      {RUNS[name][1]:,} = " in out
    assert out.count("rmcl-hub data prepare") == len(load(name).data.corpora)
    for part in ("tokens a row", "passes", "operations", "together"):
        assert part in out
    assert list(tmp_path.iterdir()) == []
