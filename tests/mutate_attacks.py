"""Break the attacks on purpose, one line at a time, and check that the tests notice.

    python tests/mutate_attacks.py [--jobs 2] [NAME ...]

Every mutant is applied to a temporary copy of the repository, in which the tests of that module run. A mutant
that survives is a hole in the tests. Exit status: the number of survivors. Pytest does not collect this file. POSIX only:
mutants run in forks of one process, which imports the slow libraries once for all of them.
"""

# ruff: noqa: E501 - one mutant a line

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torchattacks  # noqa: F401 - imported before forking, with torch
from tqdm import tqdm
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, set_seed  # noqa: F401 - the same

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in a file of attacks/, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant("PGD is the identity", "pgd.py", "best = torch.where(_per_example(better, clean), adversarial, best)", "pass"),
    Mutant("PGD descends", "pgd.py", "return self.step_size * direction / std", "return -self.step_size * direction / std"),
    Mutant("no projection", "pgd.py", "lower, upper = clean - radius, clean + radius", "lower, upper = clean - 9, clean + 9"),
    Mutant("projection of twice the radius", "pgd.py", "radius = self.epsilon / std\n", "radius = 2 * self.epsilon / std\n"),
    Mutant("no valid range, bright", "pgd.py", "torch.minimum(upper, brightest)", "upper"),
    Mutant("no valid range, dark", "pgd.py", "torch.maximum(lower, darkest)", "lower"),
    Mutant("rounding out of the ball", "pgd.py", "upper.nextafter(clean), upper)", "upper, upper)"),
    Mutant("padding is attacked", "pgd.py", "real = (pixel_mask != 0)", "real = (pixel_mask > -1)"),
    Mutant("mask upside down", "pgd.py", "real = (pixel_mask != 0)", "real = (pixel_mask == 0)"),
    Mutant("padding scales the step", "pgd.py", "gradient.masked_fill(lower == upper, 0.0)", "gradient"),
    Mutant("gradient of another point", "pgd.py", '"pixel_values": pixels}), len(pixels))\n        if',
           '"pixel_values": pixels + 0.1 * pixels.detach().sign()}), len(pixels))\n        if'),
    Mutant("detached gradient", "pgd.py", "torch.autograd.grad(losses.sum(), pixels)",
           "torch.autograd.grad((0 * pixels).sum() + 0 * losses.sum(), pixels)"),
    Mutant("one step too few", "pgd.py", "for step in range(self.num_steps + 1):", "for step in range(self.num_steps):"),
    Mutant("one step too many", "pgd.py", "if step < self.num_steps:\n                        loss, gradient",
           "if step <= self.num_steps:\n                        loss, gradient"),
    Mutant("last iterate, not best", "pgd.py", "better = loss > best_loss", "better = loss > -torch.inf"),
    Mutant("worst iterate", "pgd.py", "better = loss > best_loss", "better = loss < best_loss"),
    Mutant("best of the batch, not of the example", "pgd.py", "better = loss > best_loss",
           "better = (loss.sum() > best_loss.sum()).expand_as(loss)"),
    Mutant("norm over the batch", "pgd.py", "dims = tuple(range(1, gradient.ndim))", "dims = tuple(range(gradient.ndim))"),
    Mutant("l2 is sign", "pgd.py", 'if self.gradient == "sign":', 'if self.gradient in ("sign", "l2"):'),
    Mutant("step in normalised units", "pgd.py", "return self.step_size * direction / std", "return self.step_size * direction"),
    Mutant("no random start", "pgd.py", "if not self.random_start:", "if True:"),
    Mutant("every restart is the same", "pgd.py", "generator=self.generator,", "generator=self.generator.manual_seed(0),"),
    Mutant("global random state", "pgd.py", "with isolated_rng(clean):", "if True:"),
    Mutant("NaN gradient", "pgd.py", "gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)", "gradient"),
    Mutant("parameters get gradients", "pgd.py", "(gradient,) = torch.autograd.grad(losses.sum(), pixels)",
           "losses.sum().backward(); gradient = pixels.grad"),
    Mutant("geometry is the identity", "geometry.py", "sentence.text, sentence.loss, sentence.stale = trial.text,",
           "sentence.text, sentence.loss, sentence.stale = sentence.text,"),
    Mutant("absolute projection", "geometry.py", "(displacement @ trial.sentence.direction).argmax()",
           "(displacement @ trial.sentence.direction).abs().argmax()"),
    Mutant("projection downhill", "geometry.py", "(displacement @ trial.sentence.direction).argmax()",
           "(displacement @ trial.sentence.direction).argmin()"),
    Mutant("first candidate", "geometry.py", "int((displacement @ trial.sentence.direction).argmax())", "0"),
    Mutant("projection of the embedding", "geometry.py", "candidates - trial.sentence.embedding", "0 * candidates"),
    Mutant("always accept", "geometry.py", "if trial.loss > trial.sentence.loss:", "if True:"),
    Mutant("accept a lower loss", "geometry.py", "if trial.loss > trial.sentence.loss:", "if trial.loss < trial.sentence.loss:"),
    Mutant("least influential word", "geometry.py", "index = max(sentence.untried", "index = min(sentence.untried"),
    Mutant("first word", "geometry.py", "(sentence.influence[index], -index)", "-index"),
    Mutant("first piece of a word", "geometry.py", "word.first : word.last + 1].mean(dim=0).norm()",
           "word.first].norm()"),
    Mutant("pieces summed by norm", "geometry.py", ".mean(dim=0).norm()", ".norm()"),
    Mutant("stale gradients", "geometry.py", "trial.text, trial.loss, True", "trial.text, trial.loss, False"),
    Mutant("gradients of all, always", "geometry.py", "if sentence.stale and sentence.untried", "if sentence.untried"),
    Mutant("budget ignored", "geometry.py", "if sentence.budget == 0:", "if False:"),
    Mutant("budget off by one", "geometry.py", "if sentence.budget == 0:", "if sentence.budget == -1:"),
    Mutant("budget rounded up", "geometry.py", "+ 1e-9)", "+ 0.999)"),
    Mutant("no word in short texts", "geometry.py", "budget = max(budget, 1)", "pass"),
    Mutant("stop words attacked", "geometry.py", "if text[word.start : word.end].lower() not in STOP_WORDS", "if True"),
    Mutant("compounds attacked", "geometry.py", ".isalpha() and not joined", ".isalpha()"),
    Mutant("truncation ignored", "geometry.py", "if rest_unchanged and spelled", "if spelled"),
    Mutant("unknown words substituted", "geometry.py", "self.tokenizer.unk_token_id not in middle", "True"),
    Mutant("min_cosine ignored", "geometry.py", "if cosine >= self.min_cosine", "if True"),
    Mutant("max_candidates ignored", "geometry.py", "candidates[: self.max_candidates]", "candidates"),
    Mutant("max_loops off by one", "geometry.py", "in range(self.max_loops)", "in range(self.max_loops + 1)"),
    Mutant("casing lost", "geometry.py", "match_case(candidate, word)", "candidate"),
    Mutant("ids of the clean text", "geometry.py", "**search.encode([sentence.text for sentence in sentences])}",
           '"text": [sentence.text for sentence in sentences]}'),
    Mutant("rows of other examples", "geometry.py", "rows = [trial.sentence.row for trial in trials for _ in trial.variants]",
           "rows = [0 for trial in trials for _ in trial.variants]"),
    Mutant("candidates of another chunk", "geometry.py", "texts[first : first + self.chunk])", "texts[: self.chunk])"),
    Mutant("image half dropped", "joint.py", 'image.batch["pixel_values"]}', 'batch["pixel_values"]}'),
    Mutant("text half dropped", "joint.py", "**attacked_text, ", ""),
)  # fmt: skip


