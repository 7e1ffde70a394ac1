"""The loop that attacks every example of a data set and records the outcome, whatever the objective is."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen
from rmcl_hub.attacks.threat_model import ThreatModel

from .metrics import words_changed
from .outcomes import AttackCost, AttackNumbers, Outcome, summarise
from .pictures import AttackedPair, picture_pair

IMAGE_MEAN, IMAGE_STD = 0.5, 0.5  # ViLT's normalisation of `pixel_values`
DETERMINISM_TOLERANCE = 1e-4  # AutoAttack's rule for randomised models
PIXEL_TOLERANCE = 1e-5  # float32 rounding of normalising and back

Rows = list[dict[str, Any]]
Collate = Callable[[Rows], Batch]


@dataclass(frozen=True)
class Columns:
    """Which data set columns name an example, its cluster and its stratum; an empty `question_type` means one
    stratum.
    """

    id: str
    cluster: str
    question_type: str


VQA_COLUMNS = Columns(id="question_id", cluster="concept", question_type="question_type")
# The concept of a pair of pictures is the pair; statements that share one picture only count as independent.
NLVR2_COLUMNS = Columns(id="identifier", cluster="concept", question_type="statement_type")
CAPTION_COLUMNS = Columns(id="image_id", cluster="concept", question_type="")


@dataclass(frozen=True)
class Decision:
    """What a model says about a batch: label, prediction, whether it is right, and its loss; each of shape
    `(B,)`.
    """

    label: Tensor
    prediction: Tensor
    correct: Tensor
    loss: Tensor


Decide = Callable[[Tensor, Batch], Decision]


@dataclass
class RobustnessResult:
    """Per-example outcomes under every attack, the cost of each attack, and a few attacked pairs to look
    at.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    cost: dict[str, AttackCost] = field(default_factory=dict)
    pairs: list[AttackedPair] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, AttackNumbers]]:
        """Numbers per attack and question type with 95 % Wilson intervals, see `outcomes.summarise`."""
        return summarise({0: self.outcomes})


def attack_examples(
    model: nn.Module,
    dataset: Any,
    collate: Collate,
    attacks: Mapping[str, Attack],
    objective: JointObjective,
    decide: Decide,
    *,
    batch_size: int,
    unions: Mapping[str, Sequence[str]],
    columns: Columns,
    num_pairs: int = 0,
) -> RobustnessResult:
    """Run every attack on every example; see `robustness.evaluate_robustness` for the arguments in common.

    The model is in eval mode and its parameters are constants meanwhile; both are put back.

    Args:
        model: Owner of the parameters behind `objective`.
        dataset: Rows with `columns`.
        collate: From rows to a batch.
        attacks: Name to attack.
        objective: What the attacks maximise; its batches carry `example_index` `(B,)`, the position in the
            data set.
        decide: From joint embedding and batch to what the model says.
        batch_size: Examples per batch.
        unions: Name to the names of attacks whose worst outcome it takes.
        columns: Where rows keep id, cluster and question type.
        num_pairs: How many attacked pairs per attack to keep as pictures.

    Raises:
        ValueError: As in `robustness.evaluate_robustness`.
    """
    _check_unions(attacks, unions)
    result = RobustnessResult()
    work: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    seen = 0
    with frozen(model), tqdm(total=_length(dataset), desc="attack", unit="example") as progress:
        for rows, batch in batches(model, dataset, collate, batch_size):
            clean = _decide(objective, decide, batch)
            if seen == 0:
                _check_deterministic(objective, batch)
            for name, attack in attacks.items():
                started = time.perf_counter()
                attacked = attack(batch, objective)
                spent = (attacked.forwards, attacked.backwards, time.perf_counter() - started)
                work[name] = [total + new for total, new in zip(work[name], spent, strict=True)]
                _check_valid(name, attack.threat_model, batch, attacked.batch)
                adversarial = _decide(objective, decide, attacked.batch)
                outcomes = _outcomes(name, rows, columns, batch, attacked.batch, clean, adversarial)
                result.outcomes += outcomes
                kept = sum(pair["attack"] == name for pair in result.pairs)
                result.pairs += _pairs(outcomes, batch, attacked.batch, num_pairs - kept)
            seen += len(rows)
            progress.update(len(rows))
    _check_unique(result.outcomes)
    if seen == 0:
        raise ValueError("the data set is empty; robustness of no example is undefined. Check the filters.")
    result.cost = {name: AttackCost(*(total / seen for total in totals)) for name, totals in work.items()}
    for name, members in unions.items():
        _add_union(result, name, members)
    return result


def _check_unique(outcomes: list[Outcome]) -> None:
    keys = Counter((row.attack, row.id) for row in outcomes)
    repeated = [example for (_, example), count in keys.items() if count > 1]
    if repeated:
        raise ValueError(
            f"example id {repeated[0]!r} occurs more than once; models are compared example by example, so "
            "choose an id column with unique values (Columns.id)."
        )


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # streaming
        return None


