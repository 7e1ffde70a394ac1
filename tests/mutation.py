"""Break a room on purpose, one line at a time, and check that its tests notice; mutate_<room>.py holds the
mutants.

Every mutant is applied to a temporary copy of its room, in which the tests of that module run:
tests/<room>/test_<module>.py, or what the mutant names, or the whole folder of tests. A mutant that survives
is a hole in the tests. Pytest does not collect these files. POSIX only: mutants run in forks of one
process, which imports the slow libraries once for all of them.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, set_seed  # noqa: F401 - before forking

ROOT = Path(__file__).parents[1]
NO_CACHE = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in a file of the room, becomes `new`; `tests` is the file that should mind."""

    name: str
    file: str
    old: str
    new: str
    tests: str = ""


def copy_repository(folder: Path, room: str) -> None:
    """The installed layout, rmcl_hub/<room>, and the tests beside it; only the room itself is a copy."""
    shutil.copytree(ROOT / "src" / "rmcl_hub", folder / "rmcl_hub", ignore=NO_CACHE)
    shutil.copytree(ROOT / room, folder / "rmcl_hub" / room, ignore=NO_CACHE)
    for path in ROOT.iterdir():
        if (path / "__init__.py").is_file() and path.name != room:
            (folder / "rmcl_hub" / path.name).symlink_to(path)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copytree(ROOT / "tests" / room, folder / "tests" / room, ignore=NO_CACHE)


def run(room: str, mutant: Mutant) -> str:
    """The first test that fails on a mutant; empty if none does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder, room)
        path = folder / "rmcl_hub" / room / mutant.file
        source = path.read_text()
        if source.count(mutant.old) != 1:
            raise ValueError(
                f"{mutant.name}: {mutant.old!r} occurs {source.count(mutant.old)} times, not once."
            )
        path.write_text(source.replace(mutant.old, mutant.new))
        sys.path.insert(0, name)
        os.chdir(folder)
        tests = Path("tests", room, mutant.tests or f"test_{path.stem}.py")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            options = ["-x", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
            status = pytest.main([str(tests if tests.is_file() else tests.parent), *options])
        os.chdir(ROOT)
    failures = [line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    if status != pytest.ExitCode.OK and not failures:
        raise RuntimeError(f"{mutant.name}: pytest ended with {status!r}: {output.getvalue()[-500:]}")
    return failures[0].split(" - ")[0].split("::")[-1] if failures else ""


def main(room: str, mutants: Sequence[Mutant], description: str | None) -> int:
    """Run the mutants named on the command line, or all of them, and print a table.

    Returns:
        The number of survivors.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in mutants if not arguments.names or mutant.name in arguments.names]
    survivors = 0
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        outcomes = zip(chosen, pool.imap(partial(run, room), chosen, chunksize=1), strict=True)
        for mutant, failure in tqdm(outcomes, total=len(chosen), unit="mutant"):
            survivors += not failure
            verdict = "killed" if failure else "SURVIVED"
            tqdm.write(f"{verdict:<9} {mutant.file:<12} {mutant.name:<40} {failure}", file=sys.stdout)
    sys.stdout.write(f"{len(chosen) - survivors} of {len(chosen)} mutants killed\n")
    return survivors
