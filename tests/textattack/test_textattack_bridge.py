"""The bridge against TextAttack itself, against exhaustive search, and at its boundaries.

`make test-textattack` runs this file in the environment that TextAttack needs; elsewhere it is skipped.
"""

import importlib
import importlib.util
import itertools
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import set_seed

from rmcl_hub.attacks.base import model_inputs, select_rows
from rmcl_hub.attacks.synonyms import STOP_WORDS, SynonymTable
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.metrics import attack_success_rate, robust_accuracy, words_changed
from rmcl_hub.evaluation.task_losses import margin_to_label
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

if importlib.util.find_spec("textattack") is None:
    pytest.skip("TextAttack is not installed here; run make test-textattack", allow_module_level=True)

# TextAttack reads the stop words when it is imported, and downloads more unless a file says that it did.
FOLDER = tempfile.TemporaryDirectory(prefix="rmcl-hub-textattack-")
os.environ["NLTK_DATA"] = os.environ["TA_CACHE_DIR"] = FOLDER.name
(Path(FOLDER.name) / "corpora/stopwords").mkdir(parents=True)
(Path(FOLDER.name) / "corpora/stopwords/english").write_text("\n".join(sorted(STOP_WORDS)))
(Path(FOLDER.name) / "post_install_check_3").touch()

import textattack  # noqa: E402
from textattack.constraints.pre_transformation import RepeatModification, StopwordModification  # noqa: E402
from textattack.metrics import AttackSuccessRate  # noqa: E402
from textattack.search_methods import GreedyWordSwapWIR, SearchMethod  # noqa: E402

from rmcl_hub.attacks.textattack_bridge import SynonymSwap, TextAttackBridge, synonym_attack  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning:textattack")

SYNONYMS = SynonymTable(
    {
        "dog": [("puppy", 0.9), ("cat", 0.6), ("bird", 0.5)],
        "big": [("large", 0.9)],
        "small": [("tiny", 0.8)],
        "runs": [("sits", 0.7), ("eats", 0.6)],
        "man": [("woman", 0.6), ("child", 0.5)],
    }
)
ANY = ThreatModel.load("words-9")
TEXTS = ["a big dog runs .", "the small man runs", "a red dog", "the man", "the dog ."]
LEFT, RIGHT = (1.0, 0.0), (0.0, 1.0)  # two pictures, by what the toy objective sees in them


@pytest.fixture
def make_batch(tiny_tokenizer):
    def make(texts, pictures=None):
        encoding = tiny_tokenizer(texts, padding=True, return_tensors="pt")
        pixels = torch.rand(len(texts), 2) if pictures is None else torch.tensor(pictures)
        return {"text": texts, **encoding, "pixel_values": pixels, "labels": torch.zeros(len(texts))}

    return make


class WordSum:
    """A value for every word under each of two pictures, mixed as the picture is, and summed."""

    def __init__(self, tokenizer, values=None):
        self.table = torch.randn(len(tokenizer), 2, generator=torch.Generator().manual_seed(5))
        if values is not None:
            self.table.zero_()
            for word, value in values.items():
                self.table[tokenizer.convert_tokens_to_ids(word)] = torch.tensor(value)
        self.texts = []

    def __call__(self, batch):
        self.texts += batch["text"]
        words = (self.table[batch["input_ids"]] * batch["attention_mask"].unsqueeze(-1)).sum(dim=1)
        return (words * batch["pixel_values"]).sum(dim=1) + batch["labels"]  # (rows,)


def all_substitutions(text):
    """Every text that synonyms can make of a text."""
    options = [[word, *(other for other, _ in SYNONYMS.candidates(word))] for word in text.split()]
    return [" ".join(words) for words in itertools.product(*options)]


class EndsWith(SearchMethod):
    """Ends with a given text, whatever its score and the constraints."""

    is_black_box = True

    def __init__(self, text):
        self.text = text

    def perform_search(self, initial_result):
        (result,), _ = self.get_goal_results([textattack.shared.AttackedText(self.text)])
        return result


def attack_that_ends_with(text):
    original = synonym_attack(SYNONYMS)
    return textattack.Attack(original.goal_function, [], original.transformation, EndsWith(text))


# What it finds


