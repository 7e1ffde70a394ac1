"""The README's Python runs as printed, on a model of toy size in the place of the quickstart's."""

import re
from pathlib import Path

import pytest
import yaml

from rmcl_hub.datasets_scripts.miniature_tasks import write_vqav2
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.vqav2 import Vqav2
from rmcl_hub.trainers.recipe import PretrainRecipe, load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run_in_order(after_quickstart, tmp_path, capsys):
    write_vqav2(tmp_path / "downloads")
    prepare(Vqav2, "downloads", "shards/vqav2", ["train_fit"], num_workers=1, unofficial=True)

    namespace = {}
    for code in blocks("python"):
        exec(code, namespace)  # noqa: S102 - the README is ours

    assert (namespace["attacked"].loss_after > namespace["attacked"].loss_before).all()
    assert namespace["threat"]["verdict"] in ("trusted", "not converged", "unreliable")
    assert next(iter(namespace["rows"]))["question"]
    assert capsys.readouterr().out.startswith("tensor(")


def test_the_recipe_is_one(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "barlow.yaml"
    path.write_text(text)
    recipe = load_recipe(PretrainRecipe, path, ["--training.seed", "1"])
    assert recipe.output_dir == yaml.safe_load(text)["output_dir"]
    assert recipe.training["seed"] == 1
    assert recipe.training["learning_rate"] == pytest.approx(5e-4)
