"""The loop that attacks every example of a data set and records the outcome, whatever the objective is."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen
from rmcl_hub.attacks.threat_model import ThreatModel

from .metrics import PIXEL_TOLERANCE, within_radius, words_changed
from .outcomes import AttackCost, AttackNumbers, Outcome, summarise
from .pictures import AttackedPair, picture_pair
from .victims import Victim

DETERMINISM_TOLERANCE = 1e-4  # AutoAttack's rule for randomised models

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
ENTAILMENT_COLUMNS = Columns(id="pair_id", cluster="concept", question_type="")
CAPTION_COLUMNS = Columns(id="image_id", cluster="concept", question_type="")


@dataclass(frozen=True)
class Decision:
    """What a model says about a batch: label, prediction, whether it is right, and its loss; each of shape
    `(B,)`. Where answers are right to a degree, as in VQA v2, `score` is that of the prediction, in [0, 1].
    """

    label: Tensor
    prediction: Tensor
    correct: Tensor
    loss: Tensor
    score: Tensor | None = None


Decide = Callable[[Tensor, Batch], Decision]
Keep = Callable[[str, list[Outcome], Batch], None]
"""(name of the union, its outcomes, their `pixel_values` and `text`) of one batch."""


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
    victim: Victim,
    dataset: Any,
    collate: Collate,
    attacks: Mapping[str, Attack],
    objectives: Mapping[str, JointObjective],
    decide: Decide,
    *,
    batch_size: int,
    unions: Mapping[str, Sequence[str]],
    columns: Columns,
    num_pairs: int = 0,
    keep: Keep | None = None,
    misencoded: Callable[[Batch], int | None] | None = None,
) -> RobustnessResult:
    """Run every attack on every example; see `task_attack.attack_task` for the arguments in common.

    The model is in eval mode and its parameters are constants meanwhile; both are put back.

    Args:
        victim: The model behind the objectives.
        dataset: Rows with `columns`.
        collate: From rows to a batch.
        attacks: Name to attack.
        objectives: What each attack maximises. Batches carry `example_index` `(B,)`, the position in the data
            set, and `clean_embedding` `(B, D)`.
        decide: From embedding and batch to what the model says.
        batch_size: Examples per batch.
        unions: Name to the names of attacks whose worst outcome it takes.
        columns: Where rows keep id, cluster and question type.
        num_pairs: How many attacked pairs per attack to keep as pictures.
        keep: Called for every batch and union with the worst attacked examples, to store them.
        misencoded: The first row of an attacked batch whose ids are not those of its text, None if there is
            none. Without it, ids are not looked at.

    Raises:
        ValueError: As in `task_attack.attack_task`.
    """
    _check_unions(attacks, unions)
    result = RobustnessResult()
    work: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    seen = 0
    with frozen(victim.module), tqdm(total=_length(dataset), desc="attack", unit="example") as progress:
        for rows, batch in batches(victim, dataset, collate, batch_size):
            clean = _decide(victim, decide, batch)
            if seen == 0:
                _check_deterministic(victim, batch)
            attacked: dict[str, Batch] = {}
            outcomes: dict[str, list[Outcome]] = {}
            for name, attack in attacks.items():
                started = time.perf_counter()
                found = attack(batch, objectives[name])
                spent = (found.forwards, found.backwards, time.perf_counter() - started)
                work[name] = [total + new for total, new in zip(work[name], spent, strict=True)]
                _check_valid(name, attack.threat_model, victim, batch, found.batch)
                if misencoded is not None and (row := misencoded(found.batch)) is not None:
                    raise _not_the_encoding(name, found.batch["text"][row])
                attacked[name] = found.batch
                outcomes[name] = _outcomes(name, rows, columns, victim, batch, found.batch, clean, decide)
                result.pairs += _pairs(victim, outcomes[name], batch, found.batch, num_pairs, result.pairs)
            for name, members in unions.items():
                worst = [_worst([outcomes[member][row] for member in members]) for row in range(len(rows))]
                outcomes[name] = [replace(row, attack=name, found_by=row.attack) for row in worst]
                chosen = _rows_of(attacked, [row.attack for row in worst])
                result.pairs += _pairs(victim, outcomes[name], batch, chosen, num_pairs, result.pairs)
                if keep is not None:
                    keep(name, outcomes[name], chosen)
            result.outcomes += [row for group in outcomes.values() for row in group]
            seen += len(rows)
            progress.update(len(rows))
    _check_unique(result.outcomes)
    if seen == 0:
        raise ValueError("the data set is empty; robustness of no example is undefined. Check the filters.")
    result.cost = {name: AttackCost(*(total / seen for total in totals)) for name, totals in work.items()}
    for name, members in unions.items():
        result.cost[name] = _sum([result.cost[member] for member in members])
    return result


def _worst(rows: Sequence[Outcome]) -> Outcome:
    """Wrong beats right, then wrong at 8 bits, then the higher loss. The soft score is the lowest of all."""
    worst = max(rows, key=lambda row: (not row.adversarial_correct, not row.correct_8bit, row.loss_after))
    scores = [row.adversarial_score for row in rows if row.adversarial_score is not None]
    return replace(worst, adversarial_score=min(scores, default=None))


def _rows_of(attacked: Mapping[str, Batch], chosen: Sequence[str]) -> Batch:
    """Row i of the batch of `chosen[i]`: pixels and texts."""
    pixels = torch.stack([attacked[name]["pixel_values"][row] for row, name in enumerate(chosen)])
    texts = [attacked[name]["text"][row] for row, name in enumerate(chosen)]
    return {"pixel_values": pixels, "text": texts}


def _sum(costs: Sequence[AttackCost]) -> AttackCost:
    return AttackCost(
        forwards=sum(cost.forwards for cost in costs),
        backwards=sum(cost.backwards for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
    )


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


def batches(victim: Victim, dataset: Any, collate: Collate, batch_size: int) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batch on the model's device, with the running `example_index` `(B,)` and the
    `clean_embedding` `(B, D)` added.
    """
    start = 0
    # A generator of its own, for without one the loader draws a seed from the global one.
    for rows in DataLoader(dataset, batch_size, collate_fn=list, generator=torch.Generator()):
        batch = victim.on_device(collate(rows))
        if len(batch["text"]) != len(rows):
            raise ValueError(
                f"collate made {len(batch['text'])} examples of {len(rows)} rows; in an evaluation every "
                "row counts, once."
            )
        batch["example_index"] = torch.arange(start, start + len(rows), device=victim.device)
        with torch.no_grad():
            batch["clean_embedding"] = victim.embed(batch)
        start += len(rows)
        yield rows, batch