def test_synonym_attack_finds_the_best_of_all_substitutions(tiny_tokenizer, make_batch):
    """Words that count on their own are what greedy search is optimal for."""
    batch = make_batch(TEXTS)
    objective = WordSum(tiny_tokenizer)
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)
    result = attack(batch, objective)
    for row, text in enumerate(TEXTS):
        variants = all_substitutions(text)
        repeated = make_batch(variants, batch["pixel_values"][row].expand(len(variants), 2).tolist())
        losses = objective(repeated)
        assert result.batch["text"][row] == variants[int(losses.argmax())]
        torch.testing.assert_close(result.loss_after[row], losses.max())
        torch.testing.assert_close(result.loss_before[row], losses[0])
    assert result.backwards == 0


@pytest.fixture
def two_classes(tiny_tokenizer):
    """Objective whose sign decides between two classes: one text is wrong clean, one cannot be made wrong."""
    values = {"dog": -1, "cat": 2, "small": 2, "man": -1, "woman": 1, "red": -3}
    return WordSum(tiny_tokenizer, {word: (float(value), 0.0) for word, value in values.items()})


@pytest.fixture
def own_attack(two_classes, make_batch):
    """TextAttack without the bridge: its own goal, on class probabilities."""

    class TwoClasses(textattack.models.wrappers.ModelWrapper):
        model = None

        def __call__(self, text_input_list, **kwargs):
            losses = two_classes(make_batch(text_input_list, [LEFT] * len(text_input_list)))
            return torch.stack([torch.zeros_like(losses), losses], dim=1).softmax(dim=1)

    return textattack.Attack(
        textattack.goal_functions.UntargetedClassification(TwoClasses()),
        [RepeatModification(), StopwordModification()],
        SynonymSwap(SYNONYMS),
        GreedyWordSwapWIR(wir_method="delete"),
    )


def test_it_finds_what_textattack_finds_on_its_own(own_attack, two_classes, tiny_tokenizer, make_batch):
    attack = TextAttackBridge(own_attack, tiny_tokenizer, ANY, stop_at=0.0)
    result = attack(make_batch(TEXTS, [LEFT] * len(TEXTS)), two_classes)
    results = [own_attack.attack(text, 0) for text in TEXTS]  # the attack is still the caller's
    assert result.batch["text"] == [found.perturbed_result.attacked_text.text for found in results]
    assert result.forwards == sum(found.num_queries for found in results)


def test_attack_success_rate_is_textattacks(own_attack):
    results = [own_attack.attack(text, 0) for text in TEXTS]
    assert {type(found).__name__ for found in results} == {
        "SkippedAttackResult",
        "SuccessfulAttackResult",
        "FailedAttackResult",
    }
    clean = [found.original_result.output == found.original_result.ground_truth_output for found in results]
    attacked = [
        found.perturbed_result.output == found.perturbed_result.ground_truth_output for found in results
    ]
    theirs = AttackSuccessRate().calculate(results)
    assert 100 * attack_success_rate(clean, attacked) == theirs["attack_success_rate"] == 75.0
    assert 100 * robust_accuracy(clean, attacked) == theirs["attack_accuracy_perc"] == 20.0


def test_the_image_decides_what_becomes_of_the_text(tiny_tokenizer, make_batch):
    objective = WordSum(tiny_tokenizer, {"puppy": LEFT, "cat": RIGHT})
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)
    batch = make_batch(["a dog"] * 3, [LEFT, RIGHT, LEFT])
    assert attack(batch, objective).batch["text"] == ["a puppy", "a cat", "a puppy"]


def test_the_image_decides_which_word_is_misspelt(tiny_tokenizer, make_batch):
    objective = WordSum(tiny_tokenizer, {"dog": (-1.0, 0.0), "red": (0.0, -1.0)})
    attack = TextAttackBridge("deepwordbug", tiny_tokenizer, ThreatModel.load("typos-1"))
    left, right = attack(make_batch(["a red dog"] * 2, [LEFT, RIGHT]), objective).batch["text"]
    assert left.startswith("a red ")
    assert "dog" not in left
    assert right.endswith(" dog")
    assert "red" not in right


def test_answers_about_another_image_are_forgotten(tiny_tokenizer, make_batch):
    """Also those about an example that was left alone, and those of an attack that broke off."""
    objective = WordSum(tiny_tokenizer, {"dog": LEFT, "cat": RIGHT})
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY, stop_at=0.0)
    batch = make_batch(["a dog"] * 2, [LEFT, RIGHT])

    def broken(batch):
        return objective(batch) if batch["text"] == ["a dog"] else objective(batch).sum()

    assert attack(batch, objective).batch["text"] == ["a dog", "a cat"]
    with pytest.raises(ValueError, match="one loss per example"):
        attack(select_rows(batch, [1]), broken)
    assert attack(batch, objective).batch["text"] == ["a dog", "a cat"]


