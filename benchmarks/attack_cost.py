"""What every attack costs at the size of ViLT-B/32, and what torchattacks' and TextAttack's cost on it.

    OMP_NUM_THREADS=1 python benchmarks/attack_cost.py --examples 1 --json attack_cost.json

TextAttack's are there where it is installed: in the environment that `make test-textattack` sets up, with
NLTK_DATA naming a folder with NLTK's stop words.

One process measures everything in turns, round after round: a forward F, a forward with the gradient of
the pixels F + B_in, an attack, both units again, the next attack. The table has medians per example:
wall-clock seconds, seconds of processor time, rows sent forwards and backwards through the encoder (counted
at the encoder, not taken from the attack), and the ratio of processor time to `forwards * F + backwards *
B_in`. One is what a search without any work of its own would have; candidate texts are embedded many at a
time, so it can be below. On a machine that others use, trust the processor time and the ratio.

The model has random weights and an answer that always wins, so that no search ends early. Texts have 12
words, and each one that is no stop word has five substitutes.
"""

import logging
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from timing import Spent, argument_parser, circumstances, show, table, timed
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BertTokenizerFast

from rmcl_hub import attacks
from rmcl_hub.attacks.base import Batch, frozen
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.evaluation.task_attack import task_objective
from rmcl_hub.evaluation.victims import Victim, as_victim
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForQuestionAnswering

logger = logging.getLogger(__name__)

TEXTS = (
    "a small dog runs on the green grass near a big house",
    "the old woman in a red dress holds a cup of tea",
)
EPSILON = 4 / 255
PGD_STEPS, APGD_STEPS, QUERIES = 10, 20, 100
B32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


class RowCounter:
    """Counts the rows that pass a victim's encoder, forwards and backwards."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def watch(self, victim: Victim) -> Victim:
        """The same victim, counted."""

        def embed(batch: Batch) -> Tensor:
            embedding = victim.embed(batch)
            self.forwards += len(embedding)
            if embedding.requires_grad:
                embedding.register_hook(self._count_backwards)
            return embedding

        return replace(victim, embed=embed)

    def _count_backwards(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class ImageOnly(nn.Module):
    """What torchattacks can attack: pixels in [0, 1] to logits, with the texts fixed."""

    def __init__(self, victim: Victim, batch: Batch) -> None:
        super().__init__()
        self.module = victim.module
        self.victim = victim
        self.batch = batch

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `(batch, classes)` of pixels `(batch, 3, height, width)`."""
        batch = {**self.batch, "pixel_values": (pixels - 0.5) / 0.5}
        return self.victim.logits(self.victim.embed(batch), batch)


