"""The metrics as Spaces: they compute the same without rmcl-hub, from a folder and from a Hub on loopback."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import evaluate
import pytest
from huggingface_hub import HfApi, RepoCard

from rmcl_hub.evaluation import metrics
from rmcl_hub.model_cards import refusals
from rmcl_hub.model_cards.metric_space import METRICS, card_of_space, stage_metric, stage_metrics

ROOT = Path(__file__).parents[2]
# Of a process in which nobody can import this package.
WITHOUT_PACKAGE = """
import sys

sys.modules["rmcl_hub"] = None

import evaluate

for name in sys.argv[1:]:
    evaluate.load(f"user/{name}")
metric = evaluate.load("user/robust_accuracy", revision="v1")
print(metric.compute(clean_correct=[True, True, False], adversarial_correct=[True, False, True]))
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """All Spaces by name."""
    folder = tmp_path_factory.mktemp("spaces")
    return {repository.name: repository for repository in stage_metrics(folder, namespace="somebody")}


def example_of(card):
    """Arguments and result of the card's example."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    call = ast.parse(code).body[-1].value
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return arguments, ast.literal_eval(code.splitlines()[-1].removeprefix("# "))


def run_app(folder, monkeypatch):
    """The page's `gr.Interface`, as what it was called with; gradio itself is not installed here."""
    gradio = ModuleType("gradio")
    gradio.Interface = gradio.Code = gradio.JSON = lambda *args, **options: {"args": args, **options}
    gradio.Error = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    namespace = {"__name__": "app", "__file__": str(folder / "app.py")}
    exec((folder / "app.py").read_text(), namespace)  # noqa: S102 - it is what the Space runs
    return namespace["demo"]


def test_every_metric_of_the_package_is_a_space(staged):
    folders = (ROOT / "evaluation").glob("*/README.md")
    assert sorted(path.parent.name for path in folders) == sorted(METRICS) == sorted(staged)


@pytest.mark.parametrize("name", METRICS)
def test_a_space_holds_what_evaluate_and_gradio_need_and_may_be_published(staged, name):
    repository = staged[name]
    assert repository.repo_type == "space"
    assert set(repository.files) == {f"{name}.py", "metrics.py", "README.md", "requirements.txt", "app.py"}
    refusals.check(repository)
    card = RepoCard.load(repository.folder / "README.md")
    assert (card.data.sdk, card.data.tags) == ("gradio", ["evaluate", "metric"])
    assert f'evaluate.load("somebody/{name}")' in card.text
    assert "USER" not in card.text
    assert "importlib" not in card.text


@pytest.mark.parametrize("name", METRICS)
def test_the_staged_module_needs_no_rmcl_hub_and_gives_the_result_of_its_card(
    staged, name, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "rmcl_hub", None)
    folder = staged[name].folder
    arguments, result = example_of((folder / "README.md").read_text())
    metric = evaluate.load(str(folder), cache_dir=str(tmp_path))
    assert metric.compute(**arguments) == result
    assert sys.modules[type(metric).__module__].__dict__.keys().isdisjoint({"rmcl_hub"})


@pytest.mark.parametrize("name", METRICS)
def test_the_page_shows_the_example_of_the_card_and_computes_it(staged, name, monkeypatch):
    folder = staged[name].folder
    arguments, result = example_of((folder / "README.md").read_text())
    page = run_app(folder, monkeypatch)
    shown = page["inputs"]["args"][0]
    assert json.loads(shown) == arguments
    assert page["fn"](shown) == result
    assert page["article"].startswith("\n# Metric card for")


def test_the_page_says_what_is_wrong_with_the_inputs_and_goes_on(staged, monkeypatch):
    page = run_app(staged["robust_accuracy"].folder, monkeypatch)
    error = sys.modules["gradio"].Error
    with pytest.raises(error, match="is empty; a rate over no examples is undefined"):
        page["fn"]('{"clean_correct": [], "adversarial_correct": []}')
    with pytest.raises(error, match="Expecting ',' delimiter"):
        page["fn"]("[1, 2")
    assert page["fn"]('{"clean_correct": [true], "adversarial_correct": [true]}') == {"robust_accuracy": 1.0}


def test_requirements_are_this_packages_own_bounds_of_what_the_metrics_import(staged):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    folder = staged["recall_at_k"].folder
    required = (folder / "requirements.txt").read_text().split()
    assert set(required) <= set(declared)
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module).split(".")[0]
        for path in ("recall_at_k.py", "metrics.py")
        for node in ast.walk(ast.parse((folder / path).read_text()))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
        for alias in node.names
    }
    installed = {re.split(r"\W", line)[0] for line in required}
    assert imported - set(sys.stdlib_module_names) <= installed


def test_the_functions_that_travel_along_are_those_of_the_package(staged):
    assert (staged["flip_rate"].folder / "metrics.py").read_text() == Path(metrics.__file__).read_text()


def test_spaces_load_from_a_hub_without_this_package(staged, loopback_hub, run_against_hub):
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    for name in ("robust_accuracy", "perturbation_norm"):
        api.create_repo(f"user/{name}", repo_type="space", space_sdk="gradio")
        api.upload_folder(repo_id=f"user/{name}", repo_type="space", folder_path=staged[name].folder)
    api.create_tag("user/robust_accuracy", tag="v1", repo_type="space")
    counts = {
        "HF_UPDATE_DOWNLOAD_COUNTS": "false"
    }  # else evaluate counts the downloads at an address of its own
    done = run_against_hub(WITHOUT_PACKAGE, "robust_accuracy", "perturbation_norm", environment=counts)
    assert ast.literal_eval(done.stdout) == {"robust_accuracy": pytest.approx(1 / 3)}


def test_an_unknown_metric_and_a_folder_in_use_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="no metric 'accuracy'; choose one of attack_success_rate, flip_rate"
    ):
        stage_metric("accuracy", tmp_path / "accuracy")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty, and all that lies in it would be published"):
        stage_metric("flip_rate", tmp_path)


def test_a_card_loads_from_the_space_that_it_lies_in():
    load = "evaluate.load(str(files('a').joinpath('b')))\n"
    card = f"import evaluate\nfrom importlib.resources import files\n\n{load}"
    assert card_of_space(card, "me/b") == 'import evaluate\n\nevaluate.load("me/b")\n'