@pytest.mark.parametrize("attack", ["deepwordbug", "synonyms", textattack.attack_recipes.DeepWordBugGao2018])
def test_on_a_model_with_a_margin(attack, tiny_config, tiny_tokenizer, tiny_batch):
    model = RMCLViltForQuestionAnswering(tiny_config).eval()
    batch = {**tiny_batch, "labels": torch.tensor([0, 1, 0, 1])}

    def objective(batch):
        return margin_to_label(model(**model_inputs(batch)).logits, batch["labels"])

    if attack == "synonyms":
        attack = synonym_attack(SYNONYMS)
    result = TextAttackBridge(attack, tiny_tokenizer, ANY)(batch, objective)
    with torch.no_grad():
        torch.testing.assert_close(result.loss_before, objective(batch), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.loss_after, objective(result.batch), atol=1e-5, rtol=1e-4)
    changed = torch.tensor([old != new for old, new in zip(batch["text"], result.batch["text"], strict=True)])
    assert torch.equal(result.loss_after > result.loss_before, changed)
    assert torch.equal(result.loss_after == result.loss_before, ~changed)
    assert changed.sum() >= 2
    assert result.batch["pixel_values"] is batch["pixel_values"]


def test_a_substitute_is_not_substituted(tiny_tokenizer, make_batch):
    """After two words for one, the second word stands where the next of the text stood."""
    table = SynonymTable({"dog": [("small man", 0.9)], "man": [("woman", 0.9)]})
    objective = WordSum(tiny_tokenizer, {"dog": (-1.0, 0.0), "woman": LEFT})
    attack = TextAttackBridge(synonym_attack(table), tiny_tokenizer, ANY)
    assert attack(make_batch(["dog runs"], [LEFT]), objective).batch["text"] == ["small man runs"]


# What it costs


def test_one_forward_for_every_text(tiny_tokenizer, make_batch):
    """The clean text, without each word that is no stop word, and with each substitute."""
    objective = WordSum(tiny_tokenizer, {"red": (-1.0, -1.0)})
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)
    result = attack(make_batch(["a big red dog", "the red"]), objective)
    shortened = ["a red dog", "a big dog", "a big red "]
    substituted = ["a large red dog", "a big red puppy", "a big red cat", "a big red bird"]
    assert sorted(objective.texts[:8]) == sorted(["a big red dog", *shortened, *substituted])
    assert objective.texts[8:] == ["the red", "the "]
    assert (result.forwards, result.backwards) == (10, 0)


@pytest.mark.parametrize("budget", [1, 4, 6, 8, 50])
def test_the_query_budget_is_per_example(budget, tiny_tokenizer, make_batch):
    objective = WordSum(tiny_tokenizer)
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY, query_budget=budget)
    result = attack(make_batch(["a big red dog"] * 2), objective)
    assert result.forwards == len(objective.texts) == 2 * min(budget, 8)
    if budget <= 4:
        assert result.batch["text"] == ["a big red dog"] * 2


def test_it_stops_above_the_threshold_and_not_at_it(tiny_tokenizer, make_batch):
    """Whoever starts above it is left alone; who is above it after one word keeps the other words."""
    objective = WordSum(tiny_tokenizer, {"dog": (-1.0, 0.0), "cat": LEFT, "large": LEFT, "red": LEFT})
    attack = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY, stop_at=0.0)
    result = attack(make_batch(["a red big", "a big dog", "a big"], [LEFT] * 3), objective)
    assert result.batch["text"] == ["a red big", "a big cat", "a large"]
    assert result.loss_after.tolist() == [1.0, 1.0, 1.0]
    assert result.forwards == 1 + (1 + 2 + 3) + (1 + 1 + 1)
    to_the_end = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)
    assert to_the_end(make_batch(["a red big", "a big dog"], [LEFT] * 2), objective).batch["text"] == [
        "a red large",
        "a large cat",
    ]


# What it may not do


