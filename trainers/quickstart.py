"""The whole job from one command: `rmcl-hub quickstart [recipe] [--key value]`."""

import logging
import shutil
import sys
from pathlib import Path

from rmcl_hub.trainers.pretrain import writable_folder
from rmcl_hub.trainers.recipe import ExperimentRecipe, recipe_from_command_line

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run an experiment recipe and print its table; returns the exit code, 2 if a setting cannot work."""
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()  # heads that start anew are the plan here, not news
    description = "Pre-train a small ViLT, make it robust by RMCL, and compare it with an honest control."
    try:
        recipe = recipe_from_command_line(
            ExperimentRecipe, "rmcl-hub quickstart", description, argv, default="quickstart"
        )
        from rmcl_hub.trainers.processes import ending_together

        with ending_together():
            table = run_experiment(recipe)
    except (OSError, ValueError) as error:
        logger.error("rmcl-hub quickstart: %s", error)
        return 2
    if table is not None:
        sys.stdout.write(table + "\n")
    return 0


def run_experiment(recipe: ExperimentRecipe) -> str | None:
    """Run all seeds, write results, report, model and card; returns the table and the verdicts.

    Of several processes only the first one writes and returns them, the others return None.
    """
    from rmcl_hub.trainers.experiment import run_seed
    from rmcl_hub.trainers.processes import join_processes

    folder = writable_folder(recipe.output_dir)
    process = join_processes(recipe.pretrain.training)
    for seed in recipe.seeds:
        run_seed(recipe, seed, folder / f"seed-{seed}")
    return _write_up(recipe, folder) if process.is_main_process else None


def _write_up(recipe: ExperimentRecipe, folder: Path) -> str:
    from rmcl_hub.evaluation.report import write_report
    from rmcl_hub.evaluation.results import write_results
    from rmcl_hub.model_cards.model_card import write_card
    from rmcl_hub.trainers.experiment_results import collect_results, result_table

    results = collect_results(recipe, folder)
    write_results(results, folder)
    write_report(results, folder)
    protocol = list(recipe.protocols)[-1]
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(
        folder / f"seed-{recipe.seeds[0]}" / f"rmcl-{protocol}",
        model,
        ignore=shutil.ignore_patterns("checkpoint-*"),
    )
    write_card(model, results=folder)
    logger.info("Report: %s, model: %s", folder / "report.html", model)
    verdicts = [row["verdict"] for row in results["comparisons"]]
    return "\n".join([result_table(results), "", *results["summary"], *verdicts])


if __name__ == "__main__":
    sys.exit(main())