def batches(
    model: nn.Module, dataset: Any, collate: Collate, batch_size: int
) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, with the running `example_index` `(B,)` added."""
    device = next(model.parameters()).device
    start = 0
    for rows in DataLoader(dataset, batch_size=batch_size, collate_fn=list):
        batch = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in collate(rows).items()
        }
        if len(batch["text"]) != len(rows):
            raise ValueError(
                f"collate made {len(batch['text'])} examples of {len(rows)} rows; in an evaluation every "
                "row counts, once."
            )
        batch["example_index"] = torch.arange(start, start + len(rows), device=device)
        start += len(rows)
        yield rows, batch


@torch.no_grad()
def _decide(objective: JointObjective, decide: Decide, batch: Batch) -> Decision:
    return decide(objective.embed(batch), batch)


@torch.no_grad()
def _check_deterministic(objective: JointObjective, batch: Batch) -> None:
    first, second = objective.embed(batch), objective.embed(batch)
    difference = (first - second).abs().max().item()
    if not difference <= DETERMINISM_TOLERANCE:  # also catches NaN
        raise ValueError(
            f"the model's joint representation of the same batch differs by {difference:.2g} between two "
            f"forwards in eval mode (allowed: {DETERMINISM_TOLERANCE:g}); an attack on a random model "
            "overstates its robustness. Remove the randomness (Transformers' ViLT draws random patches when "
            "max_image_length > 0) or check for NaN weights."
        )


def _check_valid(name: str, threat_model: ThreatModel, clean: Batch, attacked: Batch) -> None:
    """Refuse a batch outside the declared threat model: the constraint is recomputed, the attack is not
    trusted.
    """
    pixels = attacked["pixel_values"] * IMAGE_STD + IMAGE_MEAN
    if not torch.isfinite(pixels).all():
        raise ValueError(f"attack {name!r} returned NaN or infinite pixels; its result cannot be scored.")
    low, high = pixels.min().item(), pixels.max().item()
    if low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
        raise ValueError(
            f"attack {name!r} returned pixels in [{low:.4f}, {high:.4f}]; a picture has pixels in [0, 1]. "
            "Clamp inside the attack, before normalising."
        )
    largest = _pixel_change(clean, attacked).max().item()
    epsilon = threat_model.epsilon or 0.0
    if largest > epsilon + PIXEL_TOLERANCE:
        raise ValueError(
            f"attack {name!r} changed a pixel by {largest:.5f}, its threat model allows {epsilon:.5f}, both "
            "on the [0, 1] scale; an epsilon applied to normalised pixels would be twice as large."
        )
    padding = (clean["pixel_mask"] == 0).unsqueeze(-3)  # (B, [2,] 1, H, W)
    if ((attacked["pixel_values"] != clean["pixel_values"]) & padding).any():
        raise ValueError(f"attack {name!r} changed padding pixels; only pixels with pixel_mask == 1 exist.")
    if threat_model.modality == "image" and attacked["text"] != clean["text"]:
        raise ValueError(f"attack {name!r} changed the text, but its threat model is on the image only.")
    if "labels" in clean and not torch.equal(attacked["labels"], clean["labels"]):
        raise ValueError(f"attack {name!r} changed the labels; it may only change pixels and words.")


def _pixel_change(clean: Batch, attacked: Batch) -> Tensor:
    """Largest change of a pixel per example on the [0, 1] scale, shape `(B,)`."""
    return (attacked["pixel_values"] - clean["pixel_values"]).abs().flatten(1).amax(dim=1) * IMAGE_STD


def _outcomes(
    name: str,
    rows: Rows,
    columns: Columns,
    batch: Batch,
    attacked: Batch,
    clean: Decision,
    adversarial: Decision,
) -> list[Outcome]:
    delta = _pixel_change(batch, attacked)
    return [
        Outcome(
            id=str(row[columns.id]),
            cluster=str(row[columns.cluster]),
            question_type=str(row[columns.question_type]) if columns.question_type else "all",
            attack=name,
            label=int(clean.label[i]),
            clean_prediction=int(clean.prediction[i]),
            adversarial_prediction=int(adversarial.prediction[i]),
            clean_correct=bool(clean.correct[i]),
            adversarial_correct=bool(adversarial.correct[i]),
            loss_before=float(clean.loss[i]),
            loss_after=float(adversarial.loss[i]),
            delta_linf=float(delta[i]),
            words_changed=words_changed(batch["text"][i], attacked["text"][i]),
            num_words=len(batch["text"][i].split()),
            text=batch["text"][i],
            adversarial_text=attacked["text"][i],
        )
        for i, row in enumerate(rows)
    ]


def _pairs(outcomes: list[Outcome], batch: Batch, attacked: Batch, limit: int) -> list[AttackedPair]:
    chosen = [i for i, row in enumerate(outcomes) if row.clean_correct][: max(limit, 0)]
    return [
        picture_pair(
            outcomes[i], batch["pixel_values"][i], attacked["pixel_values"][i], batch["pixel_mask"][i]
        )
        for i in chosen
    ]


def _check_unions(attacks: Mapping[str, Attack], unions: Mapping[str, Sequence[str]]) -> None:
    if not attacks:
        raise ValueError(
            "no attacks given; pass at least one, for instance {'pgd-4': PGD.preset('standard')}."
        )
    for name, members in unions.items():
        unknown = [member for member in members if member not in attacks]
        if unknown or not members or name in attacks:
            raise ValueError(
                f"union {name!r} of {list(members)} must have its own name and list known attacks; known: "
                f"{sorted(attacks)}."
            )


def _add_union(result: RobustnessResult, name: str, members: Sequence[str]) -> None:
    """Per example the worst outcome of the members: wrong beats right, then the higher loss."""
    by_example: dict[str, list[Outcome]] = defaultdict(list)
    for row in result.outcomes:
        if row.attack in members:
            by_example[row.id].append(row)
    result.outcomes += [
        replace(max(rows, key=lambda row: (not row.adversarial_correct, row.loss_after)), attack=name)
        for rows in by_example.values()
    ]
    costs = [result.cost[member] for member in members]
    result.cost[name] = AttackCost(
        forwards=sum(cost.forwards for cost in costs),
        backwards=sum(cost.backwards for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
    )