@pytest.mark.parametrize(
    ("preset", "most"), [("words-0", 0), ("words-1", 1), ("words-2", 2), ("words-50pct", 2)]
)
@pytest.mark.parametrize("recipe", ["deepwordbug", "synonyms"])
def test_the_word_budget_is_kept_and_used(recipe, preset, most, tiny_tokenizer, make_batch):
    values = dict.fromkeys(["big", "dog", "man", "runs"], (-1.0, -1.0))
    attack = synonym_attack(SYNONYMS) if recipe == "synonyms" else recipe
    bridge = TextAttackBridge(attack, tiny_tokenizer, ThreatModel.load(preset))
    result = bridge(make_batch(["big dog man runs ."], [LEFT]), WordSum(tiny_tokenizer, values))
    assert words_changed("big dog man runs .", result.batch["text"][0]) == most
    assert (result.loss_after - result.loss_before).tolist() == [most]


@pytest.mark.parametrize(
    ("ending", "accepted"),
    [("a cat", True), ("a puppy", False), ("a bird", False), ("the cat", False)],
    ids=["better", "worse", "no better", "better but two words"],
)
def test_an_ending_is_taken_only_if_better_and_within_budget(ending, accepted, tiny_tokenizer, make_batch):
    objective = WordSum(tiny_tokenizer, {"cat": LEFT, "puppy": (-1.0, 0.0), "the": LEFT})
    attack = TextAttackBridge(attack_that_ends_with(ending), tiny_tokenizer, ThreatModel.load("words-1"))
    result = attack(make_batch(["a dog"], [LEFT]), objective)
    assert result.batch["text"] == [ending if accepted else "a dog"]
    assert result.loss_after.tolist() == [1.0 if accepted else 0.0]


def test_nan_never_wins(tiny_tokenizer, make_batch):
    nan = float("nan")
    objective = WordSum(tiny_tokenizer, {"puppy": (nan, nan), "cat": (-1.0, 0.0), "bird": LEFT})
    result = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)(
        make_batch(["a dog"], [LEFT]), objective
    )
    assert result.batch["text"] == ["a bird"]


def test_texts_without_words_stay(tiny_tokenizer, make_batch):
    texts = ["", "...", "the of"]
    for attack in ("deepwordbug", synonym_attack(SYNONYMS)):
        result = TextAttackBridge(attack, tiny_tokenizer, ANY)(make_batch(texts), WordSum(tiny_tokenizer))
        assert result.batch["text"] == texts


def test_the_result_is_encoded_and_the_rest_is_the_callers(tiny_tokenizer, make_batch):
    batch = make_batch(["a red dog", "the small man ."])
    before = {name: value.clone() for name, value in batch.items() if name != "text"}
    objective = WordSum(tiny_tokenizer, {"red": (-1.0, -1.0), "tiny": (1.0, 1.0)})
    for attack in ("deepwordbug", synonym_attack(SYNONYMS)):
        result = TextAttackBridge(attack, tiny_tokenizer, ANY)(batch, objective)
        assert result.batch["text"] != batch["text"]
        expected = tiny_tokenizer(result.batch["text"], padding=True, return_tensors="pt")
        assert all(torch.equal(result.batch[name], expected[name]) for name in expected)
        assert result.batch["labels"] is batch["labels"]
        assert result.batch["pixel_values"] is batch["pixel_values"]
        torch.testing.assert_close(objective(result.batch), result.loss_after)
    assert batch["text"] == ["a red dog", "the small man ."]
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_the_objective_sees_the_labels_of_the_example(tiny_tokenizer, make_batch):
    batch = {**make_batch(["a dog"] * 2, [LEFT] * 2), "labels": torch.tensor([1.0, 5.0])}
    objective = WordSum(tiny_tokenizer, {"cat": LEFT})
    result = TextAttackBridge(synonym_attack(SYNONYMS), tiny_tokenizer, ANY)(batch, objective)
    assert (result.loss_before.tolist(), result.loss_after.tolist()) == ([1.0, 5.0], [2.0, 6.0])


class DrawnNumbers(textattack.transformations.WordSwap):
    """A word becomes a number from each of the global generators."""

    deterministic = False

    def _get_replacement_words(self, word):
        numpy = np.random.randint(10**6)  # noqa: NPY002
        return [f"{random.randrange(10**6)}*{numpy}*{torch.randint(10**6, ()).item()}"]