@torch.no_grad()
def _decide(victim: Victim, decide: Decide, batch: Batch) -> Decision:
    return decide(victim.embed(batch), batch)


@torch.no_grad()
def _check_deterministic(victim: Victim, batch: Batch) -> None:
    difference = (victim.embed(batch) - batch["clean_embedding"]).abs().max().item()
    if not difference <= DETERMINISM_TOLERANCE:  # also catches NaN
        raise ValueError(
            f"the model's joint representation of the same batch differs by {difference:.2g} between two "
            f"forwards in eval mode (allowed: {DETERMINISM_TOLERANCE:g}); an attack on a random model "
            "overstates its robustness. Remove the randomness (Transformers' ViLT draws random patches when "
            "max_image_length > 0) or check for NaN weights."
        )


def _check_valid(name: str, threat_model: ThreatModel, victim: Victim, clean: Batch, attacked: Batch) -> None:
    """Refuse a batch outside the declared threat model: the constraint is recomputed, the attack is not
    trusted.
    """
    _check_pixels(name, threat_model, victim, clean, attacked)
    if threat_model.modality == "image" and attacked["text"] != clean["text"]:
        raise ValueError(f"attack {name!r} changed the text, but its threat model is on the image only.")
    for before, after in zip(clean["text"], attacked["text"], strict=True):
        check_words(name, threat_model, before, after)
    if "labels" in clean and not torch.equal(attacked["labels"], clean["labels"]):
        raise ValueError(f"attack {name!r} changed the labels; it may only change pixels and words.")


def check_words(name: str, threat_model: ThreatModel, before: str, after: str) -> None:
    """Refuse a text that an attack changed more than its threat model allows.

    Raises:
        ValueError: If it did.
    """
    changed, budget = words_changed(before, after), threat_model.word_budget(before)
    if changed > budget:
        raise ValueError(
            f"attack {name!r} changed {changed} words of {before!r} (to {after!r}), its threat model "
            f"allows {budget}."
        )


def _not_the_encoding(name: str, text: str) -> ValueError:
    return ValueError(
        f"attack {name!r} returned input_ids that are not the encoding of its text {text!r}; an attack on "
        "ids that no text has does not count. Change the string and tokenise it again."
    )


