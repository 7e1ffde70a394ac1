"""The `rmcl-hub` command: names the subcommands and imports only the one that runs."""

import argparse
import difflib
from importlib import import_module

from rmcl_hub import __version__

COMMANDS = {
    "quickstart": ("rmcl_hub.trainers.quickstart", "pre-train, make robust, attack and report, in minutes"),
    "pretrain": ("rmcl_hub.trainers.pretrain", "run a pre-training or RMCL recipe"),
    "finetune": ("rmcl_hub.trainers.finetune", "train a task head on a pre-trained model"),
    "evaluate": ("rmcl_hub.evaluation.evaluate_model", "attack a model, audit the numbers, write a report"),
    "retrieve": (
        "rmcl_hub.evaluation.retrieval_command",
        "rank captions for pictures and back, over galleries",
    ),
    "vqa-answers": ("rmcl_hub.evaluation.vqa_answer_file", "write a model's answers for VQA's server"),
    "data": ("rmcl_hub.datasets_scripts.data_command", "prepare corpora as shards, and check them"),
    "card": ("rmcl_hub.model_cards.card_command", "write a model's card from its results files"),
    "push": ("rmcl_hub.model_cards.push", "publish models, data, metrics and results on the Hub"),
    "submit": ("rmcl_hub.model_cards.submit", "check leaderboard rows and open a pull request"),
    "rescore": ("rmcl_hub.evaluation.rescore", "score stored adversarial examples again"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: The words after `rmcl-hub`; those of the process if None. All that follows the subcommand is
            handed to it.

    Returns:
        The subcommand's exit status.

    Raises:
        SystemExit: After `--help`, `--version`, or with status 2 for an unknown subcommand.
    """
    commands = "\n".join(f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="rmcl-hub",
        description="Make a vision-and-language model robust and measure it honestly.",
        epilog=f"commands:\n{commands}\n\n`rmcl-hub COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rmcl-hub {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="options of the command")
    parsed = parser.parse_args(argv)
    if parsed.command not in COMMANDS:
        nearest = difflib.get_close_matches(parsed.command, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(COMMANDS)}."
        parser.error(f"unknown command {parsed.command!r}; {hint}")
    module, _ = COMMANDS[parsed.command]
    return import_module(module).main(parsed.arguments)
