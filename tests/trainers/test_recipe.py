"""Recipes: what is read, what is refused, and in which words."""

from pathlib import Path

import pytest
import yaml

from rmcl_hub.trainers.recipe import (
    AttackRecipe,
    ExperimentRecipe,
    FinetuneRecipe,
    PretrainRecipe,
    load_recipe,
    recipe_from_command_line,
)

PACKAGED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def kind_of(path):
    keys = yaml.safe_load(path.read_text())
    kinds = {"protocols": ExperimentRecipe, "stage": PretrainRecipe, "task": FinetuneRecipe}
    return next(kind for key, kind in kinds.items() if key in keys)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_recipe_loads_by_its_bare_name(path):
    recipe = load_recipe(kind_of(path), path.stem)
    assert recipe.output_dir == yaml.safe_load(path.read_text())["output_dir"]


def test_there_are_packaged_recipes():
    assert "quickstart" in [path.stem for path in PACKAGED]


def test_sections_become_recipes_and_the_rest_keeps_its_default(write):
    recipe = load_recipe(
        PretrainRecipe,
        write("data: {config: noto, split: test}\nattack: {image: {preset: thesis}}\ntraining: {seed: 3}"),
    )
    assert (recipe.data.config, recipe.data.split, recipe.data.max_unreadable) == ("noto", "test", 10)
    assert recipe.attack == AttackRecipe(image={"preset": "thesis"})
    assert recipe.training == {"seed": 3}
    assert recipe.stage == "rmcl"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (PretrainRecipe, "trainin: {}", r"run\.yaml: unknown key 'trainin'; did you mean 'training'\?"),
        (PretrainRecipe, "data: {splitt: test}", r"data: unknown key 'splitt'; did you mean 'split'\?"),
        (
            PretrainRecipe,
            "model: {hiden_size: 3}",
            r"model: unknown key 'hiden_size'; did you mean 'hidden_size'",
        ),
        (PretrainRecipe, "model: {queue: 3}", r"model: unknown key 'queue'; did you mean 'queue_size'\?"),
        (
            PretrainRecipe,
            "training: {learning_rat: 1}",
            r"training: unknown .* did you mean 'learning_rate'\?",
        ),
        (PretrainRecipe, "training: {view: [text]}", r"training: unknown key 'view'; did you mean 'views'\?"),
        (PretrainRecipe, "training: {output_dir: x}", r"training: unknown key 'output_dir'"),
        (PretrainRecipe, "attack: {images: {}}", r"attack: unknown key 'images'; did you mean 'image'\?"),
        (PretrainRecipe, "attack: {image: {epsilom: 0}}", r"attack: image: .* did you mean 'epsilon'\?"),
        (PretrainRecipe, "attack: {text: {max_loop: 1}}", r"attack: text: .* did you mean 'max_loops'\?"),
        (FinetuneRecipe, "training: {view: 1}", r"training: unknown key 'view'"),
        (ExperimentRecipe, "rmcl: {training: {see: 1}}", r"rmcl: training: unknown .* did you mean 'seed'\?"),
        (
            ExperimentRecipe,
            "protocols: {a: {tsk: vqa}}",
            r"protocols\.a: unknown key 'tsk'; did you mean 'task'",
        ),
        (
            ExperimentRecipe,
            "evaluation: {attacks: {pgd: {txt: {}}}}",
            r"evaluation: attacks\.pgd: unknown key 'txt'; did you mean 'text'\?",
        ),
        (PretrainRecipe, "zzz: 1", r"unknown key 'zzz'; known keys: attack, data, image_size, init_from"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_suggested(write, kind, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(kind, write(text))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (PretrainRecipe, "stage: rcml", "stage must be 'vilt', 'rmcl' or 'mcl', got 'rcml'"),
        (PretrainRecipe, "{stage: mcl, attack: {image: {preset: thesis}}}", "'mcl' has clean views instead"),
        (
            FinetuneRecipe,
            "data: {config: vqa, augment: rand}",
            "augment must be 'randaugment' or left out, got",
        ),
        (
            PretrainRecipe,
            "objectives: []",
            r"objectives must be a non-empty subset of \['mlm', 'itm'\], got \[\]",
        ),
        (PretrainRecipe, "data: {config: vqa}", r"needs pairs: data\.config 'captions', got 'vqa'"),
        (FinetuneRecipe, "task: vqa2", "task must be one of vqa, nlvr2, retrieval, snli_ve, got 'vqa2'"),
        (
            FinetuneRecipe,
            "task: snli_ve",
            r"Task 'snli_ve' needs data\.corpora: the embedded set has",
        ),
        (
            FinetuneRecipe,
            "{protocol: clean, data: {corpora: {a: {location: x}, b: {location: y}}}}",
            r"takes one of data\.corpora, got a, b",
        ),
        (FinetuneRecipe, "data: {corpora: {a: {location: x}}}", "protocol is missing: 'clean', or 'thesis'"),
        (
            FinetuneRecipe,
            "{protocol: clean, data: {corpora: {a: {location: x, splits: [test]}}}}",
            r"data\.corpora\.a\.splits come from the protocol; remove them",
        ),
        (FinetuneRecipe, "protocol: clean", r"names splits of data\.corpora, but there are none"),
        (FinetuneRecipe, "num_negatives: 0", "num_negatives must be at least 1, got 0"),
        (FinetuneRecipe, "adversarial_weight: 0", "adversarial_weight must be positive, got 0"),
        (
            FinetuneRecipe,
            "{task: retrieval, data: {config: captions}, attack: {text: {max_change_share: 0.5}}}",
            r"Retrieval attacks pictures only: .*Remove attack\.text",
        ),
        (FinetuneRecipe, "task: nlvr2", r"Task 'nlvr2' needs data\.config 'nlvr2', got 'vqa'"),
        (
            PretrainRecipe,
            "attack: {image: {preset: standard, epsilon: 4}}",
            r"attack: .*epsilon is 4.*\[0, 1\]",
        ),
        (PretrainRecipe, "attack: {image: {preset: strong}}", "no PGD preset 'strong'; choose 'thesis', "),
        (PretrainRecipe, "attack: {image: {preset: thesis, num_steps: 9}}", "preset fixes all but epsilon"),
        (
            PretrainRecipe,
            "attack: {image: {epsilon: 0.1}}",
            "num_steps, step_size missing; give them, or a preset",
        ),
        (PretrainRecipe, "training:", "training must be a section with keys, got None"),
        (PretrainRecipe, "data: captions", "data must be a section with keys, got 'captions'"),
        (ExperimentRecipe, "protocols: {a: 3}", r"protocols\.a must be a section with keys, got 3"),
        (PretrainRecipe, "stage: [", r"run\.yaml is not valid YAML"),
        (PretrainRecipe, "- stage", "must hold a mapping of recipe keys, got list"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_built(write, kind, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(kind, write(text))


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("-2E+3", -2000.0), ("0.5", 0.5), ("1.5e-3", 1.5e-3), ("7", 7)]
)
def test_numbers_are_numbers_in_files_and_overrides(write, text, value):
    path = write(f"training: {{learning_rate: {text}}}")
    assert load_recipe(PretrainRecipe, path).training["learning_rate"] == value
    overridden = load_recipe(PretrainRecipe, write("{}"), ["--training.learning_rate", text])
    assert overridden.training["learning_rate"] == value
    assert type(overridden.training["learning_rate"]) is type(value)


def test_words_that_look_like_numbers_elsewhere_stay_words(write):
    recipe = load_recipe(PretrainRecipe, write("output_dir: runs/1e-4\ninit_from: e5"))
    assert (recipe.output_dir, recipe.init_from) == ("runs/1e-4", "e5")


def test_overrides_replace_and_create(write):
    path = write("training: {seed: 1, max_steps: 5}")
    recipe = load_recipe(
        PretrainRecipe,
        path,
        [
            "--training.seed",
            "2",
            "--data.split=test",
            "--attack.image.preset",
            "thesis",
            "--training.views",
            "[text]",
        ],
    )
    assert recipe.training == {"seed": 2, "max_steps": 5, "views": ["text"]}
    assert recipe.data.split == "test"
    assert recipe.attack.image == {"preset": "thesis"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--stage"], r"'--key value' pairs, got '--stage': a value is missing"),
        (["stage", "rmcl"], r"Expected an override such as --training\.seed 1, got 'stage'"),
        (["--stage.name", "x"], "'stage' is a value, not a section"),
        (["--stge", "x"], r"unknown key 'stge'; did you mean 'stage'\?"),
        (["--training.views", "[text"], r"--training\.views: '\[text' is not valid YAML"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(write, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(PretrainRecipe, write("stage: rmcl"), overrides)


def test_shared_anchors_are_no_key(write):
    text = "shared: {a: &a {seed: 4}}\ntraining: *a"
    assert load_recipe(PretrainRecipe, write(text)).training == {"seed": 4}


def test_a_recipe_that_does_not_exist_lists_the_packaged_ones():
    with pytest.raises(FileNotFoundError, match=r"No recipe 'quickstrat'.*packaged recipes: .*quickstart"):
        load_recipe(ExperimentRecipe, "quickstrat")


def test_the_command_line_takes_a_recipe_then_overrides(write):
    words = [str(write("stage: vilt")), "--training.seed", "-1", "--output_dir", "x"]
    recipe = recipe_from_command_line(PretrainRecipe, "run", "Runs.", words)
    assert (recipe.stage, recipe.training, recipe.output_dir) == ("vilt", {"seed": -1}, "x")


def test_overrides_alone_change_the_default_recipe():
    recipe = recipe_from_command_line(
        ExperimentRecipe, "run", "Runs.", ["--output_dir", "x"], default="quickstart"
    )
    assert recipe.output_dir == "x"
    assert recipe.protocols


@pytest.mark.parametrize(("words", "status"), [([], 2), (["--help"], 0), (["a.yaml", "b.yaml"], 2)])
def test_help_and_usage_errors_leave_with_the_usual_status(words, status, capsys):
    with pytest.raises(SystemExit) as leaving:
        recipe_from_command_line(PretrainRecipe, "rmcl-hub pretrain", "Runs.", words)
    assert leaving.value.code == status
    output = capsys.readouterr()
    assert "usage: rmcl-hub pretrain recipe [--section.key value ...]" in output.out + output.err
