from dataclasses import replace

import pytest

from rmcl_hub.evaluation.compare import RETENTION, compare_models, conclude, count_conclusions, verdict


def runs(make, seeds, clean_rate, success):
    return {seed: make(100 + seed, clean_rate, {"pgd-4": success}, num_examples=240) for seed in seeds}


def difference(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.fixture
def make(random_outcomes_of):
    return random_outcomes_of


class TestCompareModels:
    def test_differences_are_treated_minus_control_by_hand(self, outcomes):
        control = {0: outcomes}  # 6 right, 3 survive
        treated = {
            0: [replace(row, adversarial_correct=row.clean_correct) for row in outcomes]
        }  # all survive
        (comparison,) = compare_models(control, treated, task="VQA", protocol="frozen", num_resamples=50)
        values = {name: found["value"] for name, found in comparison["differences"].items()}
        assert values == {"attack_success_rate": -0.5, "robust_accuracy": 3 / 8, "clean_accuracy": 0.0}
        assert comparison["per_seed"] == {"0": values}
        assert comparison["mcnemar_p"] == {"0": 2 / 2**3}  # three discordant, all one way
        assert (comparison["num_examples"], comparison["num_clusters"]) == (8, 2)

    def test_swapping_the_models_mirrors_everything(self, make):
        a, b = runs(make, [0, 1], 0.7, 0.5), runs(make, [0, 1], 0.7, 0.2)
        options = {"task": "VQA", "protocol": "frozen", "num_resamples": 200}
        (there,), (back,) = compare_models(a, b, **options), compare_models(b, a, **options)
        for name, found in there["differences"].items():
            mirrored = back["differences"][name]
            assert (mirrored["value"], mirrored["low"], mirrored["high"]) == pytest.approx(
                (-found["value"], -found["high"], -found["low"])
            )
        assert (there["conclusion"], back["conclusion"]) == ("better", "worse")

    def test_order_of_examples_does_not_matter(self, make):
        a, b = runs(make, [0], 0.7, 0.5), runs(make, [0], 0.7, 0.2)
        options = {"task": "VQA", "protocol": "frozen", "num_resamples": 50}
        shuffled = {0: b[0][::-1]}
        assert compare_models(a, b, **options) == compare_models(a, shuffled, **options)

    def test_a_gain_of_one_seed_only_is_no_gain(self, make):
        control = {seed: make(1, 0.7, {"pgd-4": 0.5}, num_examples=240) for seed in (0, 1, 2)}
        treated = {**control, 2: make(1, 0.7, {"pgd-4": 0.1}, num_examples=240)}
        (comparison,) = compare_models(control, treated, task="VQA", protocol="frozen", num_resamples=300)
        assert comparison["differences"]["robust_accuracy"]["low"] <= 0
        assert comparison["conclusion"] == "none"
        (alone,) = compare_models({2: control[2]}, {2: treated[2]}, task="VQA", protocol="frozen")
        assert alone["conclusion"] == "better"

    def test_success_is_none_when_almost_nothing_is_right(self, outcomes):
        hardly = [replace(row, clean_correct=index == 0) for index, row in enumerate(outcomes)]
        (comparison,) = compare_models(
            {0: hardly}, {0: hardly}, task="VQA", protocol="frozen", num_resamples=50
        )
        assert comparison["differences"]["attack_success_rate"] is None
        assert (
            "too few initially correct examples to bound attack success under pgd-4" in comparison["verdict"]
        )

    def test_errors(self, make):
        a, b = runs(make, [0], 0.7, 0.5), runs(make, [0], 0.7, 0.2)
        with pytest.raises(ValueError, match=r"control has seeds \[0\], treated \[1\]"):
            compare_models(a, {1: b[0]}, task="VQA", protocol="frozen")
        with pytest.raises(
            ValueError, match=r"not tested on the same examples under 'pgd-4' with seed 0 \(240 and 239"
        ):
            compare_models(a, {0: b[0][:-1]}, task="VQA", protocol="frozen")
        relabelled = [replace(row, label=0) for row in b[0]]
        with pytest.raises(ValueError, match="not tested on the same examples"):
            compare_models(a, {0: relabelled}, task="VQA", protocol="frozen")


class TestConclusion:
    down, up, flat = difference(-0.2, -0.1), difference(0.1, 0.2), difference(-0.1, 0.1)

    @pytest.mark.parametrize(
        ("success", "robust", "expected"),
        [
            ("down", "up", "better"),
            ("up", "down", "worse"),
            ("up", "flat", "worse"),
            ("flat", "down", "worse"),
            ("flat", "flat", "none"),
            ("down", "flat", "unclear"),  # fewer right answers to break, perhaps
            ("flat", "up", "unclear"),  # more right answers, perhaps
            ("down", "down", "unclear"),
        ],
    )
    def test_both_measures_are_needed(self, success, robust, expected):
        differences = {
            "attack_success_rate": getattr(self, success),
            "robust_accuracy": getattr(self, robust),
        }
        assert conclude(differences) == expected

    def test_undefined_success_proves_nothing(self):
        assert conclude({"attack_success_rate": None, "robust_accuracy": self.up}) == "unclear"


class TestVerdict:
    def comparison(self, **changes):
        return {
            "task": "VQA",
            "protocol": "frozen",
            "attack": "pgd-4",
            "differences": {
                "attack_success_rate": difference(-0.083, -0.02),
                "robust_accuracy": difference(0.01, 0.05),
                "clean_accuracy": difference(-0.021, 0.011),
            },
            "per_seed": {"0": {}, "1": {}, "2": {}},
            "num_examples": 654,
            "num_clusters": 331,
            "conclusion": "better",
            **changes,
        }

    def test_gain(self):
        assert verdict(self.comparison(), ("the control", "RMCL (MoCo)")) == (
            "VQA, frozen: compared with the control, RMCL (MoCo) lowers attack success under pgd-4 by "
            "5.2 points [2.0, 8.3]; raises robust accuracy by 3.0 points [1.0, 5.0]; shows no clear change "
            "of clean accuracy (-0.5 points [-2.1, +1.1]). RMCL (MoCo) is more robust here. "
            "(654 examples of 331 concepts, 3 seeds.)"
        )

    def test_loss(self):
        worse = {
            "attack_success_rate": difference(0.02, 0.08),
            "robust_accuracy": difference(-0.05, -0.01),
            "clean_accuracy": difference(-0.04, -0.02),
        }
        sentence = verdict(self.comparison(differences=worse, conclusion="worse", per_seed={"0": {}}))
        assert "RMCL raises attack success under pgd-4 by 5.0 points [2.0, 8.0]" in sentence
        assert "lowers robust accuracy by 3.0 points [1.0, 5.0]" in sentence
        assert "RMCL is less robust here." in sentence
        assert "one seed: new training runs may differ" in sentence

    def test_nothing(self):
        flat = dict.fromkeys(self.comparison()["differences"], difference(-0.04, 0.04))
        sentence = verdict(self.comparison(differences=flat, conclusion="none"))
        assert "No effect on robustness is shown; one below about 4 points could not be seen." in sentence

    def test_disagreement(self):
        sentence = verdict(self.comparison(conclusion="unclear"))
        assert "RMCL is not shown to be more robust than the control" in sentence

    def test_retention_has_its_own_words(self):
        sentence = verdict(self.comparison(task=RETENTION, protocol=""))
        assert sentence.startswith(
            "retention: compared with the control, RMCL lowers loss of embeddings under pgd-4"
        )
        assert "accuracy" not in sentence


def test_count_conclusions(results):
    sentence = count_conclusions(results["comparisons"])
    assert sentence.startswith("Of 4 comparisons RMCL is better in 2, worse in 0, mixed in 0")
    with pytest.raises(ValueError, match="no comparisons"):
        count_conclusions([])
