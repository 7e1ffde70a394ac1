"""What the Hub reads is what may be published, in the Hub's own formats."""

import copy
import json

import huggingface_hub
import pytest
import yaml

from rmcl_hub.attacks.threat_model import PRESETS
from rmcl_hub.datasets_scripts.openpairs import SPLITS_OF_CONFIG
from rmcl_hub.model_cards.card_sources import CardSources, ResultsFile
from rmcl_hub.model_cards.hub_results import (
    benchmark_yaml,
    eval_results_yaml,
    model_index,
    published_numbers,
)


@pytest.fixture
def sources_of():
    """A function from evaluation records to the sources of a card."""

    def build(*records, repo_id="me/robust"):
        files = [
            ResultsFile(f"results/evaluation-{number}.json", "evaluation", json.dumps(record).encode())
            for number, record in enumerate(records)
        ]
        return CardSources(repo_id, "rmcl", files)

    return build


def overall(record, threat="linf-4"):
    return record["threats"][threat]["numbers"]["overall"]


def entries(sources):
    return {entry["dataset"]["task_id"]: entry for entry in yaml.safe_load(eval_results_yaml(sources))}


def test_values_are_the_measured_ones_in_per_cent(evaluation_record, sources_of):
    found = entries(sources_of(evaluation_record))
    assert set(found) == {
        "vqa_clean_accuracy",
        "vqa_linf-4_robust_accuracy",
        "vqa_words-20pct_robust_accuracy",
    }
    entry = found["vqa_linf-4_robust_accuracy"]
    rate = overall(evaluation_record)["robust_accuracy"]
    assert entry["value"] == round(100 * rate["value"], 2) == 35.94
    assert entry["dataset"]["id"] == "me/openpairs"
    assert entry["date"] == evaluation_record["date"]
    assert (
        "[25.29, 48.18]; a random 64 of 1296 examples, seed 0; effort quick; verdict trusted"
        in entry["notes"]
    )


@pytest.mark.skipif(
    not hasattr(huggingface_hub, "EvalResultEntry"), reason="huggingface_hub below 1 has none"
)
def test_entries_are_those_of_the_library(evaluation_record, sources_of):
    written = yaml.safe_load(eval_results_yaml(sources_of(evaluation_record)))
    parsed = huggingface_hub.parse_eval_result_entries(written)
    assert [entry.value for entry in parsed] == [entry["value"] for entry in written]
    assert huggingface_hub.eval_result_entries_to_yaml(parsed) == written


def test_every_reported_task_is_declared_by_the_benchmark_once(evaluation_record, sources_of):
    benchmark = yaml.safe_load(benchmark_yaml())
    declared = [task["id"] for task in benchmark["tasks"]]
    assert len(declared) == len(set(declared))
    assert set(entries(sources_of(evaluation_record))) < set(declared)
    for task in benchmark["tasks"]:
        assert task["split"] in SPLITS_OF_CONFIG[task["config"]]
        name, _, rest = task["id"].partition("_")
        assert name == task["config"]
        assert rest == "clean_accuracy" or rest.removesuffix("_robust_accuracy") in PRESETS
    assert {"name", "description", "evaluation_framework"} < set(benchmark)


def test_the_legacy_form_has_attack_success_and_the_split_too(evaluation_record, sources_of):
    results = model_index(sources_of(evaluation_record))
    assert len({result.metric_name for result in results}) == len(results) == 5
    found = {result.metric_name: result for result in results}
    success = found["attack success (linf-4)"]
    assert success.metric_value == round(100 * overall(evaluation_record)["attack_success_rate"]["value"], 2)
    assert (success.dataset_type, success.dataset_split) == ("me/openpairs", "test")
    assert success.metric_args["threat_model"] == evaluation_record["threats"]["linf-4"]["digest"]


def test_what_may_not_be_published_is_left_out(evaluation_record, sources_of):
    evaluation_record["threats"]["linf-4"]["publishable"] = False
    assert {number.threat for number in published_numbers(sources_of(evaluation_record))} == {
        None,
        "words-20pct",
    }
    assert set(entries(sources_of(evaluation_record))) == {
        "vqa_clean_accuracy",
        "vqa_words-20pct_robust_accuracy",
    }
    evaluation_record["threats"]["words-20pct"]["publishable"] = False
    assert published_numbers(sources_of(evaluation_record)) == []
    assert eval_results_yaml(sources_of(evaluation_record)) is None
    assert model_index(sources_of(evaluation_record)) == []


def test_an_undefined_rate_is_left_out(evaluation_record, sources_of):
    overall(evaluation_record)["attack_success_rate"]["value"] = None
    names = [result.metric_name for result in model_index(sources_of(evaluation_record))]
    assert "attack success (linf-4)" not in names
    assert "robust accuracy (linf-4)" in names


def test_of_two_measurements_the_one_over_more_examples_stands(evaluation_record, sources_of):
    larger = copy.deepcopy(evaluation_record)
    larger["data"]["num_examples"] = 128
    overall(larger)["robust_accuracy"]["value"] = 0.25
    for records in ((larger, evaluation_record), (evaluation_record, larger)):
        assert entries(sources_of(*records))["vqa_linf-4_robust_accuracy"]["value"] == 25.0


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("protocol", "name", "unnamed"),
        ("protocol", "splits", ["validation"]),
        (None, "task", "snli_ve"),
    ],
)
def test_other_data_are_no_part_of_the_benchmark(evaluation_record, sources_of, part, key, value):
    (evaluation_record[part] if part else evaluation_record)[key] = value
    assert eval_results_yaml(sources_of(evaluation_record)) is None
    assert len(model_index(sources_of(evaluation_record))) == 5


def test_a_threat_model_must_be_what_its_name_says(evaluation_record, sources_of):
    evaluation_record["threats"]["linf-4"]["digest"] = "0123456789abcdef"
    assert "vqa_linf-4_robust_accuracy" not in entries(sources_of(evaluation_record))


def test_without_a_namespace_no_benchmark_is_named(evaluation_record, sources_of):
    sources = sources_of(evaluation_record, repo_id="robust")
    assert eval_results_yaml(sources) is None
    assert {result.dataset_type for result in model_index(sources)} == {"openpairs"}


def test_a_corpus_from_the_hub_keeps_its_id(evaluation_record, sources_of):
    evaluation_record["protocol"] |= {
        "name": "clean",
        "corpus": "vqav2",
        "location": "hf://datasets/them/vqav2@1234",
    }
    assert {result.dataset_type for result in model_index(sources_of(evaluation_record))} == {"them/vqav2"}
