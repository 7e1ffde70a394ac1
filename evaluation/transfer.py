"""How well adversarial examples made on one model fool another: the attacker without the model."""

import copy
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rmcl_hub.attacks.base import Attack, AttackResult, Batch, Objective, frozen
from rmcl_hub.attacks.threat_model import ThreatModel

from .attack_loop import at_8_bits
from .attack_suite import LossAttack
from .outcomes import OVERALL, AttackCost, AttackNumbers, Outcome, summarise
from .task_attack import attack_task, task_objective
from .task_losses import cross_entropy_to_label, is_correct
from .tasks import Task, build_task
from .victims import Victim, as_victim


class TransferAttack:
    """An attack that searches on a source model, whatever the objective it is called with.

    What it finds is handed over as it is: `loss_before` and `loss_after` are the source's losses, and the
    target's loss may well be lower than before. The target is not asked once. Pixels and token ids are handed
    over too, so both models must read the same batch: one image normalisation, one tokenizer.

    Cost: that of the attack, all on the source; with a source `Victim` and the loss `"distance"`, one forward
    per example more, for its clean embedding.

    Args:
        attack: The attack, with its loss where the source is a `Victim`; cross entropy without one.
        source: The model that is searched, or its objective. A `Victim` is in eval mode meanwhile.
    """

    def __init__(self, attack: Attack | LossAttack, source: Victim | Objective) -> None:
        self.attack = attack if isinstance(attack, LossAttack) else LossAttack(attack)
        self.source = source

    @property
    def threat_model(self) -> ThreatModel:
        """What the attack may do, with access to another model than the one under attack."""
        return replace(self.attack.attack.threat_model, access="transfer")

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        """Attack a batch on the source; `objective`, the target's, is not called."""
        if not isinstance(self.source, Victim):
            return self.attack.attack(batch, self.source)
        own, extra = dict(batch), 0
        with frozen(self.source.module):
            if self.attack.loss == "distance":
                with torch.no_grad():
                    own["clean_embedding"] = self.source.embed(batch)
                extra = len(own["clean_embedding"])
            found = self.attack.attack(own, task_objective(self.source, self.attack.loss))
        attacked = {name: values for name, values in found.batch.items() if name != "clean_embedding"}
        if "clean_embedding" in batch:
            attacked["clean_embedding"] = batch["clean_embedding"]  # the target's
        return replace(found, batch=attacked, forwards=found.forwards + extra)


def transfer_matrix(
    models: Mapping[str, Any],
    processor: Any,
    dataset: Any,
    task: str | Task,
    attacks: Mapping[str, Attack | LossAttack],
    *,
    batch_size: int,
) -> dict[str, Any]:
    """Attack every model, and show what is found to all the others.

    The diagonal is the white-box attack itself, and every attack starts from the same random numbers on every
    source. A target's attack success is over the examples that the target has right before, as everywhere.

    Args:
        models: Name to model or `Victim`, at least one. They read the same batches: one processor for all,
            and for `"vqa"` the same answers.
        processor: The one that the models were trained with.
        dataset: See `tasks.build_task`.
        task: As in `robustness.evaluate_robustness`.
        attacks: Name to attack, with the loss that it maximises; cross entropy without one.
        batch_size: Examples per batch.

    Returns:
        JSON-ready: `task`, `num_examples`, `clean_accuracy` `{target: Rate}`, and `attacks` `{attack:
        {"threat_model", "loss", "cost": {source: {"forwards", "backwards", "seconds"}}, "matrix": {source:
        {target: numbers}}}}`. `numbers` are those of `outcomes.AttackNumbers`, rates with their number of
        examples and Wilson interval. Costs are per example, on the source alone.

    Raises:
        ValueError: If there are no models, their answers differ, or as in `task_attack.attack_task`.
    """
    if not models:
        raise ValueError("no models given; pass at least one, for instance {'rmcl': model}.")
    task = _common_task(models, processor, task)
    victims = {name: as_victim(model, processor, task.name) for name, model in models.items()}
    named = {
        name: attack if isinstance(attack, LossAttack) else LossAttack(attack)
        for name, attack in attacks.items()
    }
    shown: dict[tuple[str, str], _ShownAttack] = {}
    outcomes: dict[tuple[str, str], list[Outcome]] = defaultdict(list)  # of the white-box attacks
    for source, victim in victims.items():
        others = {name: other for name, other in victims.items() if name != source}
        mine = {name: _ShownAttack(copy.deepcopy(attack.attack), others) for name, attack in named.items()}
        losses = {name: LossAttack(attack, named[name].loss) for name, attack in mine.items()}
        for row in attack_task(victim, dataset, task, losses, batch_size=batch_size).outcomes:
            outcomes[source, row.attack].append(row)
        shown.update({(source, name): attack for name, attack in mine.items()})

    def numbers(source: str, target: str, attack: str) -> AttackNumbers:
        rows = outcomes[target, attack]
        if source != target:
            rows = list(map(_handed_over, outcomes[source, attack], rows, shown[source, attack].seen[target]))
        return summarise({0: rows})[attack][OVERALL]

    first = next(iter(named))
    num_examples = len(outcomes[next(iter(victims)), first])
    return {
        "task": task.name,
        "num_examples": num_examples,
        "clean_accuracy": {name: numbers(name, name, first)["clean_accuracy"] for name in victims},
        "attacks": {
            attack: {
                "threat_model": named[attack].attack.threat_model.to_dict(),
                "loss": named[attack].loss,
                "cost": {source: asdict(shown[source, attack].cost(num_examples)) for source in victims},
                "matrix": {
                    source: {target: numbers(source, target, attack) for target in victims}
                    for source in victims
                },
            }
            for attack in named
        },
    }


