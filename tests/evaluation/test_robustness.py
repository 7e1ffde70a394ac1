"""The one call: what it returns, what it writes, what can be scored again, and what it refuses."""

import json
from dataclasses import replace

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_plan import shared_runs
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort, LossAttack
from rmcl_hub.evaluation.outcomes import load_outcomes, save_outcomes
from rmcl_hub.evaluation.rescore import rescore
from rmcl_hub.evaluation.robustness import evaluate_robustness
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.victims import as_victim


@pytest.fixture(autouse=True)
def small_effort(monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=4, square_queries=10, word_candidates=2))


@pytest.fixture
def data(rows):
    return datasets.Dataset.from_list([{**row, "pixels": row["pixels"].tolist()} for row in rows])


@pytest.fixture
def task(collate):
    def from_lists(rows):
        return collate([{**row, "pixels": torch.tensor(row["pixels"])} for row in rows])

    return Task("toy", from_lists, VQA_COLUMNS)


@pytest.fixture
def evaluate(model, data, task, tmp_path):
    model.eval()

    def run(threats=("linf-32",), victim=model, **options):
        options = {"output_dir": tmp_path / "out", "effort": "quick", "batch_size": 5, **options}
        return evaluate_robustness(victim, None, options.pop("dataset", data), task, threats, **options)

    return run


def of(evaluation, attack):
    return [row for row in evaluation.outcomes if row.attack == attack]


def test_the_ensemble_is_the_worst_of_its_parts_example_by_example(evaluate):
    evaluation = evaluate()
    parts = [of(evaluation, f"linf-32/{name}") for name in evaluation.record["threats"]["linf-32"]["attacks"]]
    assert len(parts) == 7
    for whole, *rows in zip(of(evaluation, "linf-32"), *parts, strict=True):
        assert {row.id for row in rows} == {whole.id}
        assert whole.adversarial_correct == all(row.adversarial_correct for row in rows)
        found = [row for row in rows if row.attack == whole.found_by]
        assert found[0].loss_after == whole.loss_after
    numbers = evaluation.record["threats"]["linf-32"]["numbers"]["overall"]
    assert numbers["robust_accuracy"]["value"] < numbers["clean_accuracy"]["value"]


def test_epsilon_zero_is_clean_exactly(evaluate):
    evaluation = evaluate({"nothing": ThreatModel("image", "linf", 0.0)})
    for row in evaluation.outcomes:
        assert row.loss_after == row.loss_before
        assert row.adversarial_prediction == row.clean_prediction
        assert row.delta_linf == 0.0
    checks = evaluation.record["threats"]["nothing"]["checks"]
    assert checks[9]["status"] == "pass"
    assert "at epsilon 0, 0 answers changed" in checks[9]["detail"]


def test_epsilon_one_leaves_at_most_chance(evaluate):
    evaluation = evaluate({"anything": ThreatModel("image", "linf", 1.0)})
    numbers = evaluation.record["threats"]["anything"]["numbers"]["overall"]
    assert numbers["robust_accuracy"]["value"] == 0.0


def test_the_record_on_disk_is_json_and_the_outcomes_are_all_there(evaluate, tmp_path):
    evaluation = evaluate(trained_with=["pgd"], defence="none")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record == json.loads(json.dumps(evaluation.record))
    assert load_outcomes(tmp_path / "out" / "outcomes.parquet") == evaluation.outcomes
    assert record["settings"]["trained_with"] == ["pgd"]
    assert record["data"]["num_examples"] == 12
    assert len(record["model"]["digest"]) == len(record["data"]["digest"]) == 16


def test_hashes_change_with_model_and_data(evaluate, model, data, rows):
    first = evaluate().record
    other_data = evaluate(dataset=data.select(range(6))).record
    assert other_data["data"]["digest"] != first["data"]["digest"]
    assert other_data["model"]["digest"] == first["model"]["digest"]
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    other_model = evaluate().record
    assert other_model["model"]["digest"] != first["model"]["digest"]
    assert other_model["data"]["digest"] == first["data"]["digest"]


def test_a_subset_is_random_seeded_and_said_so(evaluate):
    subsets = [{row.id for row in evaluate(max_examples=5, seed=seed).outcomes} for seed in (0, 0, 1)]
    assert subsets[0] == subsets[1] != subsets[2]
    assert subsets[0] != {f"q{index}" for index in range(5)}
    record = evaluate(max_examples=5, seed=3).record
    assert record["data"]["sampling"] == "a random 5 of 12 examples, seed 3"
    assert (record["data"]["num_examples"], record["data"]["num_available"]) == (5, 12)