def _check_pixels(
    name: str, threat_model: ThreatModel, victim: Victim, clean: Batch, attacked: Batch
) -> None:
    pixels = to_unit_range(victim, attacked["pixel_values"])
    if not torch.isfinite(pixels).all():
        raise ValueError(f"attack {name!r} returned NaN or infinite pixels; its result cannot be scored.")
    padding = (clean["pixel_mask"] == 0).unsqueeze(-3)  # (B, [2,] 1, H, W)
    if ((attacked["pixel_values"] != clean["pixel_values"]) & padding).any():
        raise ValueError(f"attack {name!r} changed padding pixels; only pixels with pixel_mask == 1 exist.")
    real = pixels[~padding.expand_as(pixels)]
    low, high = real.min().item(), real.max().item()
    if low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
        raise ValueError(
            f"attack {name!r} returned pixels in [{low:.4f}, {high:.4f}]; a picture has pixels in [0, 1]. "
            "Clamp inside the attack, before normalising."
        )
    largest = pixel_change(victim, clean, attacked, threat_model.norm or "linf").max().item()
    epsilon = threat_model.epsilon or 0.0
    if not within_radius(largest, epsilon):
        raise ValueError(
            f"attack {name!r} changed a picture by {largest:.5f} ({threat_model.norm}), its threat model "
            f"allows {epsilon:.5f}, both for pixels in [0, 1]; an epsilon applied to normalised pixels would "
            f"be {1 / min(_channels(victim.image_std)):.3g} times as large."
        )


def _channels(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, float | int) else list(value)


def _per_channel(value: float | Sequence[float], pixels: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=pixels.dtype, device=pixels.device).reshape(-1, 1, 1)


def to_unit_range(victim: Victim, pixel_values: Tensor) -> Tensor:
    """Normalised `pixel_values` as pixels in [0, 1]."""
    mean, std = (_per_channel(value, pixel_values) for value in (victim.image_mean, victim.image_std))
    return pixel_values * std + mean


def pixel_change(victim: Victim, clean: Batch, attacked: Batch, norm: str = "linf") -> Tensor:
    """Norm of the change of the pixels of each example on the [0, 1] scale, shape `(B,)`."""
    delta = attacked["pixel_values"] - clean["pixel_values"]
    delta = (delta * _per_channel(victim.image_std, delta)).flatten(1)  # (B, all pixels)
    return delta.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(delta, dim=1)


def at_8_bits(victim: Victim, batch: Batch) -> Batch:
    """The batch with its real pixels rounded to 256 levels, as in a stored picture."""
    pixels = batch["pixel_values"]
    mean, std = (_per_channel(value, pixels) for value in (victim.image_mean, victim.image_std))
    rounded = ((255 * (pixels * std + mean)).round() / 255 - mean) / std
    return {**batch, "pixel_values": torch.where((batch["pixel_mask"] != 0).unsqueeze(-3), rounded, pixels)}


def _outcomes(
    name: str,
    rows: Rows,
    columns: Columns,
    victim: Victim,
    batch: Batch,
    attacked: Batch,
    clean: Decision,
    decide: Decide,
) -> list[Outcome]:
    adversarial = _decide(victim, decide, attacked)
    rounded = adversarial  # words alone changed: the picture is the one that was stored
    if not torch.equal(attacked["pixel_values"], batch["pixel_values"]):
        rounded = _decide(victim, decide, at_8_bits(victim, attacked))
    linf, l2 = (pixel_change(victim, batch, attacked, norm) for norm in ("linf", "l2"))
    return [
        Outcome(
            id=str(row[columns.id]),
            cluster=str(row[columns.cluster]),
            question_type=str(row[columns.question_type]) if columns.question_type else "all",
            attack=name,
            found_by=name,
            label=int(clean.label[i]),
            clean_prediction=int(clean.prediction[i]),
            adversarial_prediction=int(adversarial.prediction[i]),
            clean_correct=bool(clean.correct[i]),
            adversarial_correct=bool(adversarial.correct[i]),
            loss_before=float(clean.loss[i]),
            loss_after=float(adversarial.loss[i]),
            correct_8bit=bool(rounded.correct[i]),
            delta_linf=float(linf[i]),
            delta_l2=float(l2[i]),
            words_changed=words_changed(batch["text"][i], attacked["text"][i]),
            num_words=len(batch["text"][i].split()),
            text=batch["text"][i],
            adversarial_text=attacked["text"][i],
            clean_score=None if clean.score is None else float(clean.score[i]),
            adversarial_score=None if adversarial.score is None else float(adversarial.score[i]),
        )
        for i, row in enumerate(rows)
    ]


def _pairs(
    victim: Victim,
    outcomes: list[Outcome],
    batch: Batch,
    attacked: Batch,
    limit: int,
    kept: list[AttackedPair],
) -> list[AttackedPair]:
    missing = limit - sum(pair["attack"] == outcomes[0].attack for pair in kept)
    chosen = [i for i, row in enumerate(outcomes) if row.clean_correct][: max(missing, 0)]
    before = to_unit_range(victim, batch["pixel_values"])
    after = to_unit_range(victim, attacked["pixel_values"])
    return [picture_pair(outcomes[i], before[i], after[i], batch["pixel_mask"][i]) for i in chosen]


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