def _common_task(models: Mapping[str, Any], processor: Any, task: str | Task) -> Task:
    """The task of all models; the same answer must be the same logit of all."""
    if isinstance(task, Task):
        return task
    tasks = {name: build_task(task, model, processor) for name, model in models.items()}
    first = next(iter(tasks))
    for name, other in tasks.items():
        if list(other.answers) != list(tasks[first].answers):
            raise ValueError(
                f"the answers of {name!r} are not those of {first!r} (model.config.id2label), so their "
                "predictions cannot be compared; compare heads trained on one list of answers."
            )
    return tasks[first]


@dataclass(frozen=True)
class _Verdict:
    """What a target says about one example of another model's making; names as in `Outcome`."""

    adversarial_prediction: int
    adversarial_correct: bool
    loss_after: float
    correct_8bit: bool


class _ShownAttack:
    """An attack whose results other models are asked about on the spot: nothing has to be stored.

    Attributes:
        seen: Per target, its verdicts in the order of the examples.
    """

    def __init__(self, attack: Attack, targets: Mapping[str, Victim]) -> None:
        self.attack = attack
        self.targets = targets
        self.seen: dict[str, list[_Verdict]] = defaultdict(list)
        self._work = (0, 0, 0.0)

    @property
    def threat_model(self) -> ThreatModel:
        return self.attack.threat_model

    def __call__(self, batch: Batch, objective: Objective) -> AttackResult:
        started = time.perf_counter()
        found = self.attack(batch, objective)
        spent = (found.forwards, found.backwards, time.perf_counter() - started)
        forwards, backwards, seconds = (total + new for total, new in zip(self._work, spent, strict=True))
        self._work = (int(forwards), int(backwards), seconds)
        for name, target in self.targets.items():
            self.seen[name] += _ask(target, found.batch)
        return found

    def cost(self, num_examples: int) -> AttackCost:
        """Mean work per example, without that of asking the targets."""
        return AttackCost(*(total / num_examples for total in self._work))


def _ask(target: Victim, attacked: Batch) -> list[_Verdict]:
    labels = attacked["labels"]
    with frozen(target.module):
        logits = target.predict(attacked)
        rounded = target.predict(at_8_bits(target, attacked))
    prediction = logits.argmax(dim=-1)  # (batch,)
    columns = (
        prediction,
        is_correct(prediction, labels),
        cross_entropy_to_label(logits, labels),
        is_correct(rounded.argmax(dim=-1), labels),
    )
    return [_Verdict(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _handed_over(source: Outcome, target: Outcome, verdict: _Verdict) -> Outcome:
    """The source's perturbation, the target's answers before and after it."""
    return replace(
        source,
        clean_prediction=target.clean_prediction,
        clean_correct=target.clean_correct,
        loss_before=target.loss_before,
        **asdict(verdict),
    )
