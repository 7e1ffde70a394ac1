"""TextAttack's recipes as attacks on the text of image-text pairs.

Importing this module imports TextAttack, which takes half a minute and an environment of its own; nothing
else in the package does.
"""

import copy
import difflib
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .base import AttackResult, Batch, Objective, check_losses, isolated_rng, select_rows
from .synonyms import SynonymTable, match_case
from .text_encoding import check_encoding, encode_texts
from .threat_model import ThreatModel

try:
    import textattack  # pyright: ignore[reportMissingImports]
    from nltk import edit_distance  # pyright: ignore[reportMissingImports]
    from textattack.attack_args import ATTACK_RECIPE_NAMES  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        f"TextAttack cannot be imported ({error}). Run pip install 'rmcl-hub[textattack]' in an environment "
        "of its own: TextAttack keeps transformers below 5 and would downgrade this one."
    ) from error
except LookupError as error:
    raise ImportError(
        "TextAttack reads NLTK's English stop words when it is imported, and they are not there. Run "
        "python -m nltk.downloader stopwords; without a network, write them, one a line, to "
        "<folder>/corpora/stopwords/english and set the environment variable NLTK_DATA=<folder>."
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextAttackBridge:
    """Run a TextAttack attack (Morris et al. 2020, arXiv:2005.05909) on the text of every example, with its
    image fixed.

    TextAttack's search, transformation and constraints are used as they are. Its goal is replaced: the score
    of a text is the objective of the example with that text, tokenised from scratch, beside the example's own
    image and labels. So the search sees the image through every answer. Black box.

    The adversarial text is the one that TextAttack ends with, if its objective is above that of the clean
    text and it is within the budget of the threat model; otherwise it is the clean text. The budget is also
    one of the attack's constraints, in whitespace-separated words (`evaluation.metrics.words_changed`). What
    becomes of a word is the recipe's choice; the threat model's `word_edits` should say the same.

    Without downloads run: `"deepwordbug"` (misspellings) and `synonym_attack`; with NLTK's WordNet also
    `"pwws"`. Most other recipes fetch word vectors or language models.

    Cost in example rows: one forward for each text that TextAttack asks about and does not find in its cache,
    the clean one included. No backwards. `synonym_attack` costs, per example, one forward for the clean text,
    one for each word that is no stop word and one for each substitute tried.

    Args:
        attack: Name of a recipe (as on TextAttack's command line), a recipe class, or an attack; the goal of
            the latter is not used. None that needs gradients.
        tokenizer: The one that made `input_ids`.
        threat_model: What counts as allowed, modality `"text"`.
        max_length: Truncation length that made `input_ids`, in tokens with the special ones.
        query_budget: Most texts that TextAttack may ask about per example, recurring ones included. None for
            no limit.
        stop_at: The search ends when the objective exceeds this; examples that exceed it clean are left
            alone. 0 suits an objective that is positive exactly for wrong predictions, a margin. The default
            goes on to the end of the search: under a cross entropy, which is always positive, 0 would attack
            nothing.
        seed: Of the random choices of the recipe, drawn anew for every example.

    Raises:
        ValueError: If there is no such recipe, it needs gradients, or another argument is out of range.
        TypeError: If `attack` is none of the three.
        RuntimeError: If the recipe cannot be built, mostly for want of a download.
    """

    def __init__(
        self,
        attack: Any,
        tokenizer: "PreTrainedTokenizerBase",
        threat_model: ThreatModel,
        max_length: int = 40,
        query_budget: int | None = None,
        stop_at: float = math.inf,
        seed: int = 0,
    ) -> None:
        if threat_model.modality != "text":
            raise ValueError(
                f"TextAttack changes the text only, but the threat model is on {threat_model.modality!r}; "
                "pass one on 'text', such as ThreatModel.load('words-20pct')."
            )
        if query_budget is not None and query_budget < 1:
            raise ValueError(
                f"query_budget is {query_budget}; expected at least 1, for the clean text costs one query."
            )
        self.tokenizer = tokenizer
        self.threat_model = threat_model
        self.max_length = max_length
        self.query_budget = query_budget
        self.stop_at = stop_at
        self.seed = seed
        self._victim = _Victim()
        with _silent_log():
            original = _build(attack, self._victim)
            goal = _ObjectiveGoal(self._victim, stop_at, query_budget)
        if not original.is_black_box:
            raise ValueError(
                "TextAttack's gradient attacks need a model of its own; for gradients on words use "
                "GeometryAttack."
            )
        constraints = [*original.constraints, *original.pre_transformation_constraints]
        self._attack = textattack.Attack(
            goal,
            [*constraints, _WordBudget(threat_model)],
            original.transformation,
            copy.copy(original.search_method),  # Attack rewires it
        )

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack the texts of a batch.

        Args:
            batch: Must hold `text` (strings) and `input_ids`, `attention_mask` (their encoding).
            objective: Loss per example, which is maximised.

        Returns:
            The batch with adversarial `text` and its encoding, padded to the longest text, and the cost.

        Raises:
            ValueError: If the texts are missing or `input_ids` is not their encoding.
        """
        check_encoding(self.tokenizer, batch, self.max_length, type(self).__name__)
        texts, before, after, forwards = [], [], [], 0
        for row in tqdm(range(len(batch["text"])), desc="textattack", unit="example", leave=False):
            text, losses = self._attack_row(batch, row, objective)
            texts.append(text)
            before.append(losses[batch["text"][row]])
            after.append(losses[text])
            forwards += self._victim.forwards
        adversarial = {**batch, **encode_texts(self.tokenizer, texts, self.max_length, batch)}
        return AttackResult(adversarial, torch.stack(before), torch.stack(after), forwards, 0)

    def _attack_row(self, batch: Batch, row: int, objective: Objective) -> tuple[str, dict[str, Tensor]]:
        """The adversarial text of one example, and the loss `()` of every text that was asked about."""
        clean = batch["text"][row]

        def answer(texts: list[str]) -> Tensor:
            encoded = encode_texts(self.tokenizer, texts, self.max_length, batch)
            rows = {**select_rows(batch, [row] * len(texts)), **encoded}
            with torch.no_grad():
                return check_losses(objective(rows), len(texts))

        with isolated_rng(batch["input_ids"]), _seeded(self.seed):
            self._attack.clear_cache()  # its key is the text, but the answer depends on the image
            losses = self._victim.open(answer)
            result = self._attack.attack(clean, 0)  # the label is in the objective
        text = result.perturbed_result.attacked_text.text
        stronger = bool(losses[text] > losses[clean])
        # Not every search asks the constraints, nor ends with the best text that it saw.
        return (text if stronger and _is_within_budget(self.threat_model, clean, text) else clean), losses


class SynonymSwap(textattack.transformations.WordSwap):
    """TextAttack transformation: a word becomes one of its substitutes in a `SynonymTable`, in its casing.

    Args:
        synonyms: Where substitutes come from.
        max_candidates: Most substitutes tried per word. None for all.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
    """

    def __init__(
        self, synonyms: SynonymTable, max_candidates: int | None = None, min_cosine: float = -1.0
    ) -> None:
        super().__init__()
        self.synonyms = synonyms
        self.max_candidates = max_candidates
        self.min_cosine = min_cosine

    def _get_replacement_words(self, word: str) -> list[str]:
        candidates = [other for other, cosine in self.synonyms.candidates(word) if cosine >= self.min_cosine]
        return [match_case(other, word) for other in candidates[: self.max_candidates]]

    def extra_repr_keys(self) -> list[str]:
        """What `repr` shows."""
        return ["max_candidates", "min_cosine"]


def synonym_attack(
    synonyms: SynonymTable, max_candidates: int | None = None, min_cosine: float = -1.0
) -> "textattack.Attack":
    """TextFooler's search (Jin et al. 2020, arXiv:1907.11932) over a synonym table, without any download.

    Words are ranked by the loss after their deletion, then replaced one after the other by the substitute
    with the largest loss, each word once, stop words never. TextFooler's word vectors are the table's
    business; its checks of part of speech and of sentence similarity, which need downloads, are left out.

    Args:
        synonyms: Where substitutes come from.
        max_candidates: Most substitutes tried per word. None for all.
        min_cosine: Substitutes below this cosine to the word, in the table's space, are not tried.
    """
    with _silent_log():
        return textattack.Attack(
            _ObjectiveGoal(_Victim(), math.inf, None),
            [
                textattack.constraints.pre_transformation.RepeatModification(),
                textattack.constraints.pre_transformation.StopwordModification(),
            ],
            SynonymSwap(synonyms, max_candidates, min_cosine),
            textattack.search_methods.GreedyWordSwapWIR(wir_method="delete"),
        )


class _Victim(textattack.models.wrappers.ModelWrapper):
    """What TextAttack takes for the model: one example of a batch, waiting for its text."""

    model = None  # TextAttack looks at its class

    def open(self, answer: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
        """Turn to another example; the dictionary fills with the loss of every text asked about."""
        self.answer = answer
        self.forwards = 0
        self.losses: dict[str, Tensor] = {}
        return self.losses

    def __call__(self, text_input_list: list[str], **kwargs: Any) -> Tensor:
        losses = self.answer(text_input_list)
        self.forwards += len(text_input_list)
        self.losses.update(zip(text_input_list, losses, strict=True))
        return losses


class _ObjectiveGoal(textattack.goal_functions.GoalFunction):
    """Score a text by the objective, and be content when it exceeds `stop_at`."""

    def __init__(self, victim: _Victim, stop_at: float, query_budget: int | None) -> None:
        super().__init__(victim, query_budget=math.inf if query_budget is None else query_budget)
        self.stop_at = stop_at

    def _is_goal_complete(self, model_output: Tensor, attacked_text: Any) -> bool:
        return bool(model_output > self.stop_at)

    def _get_score(self, model_output: Tensor, attacked_text: Any) -> float:
        return model_output.nan_to_num(nan=-math.inf).item()  # a NaN must not win a comparison

    def _process_model_outputs(self, inputs: list[Any], outputs: Tensor) -> Tensor:
        return outputs

    def _goal_function_result_type(self) -> type:
        return textattack.goal_function_results.ClassificationGoalFunctionResult


class _WordBudget(textattack.constraints.Constraint):
    """No more words may differ from the clean text than the threat model allows.

    TextAttack's own MaxWordsPerturbed takes a budget of 0 for none, rounds shares up, and compares word by
    word at equal places, so that a deletion hides or multiplies changes.
    """

    def __init__(self, threat_model: ThreatModel) -> None:
        super().__init__(compare_against_original=True)
        self.threat_model = threat_model

    def _check_constraint(self, transformed_text: Any, reference_text: Any) -> bool:
        return _is_within_budget(self.threat_model, reference_text.text, transformed_text.text)


def _is_within_budget(threat_model: ThreatModel, clean: str, text: str) -> bool:
    return edit_distance(clean.split(), text.split()) <= threat_model.word_budget(clean)


def _build(attack: Any, victim: _Victim) -> "textattack.Attack":
    if isinstance(attack, textattack.Attack):
        return attack
    name = attack
    if isinstance(attack, str):
        if attack not in ATTACK_RECIPE_NAMES:
            near = difflib.get_close_matches(attack, ATTACK_RECIPE_NAMES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"TextAttack has no recipe {attack!r}; {hint}It has {', '.join(sorted(ATTACK_RECIPE_NAMES))}."
            )
        attack = getattr(textattack.attack_recipes, ATTACK_RECIPE_NAMES[attack].rpartition(".")[2])
    if not hasattr(attack, "build"):
        raise TypeError(
            f"attack is {attack!r}; expected the name of a recipe, a recipe class or a textattack.Attack."
        )
    try:
        return attack.build(victim)
    except Exception as error:
        raise RuntimeError(
            f"TextAttack's recipe {name!r} cannot be built ({error}). Most recipes download word vectors or "
            "language models when they are built, or need gradients of TextAttack's own models; "
            "'deepwordbug' and synonym_attack(...) need neither."
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that TextAttack draws from; Python's and NumPy's are put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _silent_log() -> Iterator[None]:
    """Without TextAttack's warnings that it does not know this goal and this model."""
    logger = textattack.shared.logger
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
