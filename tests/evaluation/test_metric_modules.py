"""The metrics as `evaluate` modules, from the folders that a wheel carries."""

import ast
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import RepoCard

from rmcl_hub.evaluation import metrics

FOLDER = Path(str(files("rmcl_hub.evaluation")))
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/README.md"))


def random_inputs(name, size=24):
    """Inputs of a metric as lists, and what its pure function says about them."""
    generator = np.random.default_rng(0)
    right = {key: (generator.random(size) < 0.6).tolist() for key in ("clean_correct", "adversarial_correct")}
    if name in ("robust_accuracy", "attack_success_rate"):
        return right, {name: getattr(metrics, name)(*right.values())}
    if name == "flip_rate":
        inputs = {
            key: generator.integers(3, size=size) for key in ("clean_predictions", "adversarial_predictions")
        }
        return inputs, {name: metrics.flip_rate(*inputs.values())}
    if name == "recall_at_k":
        inputs = {
            "scores": generator.random((size, 5)),
            "relevant": np.eye(5, dtype=bool)[np.arange(size) % 5],
        }
        return inputs, {name: metrics.recall_at_k(*inputs.values(), k=1), "gallery_size": 5}
    if name == "vqa_accuracy":
        inputs = {"predictions": generator.integers(4, size=size), "scores": generator.random((size, 4))}
        return inputs, {name: metrics.vqa_accuracy(*inputs.values())}
    if name == "nlvr2_consistency":
        inputs = {
            "correct": right["clean_correct"],
            "identifiers": [f"dev-{index // 6}-{index % 3}-{index % 6 // 3}" for index in range(size)],
        }
        return inputs, {name: metrics.nlvr2_consistency(*inputs.values())}
    if name == "word_change_rate":
        texts = [[" ".join(generator.choice(list("abcd"), size=5)) for _ in range(size)] for _ in range(2)]
        inputs = dict(zip(("clean_texts", "adversarial_texts"), texts, strict=True))
        return inputs, {name: metrics.word_change_rate(*texts)}
    sizes = [(3, 2, 4 + index % 2) for index in range(size)]
    inputs = {key: [generator.random(shape) for shape in sizes] for key in ("clean", "adversarial")}
    norms = metrics.perturbation_norms(*inputs.values())
    return inputs, {"mean": norms.mean(), "max": norms.max()}


@pytest.fixture
def load(tmp_path):
    def load(name, **options):
        return evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path / "cache"), **options)

    return load


def part_of(inputs, rows):
    return {name: [values[row] for row in rows] for name, values in inputs.items()}


def test_the_eight_metrics_are_there():
    rates = ["attack_success_rate", "flip_rate", "robust_accuracy", "vqa_accuracy", "word_change_rate"]
    assert sorted([*rates, "nlvr2_consistency", "perturbation_norm", "recall_at_k"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestEveryMetric:
    def test_is_its_pure_function_at_once_and_in_batches(self, load, name):
        inputs, expected = random_inputs(name)
        assert load(name).compute(**inputs) == pytest.approx(expected)
        metric = load(name)
        for rows in (range(5), range(5, 6), range(6, 24)):
            metric.add_batch(**part_of(inputs, rows))
        assert metric.compute() == pytest.approx(expected)

    def test_two_processes_give_the_same_number(self, load, name):
        inputs, expected = random_inputs(name)
        parts = [part_of(inputs, range(0, 24, 2)), part_of(inputs, range(1, 24, 2))]

        def work(process_id):
            metric = load(name, num_process=2, process_id=process_id, experiment_id=name, timeout=20)
            metric.add_batch(**parts[process_id])
            return metric.compute()

        with ThreadPoolExecutor(2) as pool:  # what the two share is the cache folder alone
            first, second = pool.map(work, range(2))
        assert second is None
        assert first == pytest.approx(expected)

    def test_the_example_of_its_card_is_true(self, name):
        code = re.search(r"```python\n(.*?)```", (FOLDER / name / "README.md").read_text(), re.DOTALL)[1]
        *setup, call = ast.parse(code).body
        scope = {}
        exec("\n".join(map(ast.unparse, setup)), scope)  # noqa: S102 - it is what a reader would run
        result = eval(ast.unparse(call), scope)  # noqa: S307
        assert result == ast.literal_eval(code.splitlines()[-1].removeprefix("# "))

    def test_the_card_is_one_that_the_hub_shows(self, load, name):
        card = RepoCard.load(FOLDER / name / "README.md")
        assert card.data.sdk == "gradio"
        assert card.data.tags == ["evaluate", "metric"]
        assert " ".join(card.data.description.split()) == load(name).description
        inputs = random_inputs(name)[0]
        assert all(f"**{field}**" in card.text for field in inputs)
        headings = ["How to use", "Inputs", "Output values", "Limitations and bias", "Citation"]
        assert [heading for heading in headings if f"# {heading}\n" not in card.text] == []

    def test_without_this_package_the_loader_says_what_to_install(self, load, monkeypatch, name):
        monkeypatch.setitem(sys.modules, "rmcl_hub", None)
        with pytest.raises(ImportError, match=r"install the following dependencies.*rmcl_hub"):
            load(name)


class TestArguments:
    def test_the_cut_off(self, load):
        inputs, _ = random_inputs("recall_at_k")
        expected = metrics.recall_at_k(*inputs.values(), k=3)
        assert load("recall_at_k").compute(**inputs, k=3)["recall_at_k"] == pytest.approx(expected)

    def test_the_norm(self, load):
        inputs, _ = random_inputs("perturbation_norm")
        expected = metrics.perturbation_norms(*inputs.values(), norm="l2").mean()
        assert load("perturbation_norm").compute(**inputs, norm="l2")["mean"] == pytest.approx(expected)

    def test_errors_are_those_of_the_pure_function(self, load):
        with pytest.raises(ValueError, match="none of the 2 examples was initially correct"):
            load("attack_success_rate").compute(clean_correct=[False] * 2, adversarial_correct=[False] * 2)
