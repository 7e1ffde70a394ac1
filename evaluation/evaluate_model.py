"""`rmcl-hub evaluate`: attack a saved model, audit the numbers, write the report."""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tasks import Task

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from .protocol_data import load_protocol_data
    from .robustness import evaluate_robustness
    from .robustness_report import write_robustness_report
    from .tasks import build_task

    try:
        model, processor = load_model(arguments.model, arguments.task)
        data = load_protocol_data(arguments.task, arguments.data, arguments.protocol, arguments.split)
        task = build_task(arguments.task, model, processor)
        evaluation = evaluate_robustness(
            model,
            processor,
            task_rows(task, data.test),
            task,
            arguments.threat,
            batch_size=arguments.batch_size,
            effort=arguments.effort,
            max_examples=arguments.max_examples,
            seed=arguments.seed,
            train_dataset=data.train,
            protocol=data.entry,
            trained_with=arguments.trained_with,
            defence=arguments.defence,
            control=arguments.control,
            output_dir=arguments.output_dir,
            name=Path(arguments.model).name,
        )
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub evaluate: %s", error)
        return 2
    report = write_robustness_report(evaluation.record, evaluation.outcomes, arguments.output_dir)
    sys.stdout.write("\n".join(summary_lines(evaluation.record)) + "\n")
    logger.info("Report: %s", report)
    return 0


def summary_lines(record: dict[str, Any]) -> Iterator[str]:
    """The protocol, a Markdown table of the threat models, and why a verdict is not `trusted`."""
    from .protocol_data import protocol_lines
    from .robustness_report import task_measures

    yield from protocol_lines(record["task"], record["protocol"])
    yield ""
    yield "| threat model | clean | robust [95 %] | attack success | at 8 bits | verdict |"
    yield "|---|---|---|---|---|---|"
    for name, threat in record["threats"].items():
        numbers = threat["numbers"]["overall"]
        clean, robust, success, rounded = (
            numbers[key]
            for key in ("clean_accuracy", "robust_accuracy", "attack_success_rate", "robust_accuracy_8bit")
        )
        yield (
            f"| {name} | {_percent(clean)} | {_percent(robust)} [{100 * robust['low']:.1f}, "
            f"{100 * robust['high']:.1f}] | {_percent(success)} | {_percent(rounded)} | {threat['verdict']} |"
        )
    for label, measured in task_measures(record).items():
        values = "; ".join(
            f"{name} {100 * value['clean']:.1f} and {100 * value['robust']:.1f}"
            for name, value in measured.items()
        )
        yield f"\n{label}, clean and under attack: {values}"
    for name, threat in record["threats"].items():
        publishable = "" if threat["publishable"] else "; not for publication"
        yield f"\n{name}: {threat['verdict']}{publishable}"
        yield from (f"  - {reason}" for reason in threat["reasons"])


def _percent(rate: dict[str, Any]) -> str:
    return "n/a" if rate["value"] is None else f"{100 * rate['value']:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmcl-hub evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model with its processor")
    parser.add_argument("--task", required=True, help="vqa, nlvr2, snli_ve, matching or mlm")
    parser.add_argument(
        "--threat",
        required=True,
        action="append",
        help="a preset such as linf-4, words-20pct, joint-linf-4-words-20pct, or a YAML file; repeatable",
    )
    add_data_arguments(parser)
    parser.add_argument("--max-examples", type=int, help="seeded random subset of this size (default: all)")
    parser.add_argument(
        "--effort", default="standard", help="quick, standard (default) or full, which is AutoAttack's"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trained-with",
        nargs="*",
        default=[],
        metavar="ATTACK",
        help="attacks that training used, such as pgd",
    )
    parser.add_argument(
        "--defence", help="what the model does at test time against attacks, in words; 'none' if nothing"
    )
    parser.add_argument("--control", type=Path, help="folder of a control's evaluation to compare with")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/evaluation"))
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is tested on, see `protocol_data.load_protocol_data`."""
    parser.add_argument(
        "--data",
        metavar="LOCATION",
        help="folder that `rmcl-hub data prepare` wrote, or hf://datasets/USER/NAME@REVISION "
        "(default: the embedded openpairs)",
    )
    parser.add_argument("--protocol", help="of the corpus: clean (default) or thesis")
    parser.add_argument("--split", help="of the embedded data (default: test)")


def load_model(name: str, task: str) -> tuple[Any, Any]:
    """The head of a task with its processor, from a folder or the Hub, in eval mode.

    Raises:
        ValueError: If the command line knows no such task.
        FileNotFoundError: If there is no such folder, and the name can be no Hub id.
    """
    from transformers import AutoProcessor

    from rmcl_hub import modeling_rmcl

    classes = {
        "vqa": modeling_rmcl.RMCLViltForQuestionAnswering,
        "nlvr2": modeling_rmcl.RMCLViltForImagesAndTextClassification,
        "snli_ve": modeling_rmcl.RMCLViltForImagesAndTextClassification,
        "matching": modeling_rmcl.RMCLViltForPreTraining,
        "mlm": modeling_rmcl.RMCLViltForMaskedLM,
    }
    if task not in classes:
        raise ValueError(f"task is {task!r}; the command line evaluates {', '.join(classes)}.")
    check_model_name(name)
    return on_best_device(classes[task].from_pretrained(name)), AutoProcessor.from_pretrained(name)


def check_model_name(name: str) -> None:
    """Refuse what is neither a folder nor a Hub id.

    Raises:
        FileNotFoundError: If there is no such folder, and the name can be no Hub id.
    """
    if not Path(name).is_dir() and (name.startswith(("/", ".")) or name.count("/") > 1):
        raise FileNotFoundError(f"there is no model folder {name!r}; give a folder, or a Hub id user/name.")


def on_best_device(model: Any) -> Any:
    """The model in eval mode, on a GPU if there is one."""
    import torch

    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def task_rows(task: "Task", dataset: Any) -> Any:
    """Rows of a task from its data's: false pairs are made, captions without a word to mask left out."""
    from rmcl_hub.datasets_scripts.task_collators import MaskedWordCollator

    from .tasks import matching_pairs

    if task.name == "matching":
        return matching_pairs(dataset)
    if isinstance(task.collate, MaskedWordCollator):
        has_word = task.collate.has_word_to_mask
        return dataset.filter(lambda captions: has_word(captions[0]), input_columns="captions")
    return dataset