@dataclass(frozen=True)
class Counted(Spent):
    """One run of one attack, for the whole batch."""

    forwards: int
    backwards: int


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--examples", type=int, default=1, help="examples per batch (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    arguments = parser.parse_args(argv)
    record = measure(arguments.examples, arguments.repetitions, SMALL if arguments.quick else B32)
    show(record, tables(record), arguments.json)
    return 0


def measure(num_examples: int, repetitions: int, size: dict[str, int]) -> dict[str, Any]:
    """All figures, JSON-ready."""
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    counter = RowCounter()
    model = _model(size)
    victim = counter.watch(as_victim(model))
    batch = _batch(tokenizer, num_examples)
    units = _units(victim, batch)
    runs = {
        **_ours(victim, batch, tokenizer),
        **_torchattacks(victim, batch),
        **_textattack(victim, batch, tokenizer),
    }
    spent: dict[str, list[Counted]] = defaultdict(list)
    with frozen(model), tqdm(total=repetitions * len(runs), unit="run") as progress:
        for unit in units.values():
            unit()  # the first call of each allocates memory
        for _ in range(repetitions):
            for attack in runs:
                progress.set_description(attack)
                for name, run in {**units, attack: runs[attack]}.items():
                    spent[name].append(_timed(run, counter))
                progress.update()
    forward = _median(spent["F"], "cpu_seconds")
    backward = _median(spent["F + B_in"], "cpu_seconds") - forward
    return {
        **circumstances(("rmcl-hub", "torch", "transformers", "torchattacks")),
        "setting": {
            "examples": num_examples,
            "repetitions": repetitions,
            "tokens": int(batch["attention_mask"].sum(dim=1).max()) + 1 + (384 // 32) ** 2,
            "answers": model.config.num_labels,
            **size,
        },
        "F": forward / num_examples,
        "B_in": backward / num_examples,
        "attacks": {
            name: _figures(of_attack, forward, backward, num_examples) for name, of_attack in spent.items()
        },
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"processor seconds per row: F {record['F']:.3f}, B_in {record['B_in']:.3f}\n"
    names = ("forwards", "backwards", "seconds", "cpu_seconds", "ratio")
    yield from table(
        ["attack", "forwards", "backwards", "wall s", "processor s", "ratio"],
        ([attack, *(row[name] for name in names)] for attack, row in record["attacks"].items()),
    )


def _model(size: dict[str, int]) -> RMCLViltForQuestionAnswering:
    torch.manual_seed(0)
    config = RMCLViltConfig(**size, num_labels=3129)  # the answers of VQA v2
    model = RMCLViltForQuestionAnswering(config).eval()
    with torch.no_grad():
        model.classifier[-1].bias[0] += 5
    return model


def _batch(tokenizer: Any, num_examples: int) -> dict[str, Any]:
    texts = [TEXTS[row % len(TEXTS)] for row in range(num_examples)]
    pixels = torch.rand(num_examples, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    return {
        "text": texts,
        **tokenizer(texts, padding=True, return_token_type_ids=True, return_tensors="pt"),
        "pixel_values": 2 * pixels - 1,
        "pixel_mask": torch.ones(num_examples, 384, 384, dtype=torch.long),
        "labels": torch.zeros(num_examples, dtype=torch.long),
    }


def _units(victim: Victim, batch: Batch) -> dict[str, Callable[[], Any]]:
    objective = task_objective(victim, "cross-entropy")

    def differentiate() -> None:
        pixels = batch["pixel_values"].detach().requires_grad_()
        torch.autograd.grad(objective({**batch, "pixel_values": pixels}).sum(), pixels)

    return {"F": lambda: victim.predict(batch), "F + B_in": differentiate}


def _ours(victim: Victim, batch: Batch, tokenizer: Any) -> dict[str, Callable[[], Any]]:
    synonyms = _synonyms(tokenizer)
    search: dict[str, Any] = {"max_change_share": 0.2, "max_candidates": 5}
    pgd = attacks.PGD(EPSILON, EPSILON / 4, PGD_STEPS)
    swap = attacks.WordSwapAttack(tokenizer, synonyms, **search)
    geometry = attacks.GeometryAttack(tokenizer, synonyms, **search)
    by_name: dict[str, Any] = {
        "noise": attacks.RandomNoise(EPSILON),
        "FGSM": attacks.PGD.preset("fgsm", EPSILON),
        f"PGD-{PGD_STEPS}": pgd,
        f"APGD-{APGD_STEPS}": attacks.APGD(EPSILON, APGD_STEPS),
        f"Square, {QUERIES} queries": attacks.SquareAttack(EPSILON, QUERIES),
        f"universal, {PGD_STEPS} steps": attacks.UniversalPerturbation(EPSILON, PGD_STEPS),
        "geometry": geometry,
        "word swap, gradient": swap,
        "word swap, random": attacks.WordSwapAttack(tokenizer, synonyms, order="random", **search),
        "exhaustive, 1 word": attacks.ExhaustiveWordSwap(tokenizer, synonyms),
        "typos": attacks.WordSwapAttack(tokenizer, attacks.Typos(), **search),
        "invisible characters": attacks.WordSwapAttack(tokenizer, attacks.InvisibleCharacters(), **search),
        "independent": attacks.IndependentAttack(pgd, geometry),
        "Co-Attack": attacks.CoAttack(pgd, swap),
        "set-guided": attacks.SetGuidedAttack(pgd, swap),
        "alternating": attacks.AlternatingAttack(pgd, swap),
    }
    objective = task_objective(victim, "cross-entropy")
    return {name: lambda attack=attack: attack(batch, objective) for name, attack in by_name.items()}


def _torchattacks(victim: Victim, batch: Batch) -> dict[str, Callable[[], Any]]:
    import torchattacks

    model = ImageOnly(victim, batch).eval()
    by_name = {
        "FGSM": torchattacks.FGSM(model, eps=EPSILON),
        f"PGD-{PGD_STEPS}": torchattacks.PGD(
            model, eps=EPSILON, alpha=EPSILON / 4, steps=PGD_STEPS, random_start=False
        ),
        f"APGD-{APGD_STEPS}": torchattacks.APGD(model, eps=EPSILON, steps=APGD_STEPS),
        f"Square, {QUERIES} queries": torchattacks.Square(model, eps=EPSILON, n_queries=QUERIES),
    }
    pixels = batch["pixel_values"] / 2 + 0.5
    return {
        f"torchattacks {name}": lambda attack=attack: attack(pixels, batch["labels"])
        for name, attack in by_name.items()
    }


def _textattack(victim: Victim, batch: Batch, tokenizer: Any) -> dict[str, Callable[[], Any]]:
    """Two recipes through the bridge, within the budget of our own word attacks; none without TextAttack."""
    try:
        from rmcl_hub.attacks.textattack_bridge import TextAttackBridge, synonym_attack
    except ImportError as error:
        logger.warning("TextAttack is left out: %s", error)
        return {}
    words = ThreatModel.load("words-20pct")
    by_name = {
        "DeepWordBug": TextAttackBridge("deepwordbug", tokenizer, replace(words, word_edits="typos")),
        "greedy synonyms": TextAttackBridge(synonym_attack(_synonyms(tokenizer), 5), tokenizer, words),
    }
    objective = task_objective(victim, "cross-entropy")
    return {
        f"TextAttack {name}": lambda attack=attack: attack(batch, objective)
        for name, attack in by_name.items()
    }


def _synonyms(tokenizer: Any) -> attacks.SynonymTable:
    """Five words of one piece for every word that is no stop word: what they mean costs nothing."""
    others = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) == 6)
    words = sorted({word for text in TEXTS for word in text.split()})
    return attacks.SynonymTable(
        {word: [(other, 0.9) for other in others[5 * row : 5 * row + 5]] for row, word in enumerate(words)}
    )


def _timed(run: Callable[[], Any], counter: RowCounter) -> Counted:
    counter.forwards = counter.backwards = 0
    spent = timed(run)
    return Counted(spent.seconds, spent.cpu_seconds, counter.forwards, counter.backwards)


def _median(spent: list[Counted], name: str) -> float:
    return statistics.median(getattr(one, name) for one in spent)


def _figures(spent: list[Counted], forward: float, backward: float, num_examples: int) -> dict[str, float]:
    """Per example; `forward` and `backward` are for a batch."""
    medians = {
        name: _median(spent, name) / num_examples
        for name in ("forwards", "backwards", "seconds", "cpu_seconds")
    }
    expected = (medians["forwards"] * forward + medians["backwards"] * backward) / num_examples
    return {**medians, "ratio": medians["cpu_seconds"] / expected}


if __name__ == "__main__":
    sys.exit(main())
