"""The tables of the openpairs dataset card, computed from the data.

python -m rmcl_hub.datasets_scripts.describe_openpairs --tokenizer FOLDER_WITH_BERT_BASE_UNCASED
"""

import argparse
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from transformers import AutoTokenizer

from .caption_cleaning import words
from .openpairs import SPLITS_OF_CONFIG, load_openpairs, read_metadata

Row = dict[str, Any]


def main() -> None:
    """Print every table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", required=True, help="Folder of the tokenizer that measures caption lengths."
    )
    tokenizer = AutoTokenizer.from_pretrained(parser.parse_args().tokenizer)
    captions = captions_table(lambda text: len(tokenizer.tokenize(text)))
    tables = (counts_table(), types_table(), captions, baselines_table())
    sys.stdout.write("\n\n".join(tables) + "\n")


def counts_table() -> str:
    """Rows and concepts of every configuration and split."""
    lines = ["| configuration | split | rows | images | concepts |", "|---|---|---|---|---|"]
    for config, splits in SPLITS_OF_CONFIG.items():
        for split in splits:
            rows = load_openpairs(config, split)
            # A statement's identifier ends in "left|right" image ids, its concept is "left|right" likewise.
            ids = rows["identifier"] if config == "nlvr2" else rows["image_id"]
            images = {image for value in ids for image in value.split(":")[-1].split("|")}
            concepts = {concept for value in rows["concept"] for concept in value.split("|")}
            lines.append(f"| {config} | {split} | {len(rows)} | {len(images)} | {len(concepts)} |")
    return "\n".join(lines)


def types_table() -> str:
    """Rows of every question and statement type, by split."""
    lines = ["| task | type | train | validation | test |", "|---|---|---|---|---|"]
    for config in ("vqa", "nlvr2"):
        counts = [
            Counter(row["type"] for row in task_texts(config, split)) for split in SPLITS_OF_CONFIG[config]
        ]
        lines += [
            f"| {config} | {name} | {' | '.join(str(n[name]) for n in counts)} |"
            for name in sorted(counts[0])
        ]
    return "\n".join(lines)


def captions_table(count_tokens: Callable[[str], int]) -> str:
    """Images, captions and caption length in tokens of every source, as in Table 3.1 of the thesis."""
    lines = ["| source, split | images | captions | caption length (tokens) |", "|---|---|---|---|"]
    splits_of_source = {
        "openmoji": SPLITS_OF_CONFIG["captions"],
        "openclipart": ("train",),
        "noto": SPLITS_OF_CONFIG["noto"],
    }
    for source, splits in splits_of_source.items():
        for split in splits:
            captions = [row["captions"] for row in read_metadata(source, split)]
            lengths = [count_tokens(caption) for row in captions for caption in row]
            mean, deviation = statistics.mean(lengths), statistics.stdev(lengths)
            lines.append(
                f"| {source}, {split} | {len(captions)} | {len(lengths)} | {mean:.2f} ± {deviation:.2f} |"
            )
    return "\n".join(lines)


def baselines_table() -> str:
    """Test accuracy of the most frequent answer and of a reader of the text alone, per type, in percent."""
    lines = ["| task | type | test rows | most frequent answer | text only |", "|---|---|---|---|---|"]
    for config in ("vqa", "nlvr2"):
        train, test = task_texts(config, "train"), task_texts(config, "test")
        predicted = predict_from_text(train, [row["text"] for row in test])
        by_type = defaultdict(list)
        for row, answer in zip(test, predicted, strict=True):
            by_type[row["type"]].append((row["answer"], answer))
            by_type["all"].append((row["answer"], answer))
        for name, pairs in sorted(by_type.items()):
            majority = Counter(truth for truth, _ in pairs).most_common(1)[0][1] / len(pairs)
            text_only = sum(truth == answer for truth, answer in pairs) / len(pairs)
            lines.append(
                f"| {config} | {name} | {len(pairs)} | {100 * majority:.1f} | {100 * text_only:.1f} |"
            )
    return "\n".join(lines)


def task_texts(config: str, split: str) -> list[Row]:
    """Text, answer and type of every question (`vqa`) or statement (`nlvr2`)."""
    rows = load_openpairs(config, split)
    text, kind = ("question", "question_type") if config == "vqa" else ("statement", "statement_type")
    answers = (
        [row[0] for row in rows["answers"]] if config == "vqa" else [str(label) for label in rows["label"]]
    )
    return [
        {"text": text, "answer": answer, "type": kind}
        for text, answer, kind in zip(rows[text], answers, rows[kind], strict=True)
    ]


def predict_from_text(train: list[Row], texts: list[str]) -> list[str]:
    """Answers of a naive Bayes classifier on the words of the text (multinomial, add-one smoothing)."""
    answers = Counter(row["answer"] for row in train)
    word_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        word_counts[row["answer"]].update(words(row["text"]))
    vocabulary = {word for counts in word_counts.values() for word in counts}
    totals = {answer: sum(counts.values()) + len(vocabulary) for answer, counts in word_counts.items()}

    def log_probability(answer: str, text: str) -> float:
        known = [word for word in words(text) if word in vocabulary]
        likelihood = sum(math.log((word_counts[answer][word] + 1) / totals[answer]) for word in known)
        return math.log(answers[answer]) + likelihood

    best = {text: max(sorted(answers), key=lambda a: log_probability(a, text)) for text in set(texts)}
    return [best[text] for text in texts]


if __name__ == "__main__":
    main()
