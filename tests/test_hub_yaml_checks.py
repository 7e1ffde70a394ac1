"""The loopback Hub refuses metadata that the real one would refuse, as far as ours can be wrong."""

import json
import urllib.request

import pytest
import yaml
from huggingface_hub import DatasetCardData, EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import BadRequestError

GOOD_INDEX = [
    EvalResult(
        task_type="visual-question-answering",
        dataset_type="user/robust-bench",
        dataset_name="Robust",
        metric_type="robust_accuracy",
        metric_value=41.2,
    )
]
MODEL_INDEX = yaml.safe_load(ModelCardData(model_name="M", eval_results=GOOD_INDEX).to_yaml())["model-index"]
RESULT = {"dataset": {"id": "user/bench", "task_id": "clean"}, "value": 41.2, "date": "2026-11-22"}
BENCHMARK = {"name": "Bench", "evaluation_framework": "rmcl-hub", "tasks": [{"id": "clean", "split": "test"}]}


@pytest.fixture
def api(loopback_hub):
    return HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))


def test_cards_that_the_client_makes_pass(api):
    model = ModelCardData(license="apache-2.0", language="en", model_name="M", eval_results=GOOD_INDEX)
    data_files = [{"split": "train", "path": "a/*.parquet"}, {"split": "test", "path": ["b.parquet"]}]
    data = DatasetCardData(license="cc-by-4.0", configs=[{"config_name": "a", "data_files": data_files}])
    space = "sdk: gradio\nsdk_version: 6.0.0\napp_file: app.py\ncolorFrom: blue\ncolorTo: gray"
    cards = {"model": model.to_yaml(), "dataset": data.to_yaml(), "space": space}
    for repo_type, metadata in cards.items():
        api.create_repo("user/a", repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
        card = f"---\n{metadata}\n---\n# A card\n".encode()
        api.upload_file(repo_id="user/a", repo_type=repo_type, path_in_repo="README.md", path_or_fileobj=card)
    assert api.model_info("user/a").card_data.eval_results[0].metric_value == 41.2


def broken_index(change):
    index = json.loads(json.dumps(MODEL_INDEX))
    change(index[0])
    return yaml.safe_dump({"model-index": index})


@pytest.mark.parametrize(
    ("repo_type", "metadata", "message"),
    [
        ("model", "license: [", "no valid YAML"),
        ("model", "- a", "must be a mapping, not list"),
        ("model", "license: my-own", "not 'my-own'"),
        ("model", "tags: {a: 1}", '"tags" must be'),
        ("model", "language: 3", '"language" must be'),
        ("model", "model-index: 1", "must be a list of models"),
        ("model", broken_index(lambda model: model.pop("name")), r"model-index\[0\].name"),
        ("model", broken_index(lambda model: model.update(results=1)), r"model-index\[0\].results"),
        ("model", broken_index(lambda model: model["results"][0].pop("task")), r"results\[0\].task.type"),
        (
            "model",
            broken_index(lambda model: model["results"][0].pop("dataset")),
            r"results\[0\].dataset.type",
        ),
        ("model", broken_index(lambda model: model["results"][0].update(metrics=[])), "at least one metric"),
        ("model", broken_index(lambda model: model["results"][0]["metrics"][0].pop("value")), "value"),
        ("dataset", "configs: {}", '"configs" must be a list'),
        ("dataset", "configs:\n- data_files: a", "config_name"),
        ("dataset", "configs:\n- config_name: a\n- config_name: a", "must be unique"),
        ("dataset", "configs:\n- {config_name: a, default: true}\n- {config_name: b, default: true}", "once"),
        ("dataset", "configs:\n- config_name: a\n  data_files:\n  - path: a", "data_files"),
        ("space", "sdk: django", "one of gradio, docker, static"),
        ("space", "sdk: gradio\ncolorFrom: orange", '"colorFrom" must be one of red'),
        ("space", "sdk: gradio\nsdk_version: 6.0", '"sdk_version" must be a string'),
        ("space", f"sdk: gradio\nshort_description: {'a' * 61}", "at most 60"),
    ],
)
def test_broken_cards_are_refused(api, repo_type, metadata, message):
    api.create_repo("user/a", repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
    card = f"---\n{metadata}\n---\n# A card\n".encode()
    file = {"repo_id": "user/a", "repo_type": repo_type, "path_in_repo": "README.md"}
    with pytest.raises(ValueError, match=message):
        api.upload_file(**file, path_or_fileobj=card)
    assert "README.md" not in api.list_repo_files("user/a", repo_type=repo_type)


def test_a_card_without_metadata_passes_with_a_warning(api):
    api.create_repo("user/a")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id="user/a", path_in_repo="README.md", path_or_fileobj=b"# A card\n")


def test_results_and_benchmarks_are_taken_and_shown(api):
    api.create_repo("user/a")
    api.create_repo("user/bench", repo_type="dataset")
    results = [
        RESULT,
        {**RESULT, "dataset": {"id": "user/bench", "task_id": "robust"}, "source": {"url": "u"}},
    ]
    api.upload_file(
        repo_id="user/a", path_in_repo=".eval_results/bench.yaml", path_or_fileobj=yaml.dump(results).encode()
    )
    api.upload_file(
        repo_id="user/bench",
        repo_type="dataset",
        path_in_repo="eval.yaml",
        path_or_fileobj=yaml.dump(BENCHMARK).encode(),
    )
    shown = urllib.request.urlopen(f"{api.endpoint}/api/models/user/a")
    entries = [entry["data"] for entry in json.load(shown)["evalResults"]]
    assert [entry["dataset"]["task_id"] for entry in entries] == ["clean", "robust"]
    assert [entry["value"] for entry in entries] == [41.2, 41.2]


@pytest.mark.parametrize(
    ("repo_type", "path", "content", "message"),
    [
        ("model", ".eval_results/a.yaml", {}, "must be a list of results"),
        ("model", ".eval_results/a.yaml", [{**RESULT, "dataset": {"id": "a"}}], "id and task_id"),
        ("model", ".eval_results/a.yaml", [{**RESULT, "value": None}], "value is required"),
        ("model", ".eval_results/a.yaml", [RESULT, RESULT], "one value per task"),
        ("model", ".eval_results/a.yaml", [{**RESULT, "date": "yesterday"}], "ISO 8601"),
        ("model", ".eval_results/a.yaml", [{**RESULT, "source": {"name": "a"}}], "source must have url"),
        ("dataset", "eval.yaml", [BENCHMARK], "must be a mapping"),
        ("dataset", "eval.yaml", {**BENCHMARK, "name": ""}, "name is required"),
        ("dataset", "eval.yaml", {**BENCHMARK, "tasks": [{}]}, "each must have id"),
        ("dataset", "eval.yaml", {**BENCHMARK, "tasks": BENCHMARK["tasks"] * 2}, "must be unique"),
    ],
)
def test_broken_results_and_benchmarks_are_refused(api, repo_type, path, content, message):
    api.create_repo("user/a", repo_type=repo_type)
    file = {"repo_id": "user/a", "repo_type": repo_type, "path_in_repo": path}
    with pytest.raises(BadRequestError, match=message):
        api.upload_file(**file, path_or_fileobj=yaml.dump(content).encode())
    assert path not in api.list_repo_files("user/a", repo_type=repo_type)