def test_only_pairs_of_the_ensemble_are_kept(evaluate):
    pairs = evaluate(num_pairs=2).record["threats"]["linf-32"]["pairs"]
    assert [pair["attack"] for pair in pairs] == ["linf-32"] * 2
    assert pairs[0]["clean_picture"] != pairs[0]["attacked_picture"]


def test_an_adaptive_attack_joins_where_it_is_allowed(evaluate):
    mine = LossAttack(PGD(32 / 255, 32 / 255, 1), "margin")
    evaluation = evaluate(("linf-32", "linf-8"), adaptive_attacks={"mine": mine}, defence="smoothing")
    threats = evaluation.record["threats"]
    assert "mine" in threats["linf-32"]["attacks"]
    assert "mine" not in threats["linf-8"]["attacks"]
    assert threats["linf-32"]["checks"][15]["status"] == "pass"
    assert threats["linf-8"]["checks"][15]["status"] == "fail"


class TestRescore:
    @pytest.fixture
    def stored(self, evaluate, tmp_path):
        evaluate()
        return tmp_path / "out"

    def test_the_same_model_gives_the_same_number(self, stored, model, data, task):
        (row,) = rescore(stored, model, None, data, task)
        assert row.rescored == row.reported < 0.5
        assert (row.disagreements, row.over_word_budget, row.num_examples) == (0, 0, 12)
        assert row.largest_change == pytest.approx(32 / 255, abs=1e-6)
        assert row.holds

    def test_pixels_outside_the_ball_do_not_hold(self, stored, model, data, task):
        file = sorted((stored / "adversarial").glob("*.safetensors"))[0]
        self.rewrite(file, lambda pixels: pixels + 0.01)
        (row,) = rescore(stored, model, None, data, task)
        assert row.largest_change > 32 / 255 + 0.001
        assert not row.holds

    def test_clean_pictures_sold_as_adversarial_ones(self, stored, model, data, task):
        start = 0
        for file in sorted((stored / "adversarial").glob("*.safetensors")):
            clean = task.collate([data[index] for index in range(start, min(start + 5, 12))])["pixel_values"]
            start += 5
            self.rewrite(file, lambda pixels, clean=clean: clean)
        (row,) = rescore(stored, model, None, data, task)
        assert row.rescored > row.reported
        assert row.disagreements > 0
        assert not row.holds

    def test_texts_over_the_budget(self, stored, model, data, task):
        outcomes = load_outcomes(stored / "outcomes.parquet")
        changed = [replace(row, adversarial_text="one two three") for row in outcomes]
        save_outcomes(changed, stored / "outcomes.parquet")
        (row,) = rescore(stored, model, None, data, task)
        assert row.over_word_budget == 12
        assert not row.holds

    def test_another_model_is_transfer(self, stored, model, data, task):
        with torch.no_grad():
            model.head.weight.mul_(-1)
        (row,) = rescore(stored, model, None, data, task)
        assert row.disagreements > 0

    def test_other_data(self, stored, model, data, task):
        with pytest.raises(ValueError, match="is not in the data set or the outcomes; pass the data set"):
            rescore(stored, model, None, data.select(range(3)), task)
        edited = data.map(lambda row: {"question": "it is blue"})
        with pytest.raises(ValueError, match="texts or pictures of 'linf-32' are not those that were"):
            rescore(stored, model, None, edited, task)

    def test_nothing_stored(self, tmp_path, model, data, task):
        with pytest.raises(FileNotFoundError, match=r"evaluation\.json does not exist; run `rmcl-hub"):
            rescore(tmp_path, model, None, data, task)

    def rewrite(self, file, change):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata()
        save_file({"pixel_values": change(load_file(file)["pixel_values"]).contiguous()}, file, metadata)


