"""What TextAttack's attacks cost through the bridge at the size of ViLT-B/32, beside word attacks of our own.

    OMP_NUM_THREADS=2 .venv-textattack/bin/python benchmarks/textattack_cost.py --json textattack_cost.json

Runs where TextAttack is installed (`make test-textattack` sets that environment up) and NLTK finds its stop
words. Model, texts, substitutes, budget (20 % of the words) and columns are those of `attack_cost.py`.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from attack_cost import (
    B32,
    SMALL,
    RowCounter,
    Spent,
    _batch,
    _figures,
    _median,
    _model,
    _synonyms,
    _timed,
    _units,
    table,
)
from tqdm.auto import tqdm
from transformers import BertTokenizerFast

from rmcl_hub import attacks
from rmcl_hub.attacks.base import frozen
from rmcl_hub.attacks.textattack_bridge import TextAttackBridge, synonym_attack
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.evaluation.task_attack import task_objective
from rmcl_hub.evaluation.victims import as_victim


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=8, help="examples per batch (default: 8)")
    parser.add_argument("--repetitions", type=int, default=1, help="rounds, of which medians (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    record = measure(arguments.examples, arguments.repetitions, SMALL if arguments.quick else B32)
    sys.stdout.write("\n".join(table(record)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(num_examples: int, repetitions: int, size: dict[str, int]) -> dict[str, Any]:
    """All figures, JSON-ready."""
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    counter, model, batch = RowCounter(), _model(size), _batch(tokenizer, num_examples)
    victim = counter.watch(as_victim(model))
    objective = task_objective(victim, "cross-entropy")
    runs = {
        **_units(victim, batch),
        **{name: partial(attack, batch, objective) for name, attack in _attacks(tokenizer).items()},
    }
    spent: dict[str, list[Spent]] = defaultdict(list)
    with frozen(model), tqdm(total=repetitions * len(runs), unit="run") as progress:
        for _ in range(repetitions):
            for name, run in runs.items():
                progress.set_description(name)
                spent[name].append(_timed(run, counter))
                progress.update()
    forward = _median(spent["F"], "cpu_seconds")
    backward = _median(spent["F + B_in"], "cpu_seconds") - forward
    return {
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in ("rmcl-hub", "torch", "transformers", "textattack")},
        "setting": {"examples": num_examples, "repetitions": repetitions, **size},
        "F": forward / num_examples,
        "B_in": backward / num_examples,
        "attacks": {
            name: _figures(of_attack, forward, backward, num_examples) for name, of_attack in spent.items()
        },
    }


def _attacks(tokenizer: Any) -> dict[str, attacks.Attack]:
    synonyms = _synonyms(tokenizer)
    words = ThreatModel.load("words-20pct")
    return {
        "TextAttack, DeepWordBug": TextAttackBridge(
            "deepwordbug", tokenizer, replace(words, word_edits="typos")
        ),
        "TextAttack, greedy synonyms": TextAttackBridge(synonym_attack(synonyms, 5), tokenizer, words),
        "typos": attacks.WordSwapAttack(tokenizer, attacks.Typos()),
        "word swap, gradient": attacks.WordSwapAttack(tokenizer, synonyms),
        "geometry": attacks.GeometryAttack(tokenizer, synonyms),
    }


if __name__ == "__main__":
    sys.exit(main())