def test_rows_are_independent_and_random_choices_repeat(tiny_tokenizer, make_batch):
    misspelt = WordSum(tiny_tokenizer, {"[UNK]": (1.0, 1.0)})
    draws = textattack.Attack(
        synonym_attack(SYNONYMS).goal_function, [RepeatModification()], DrawnNumbers(), GreedyWordSwapWIR()
    )

    def attack(texts, seed=0):
        bridge = TextAttackBridge(draws, tiny_tokenizer, ANY, seed=seed)
        return bridge(make_batch(texts, [LEFT] * len(texts)), misspelt).batch["text"]

    together = attack(["dog", "cat runs"])
    set_seed(7)
    assert attack(["cat runs", "dog"]) == together[::-1]
    others = attack(["dog"], seed=1)[0].split("*")
    assert all(number != other for number, other in zip(together[0].split("*"), others, strict=True))


def test_the_global_generators_go_on_as_if_nothing_had_happened(tiny_tokenizer, make_batch):
    batch, attack = make_batch(TEXTS), TextAttackBridge("deepwordbug", tiny_tokenizer, ANY)

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    set_seed(3)
    expected = draw()
    set_seed(3)
    attack(batch, WordSum(tiny_tokenizer))
    assert draw() == expected


# The transformation


def test_synonym_swap_keeps_the_casing_and_the_limits():
    def swaps(text, **limits):
        swap = SynonymSwap(SYNONYMS, **limits)
        return [found.text for found in swap(textattack.shared.AttackedText(text))]

    assert swaps("DOG, Big!") == ["PUPPY, Big!", "CAT, Big!", "BIRD, Big!", "DOG, Large!"]
    assert swaps("dog", max_candidates=2) == ["puppy", "cat"]
    assert swaps("dog", min_cosine=0.6) == ["puppy", "cat"]
    assert swaps("tree") == []


# What it refuses


def test_errors_of_the_arguments(tiny_tokenizer):
    def expect(kind, match, attack="deepwordbug", threat_model=ANY, **arguments):
        with pytest.raises(kind, match=match):
            TextAttackBridge(attack, tiny_tokenizer, threat_model, **arguments)

    class Downloads:
        @staticmethod
        def build(model_wrapper):
            raise OSError("no route to host")

    by_gradient = textattack.Attack(
        synonym_attack(SYNONYMS).goal_function,
        [],
        SynonymSwap(SYNONYMS),
        GreedyWordSwapWIR(wir_method="gradient"),
    )
    expect(ValueError, "no recipe 'deepwordbugs'; did you mean 'deepwordbug'", attack="deepwordbugs")
    expect(TypeError, "expected the name of a recipe, a recipe class or a textattack.Attack", attack=3)
    expect(RuntimeError, r"cannot be built \(no route to host\).*download", attack=Downloads)
    expect(RuntimeError, "'hotflip' cannot be built.*gradients", attack="hotflip")
    expect(ValueError, "gradients on words use GeometryAttack", attack=by_gradient)
    expect(ValueError, "threat model is on 'image'", threat_model=ThreatModel.load("linf-4"))
    expect(ValueError, "query_budget is 0; expected at least 1", query_budget=0)


def test_errors_of_the_batch(tiny_tokenizer, make_batch):
    attack = TextAttackBridge("deepwordbug", tiny_tokenizer, ANY, max_length=5)
    batch = make_batch(["a dog", "a big red dog runs ."])
    objective = WordSum(tiny_tokenizer)
    with pytest.raises(ValueError, match="needs attention_mask in the batch"):
        attack({name: batch[name] for name in ("text", "input_ids")}, objective)
    with pytest.raises(ValueError, match=r"row 1 are not the encoding of its text 'a big.*max_length=5"):
        attack(batch, objective)
    with pytest.raises(ValueError, match=r"one loss per example, shape \(1,\)"):
        attack(make_batch(["a dog"]), lambda batch: objective(batch).sum())


@pytest.fixture
def without_textattack(monkeypatch):
    """As where TextAttack and the bridge have not been imported yet."""
    for name in ("textattack", "rmcl_hub.attacks.textattack_bridge"):
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_without_textattack_the_extra_is_named(without_textattack):
    without_textattack.setitem(sys.modules, "textattack", None)
    with pytest.raises(
        ImportError, match=r"pip install 'rmcl-hub\[textattack\]' in an environment of its own"
    ):
        importlib.import_module("rmcl_hub.attacks.textattack_bridge")


def test_without_stop_words_the_folder_is_named(without_textattack, tmp_path):
    (tmp_path / "textattack.py").write_text("raise LookupError('Resource stopwords not found.')")
    without_textattack.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"corpora/stopwords/english and set .* NLTK_DATA=<folder>"):
        importlib.import_module("rmcl_hub.attacks.textattack_bridge")