class TestControl:
    def test_models_are_compared_on_the_same_examples(self, evaluate, model, tmp_path):
        control = evaluate(output_dir=tmp_path / "control")
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([0.0, 1.0]))  # always the second answer, whatever is attacked
        record = evaluate(control=tmp_path / "control").record
        (comparison,) = record["comparisons"]
        theirs = [row.clean_correct and row.adversarial_correct for row in of(control, "linf-32")]
        ours = record["threats"]["linf-32"]["numbers"]["overall"]["robust_accuracy"]["value"]
        assert comparison["differences"]["robust_accuracy"]["value"] == pytest.approx(ours - sum(theirs) / 12)
        assert (ours, sum(theirs)) == (0.5, 0)
        assert record["threats"]["linf-32"]["checks"][20]["status"] == "pass"

    def test_another_threat_model(self, evaluate, tmp_path):
        evaluate(("linf-8",), output_dir=tmp_path / "control")
        with pytest.raises(ValueError, match="was not evaluated under 'linf-32'"):
            evaluate(control=tmp_path / "control")

    def test_other_examples(self, evaluate, data, tmp_path):
        evaluate(dataset=data.select(range(6)), output_dir=tmp_path / "control")
        with pytest.raises(ValueError, match="not tested on the same examples"):
            evaluate(control=tmp_path / "control")


class TestRefusals:
    def test_a_model_in_training_mode(self, evaluate, model):
        model.train()
        with pytest.raises(ValueError, match=r"the model is in training mode.*call model\.eval\(\) first"):
            evaluate()

    def test_words_of_a_model_that_reads_none(self, evaluate, model):
        victim = replace(as_victim(model), reads_text=False)
        with pytest.raises(ValueError, match="'words-1' is on text, but ToyPairModel reads no text; choose"):
            evaluate(("words-1",), victim=victim)

    def test_words_without_a_tokenizer(self, evaluate):
        with pytest.raises(ValueError, match="on both, but this model reads no text"):
            evaluate(("joint-linf-4-words-1",))

    def test_no_data(self, evaluate, data):
        with pytest.raises(ValueError, match="the data set is empty; robustness of no example is undefined"):
            evaluate(dataset=data.select([]))

    def test_no_threat_model(self, evaluate):
        with pytest.raises(ValueError, match="no threat models given; pass at least one"):
            evaluate(())

    def test_unknown_threat_model(self, evaluate):
        with pytest.raises(ValueError, match="There is no threat model 'linf4'; did you mean 'linf-4'"):
            evaluate(("linf4",))

    def test_unknown_effort(self, evaluate):
        with pytest.raises(ValueError, match="effort is 'hard'; expected one of quick, standard, full"):
            evaluate(effort="hard")

    def test_label_outside_the_head(self, evaluate, data):
        wrong = data.map(lambda row: {"label": 7})
        with pytest.raises(ValueError, match="label 7 is outside the head's 2 classes, 0 to 1"):
            evaluate(dataset=wrong)

    def test_a_subset_of_nothing(self, evaluate):
        with pytest.raises(ValueError, match="max_examples is 0; expected at least 1"):
            evaluate(max_examples=0)

    def test_an_adaptive_attack_outside_every_threat_model(self, evaluate):
        with pytest.raises(ValueError, match=r"adaptive attack 'mine' .* is within none of the threat"):
            evaluate(adaptive_attacks={"mine": PGD(0.5, 0.1, 1)})

    def test_an_adaptive_attack_with_a_taken_name(self, evaluate):
        with pytest.raises(ValueError, match="there is an attack 'pgd' in the ensemble already"):
            evaluate(adaptive_attacks={"pgd": PGD(0.01, 0.1, 1)})


def test_an_attack_on_one_modality_runs_once():
    """Under the threat model on both it is the run of the threat model on that modality."""

    class Stub:
        def __init__(self, name):
            self.threat_model = ThreatModel.load(name)

    names = ("linf-4", "joint-linf-4-words-1", "joint-linf-8-words-1")
    suites = {
        "linf-4": {"pgd": LossAttack(Stub("linf-4"))},
        "joint-linf-4-words-1": {
            "pgd": LossAttack(Stub("linf-4")),
            "geometry": LossAttack(Stub("words-1")),
            "co-attack": LossAttack(Stub("joint-linf-4-words-1")),
        },
        "joint-linf-8-words-1": {"pgd": LossAttack(Stub("linf-8"))},
    }
    runs = shared_runs({name: ThreatModel.load(name) for name in names}, suites)
    assert runs["joint-linf-4-words-1"] == {
        "pgd": "linf-4/pgd",
        "geometry": "joint-linf-4-words-1/geometry",
        "co-attack": "joint-linf-4-words-1/co-attack",
    }
    assert runs["joint-linf-8-words-1"] == {"pgd": "joint-linf-8-words-1/pgd"}