def copy_repository(folder: Path) -> None:
    """The installed layout: rmcl_hub/<room>, and the tests beside it."""
    shutil.copytree(ROOT / "src" / "rmcl_hub", folder / "rmcl_hub")
    for name in ("attacks", "modeling_rmcl"):
        shutil.copytree(ROOT / name, folder / "rmcl_hub" / name)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copytree(ROOT / "tests" / "attacks", folder / "tests" / "attacks")


def run(mutant: Mutant) -> str:
    """The first test that fails on a mutant; empty if none does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        path = folder / "rmcl_hub" / "attacks" / mutant.file
        source = path.read_text()
        if source.count(mutant.old) != 1:
            raise ValueError(
                f"{mutant.name}: {mutant.old!r} occurs {source.count(mutant.old)} times, not once."
            )
        path.write_text(source.replace(mutant.old, mutant.new))
        sys.path.insert(0, name)
        os.chdir(folder)
        tests = "test_pgd.py" if mutant.file == "pgd.py" else "test_geometry.py"
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            options = ["-x", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
            status = pytest.main([f"tests/attacks/{tests}", *options])
        os.chdir(ROOT)
    failures = [line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    if status != pytest.ExitCode.OK and not failures:
        raise RuntimeError(f"{mutant.name}: pytest ended with {status!r}: {output.getvalue()[-500:]}")
    return failures[0].split(" - ")[0].split("::")[-1] if failures else ""


def main() -> int:
    """Run the mutants named on the command line, or all of them, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    survivors = 0
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        outcomes = zip(chosen, pool.imap(run, chosen, chunksize=1), strict=True)
        for mutant, failure in tqdm(outcomes, total=len(chosen), unit="mutant"):
            survivors += not failure
            verdict = "killed" if failure else "SURVIVED"
            tqdm.write(f"{verdict:<9} {mutant.file:<12} {mutant.name:<40} {failure}", file=sys.stdout)
    sys.stdout.write(f"{len(chosen) - survivors} of {len(chosen)} mutants killed\n")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
