"""The rules of the house that ruff cannot see: who may import whom, and how files may be called."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room with the rooms that it may import; nothing imports trainers.
ROOMS = {
    "modeling_rmcl": set(),
    "attacks": {"modeling_rmcl"},
    "datasets_scripts": set(),
    "evaluation": {"attacks", "datasets_scripts", "modeling_rmcl"},
    "model_cards": {"attacks", "datasets_scripts", "evaluation", "modeling_rmcl"},
    "trainers": {"attacks", "datasets_scripts", "evaluation", "model_cards", "modeling_rmcl"},
}
SOURCES = [path for room in (*ROOMS, "src") for path in sorted((ROOT / room).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SPACE = ROOT / "model_cards" / "leaderboard"
INSTALLED = packages_distributions()  # import name -> distributions


def name_of(path):
    return str(path.relative_to(ROOT))


def imports_of(path):
    """Each import of a file, at the top or inside a function, as (dots, module)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0 and module == "rmcl_hub":
                yield from ((0, f"rmcl_hub.{alias.name}") for alias in node.names)
            else:
                yield node.level, module


def is_script(path):
    return '__name__ == "__main__"' in path.read_text()


def is_metric(path):
    """Such as evaluation/flip_rate/flip_rate.py, which `evaluate.load` copies elsewhere and imports there."""
    return path.parent.name == path.stem


def is_space(path):
    """The leaderboard's app: on the Hub its files lie side by side, without this package."""
    return path.parent == SPACE


def declared_distributions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
        *project["dependency-groups"]["data"],
    ]
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements}


def test_the_rooms_hold_code():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {*ROOMS, "src"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    reached = {module.split(".")[1] for dots, module in imports_of(path) if module.startswith("rmcl_hub.")}
    if room == "src":
        assert reached <= {"modeling_rmcl", "__version__"}
    else:
        # A file run by path is no member of a package, so it names its own room in full.
        assert reached - ROOMS[room] <= ({room} if is_script(path) or is_metric(path) else set())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_relative_imports_stay_in_their_folder(path):
    assert all(dots == 0 or (dots == 1 and "." not in module) for dots, module in imports_of(path))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_no_folder_is_imported_by_its_bare_name(path):
    """From the repository root `import trainers` works too, and gives second copies of all classes."""
    bare = {
        module for dots, module in imports_of(path) if dots == 0 and module.split(".")[0] in {*ROOMS, "tests"}
    }
    assert not bare


@pytest.mark.parametrize("path", sorted((ROOT / "modeling_rmcl").rglob("*")), ids=name_of)
def test_modeling_is_flat_and_needs_only_torch_and_transformers(path):
    """This folder is pushed as custom code: other imports would become requirements of every user."""
    if path.name == "__pycache__" or path.parent.name == "__pycache__":
        return
    assert path.is_file()
    assert path.suffix == ".py"
    outside = {module.split(".")[0] for dots, module in imports_of(path) if dots == 0}
    assert outside <= {"torch", "transformers", *sys.stdlib_module_names}
    assert (1, "") not in imports_of(path), (
        "Transformers copies what `from .x import y` names, not `from . import x`"
    )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_third_party_imports_are_declared(path):
    declared = declared_distributions()
    for dots, module in imports_of(path):
        package = module.split(".")[0]
        if dots or is_space(path) or package in {"rmcl_hub", *sys.stdlib_module_names}:
            continue
        owners = {owner.lower().replace("_", "-") for owner in INSTALLED.get(package, [package])}
        assert owners & declared, f"{package} is imported but no dependency of rmcl-hub provides it"


@pytest.mark.parametrize("path", [path for path in SOURCES if is_space(path)], ids=name_of)
def test_the_space_needs_what_lies_beside_it_and_gradio(path):
    beside = {"row_checks", "evaluation_schema", *(other.stem for other in SPACE.glob("*.py"))}
    outside = {module.split(".")[0] for _, module in imports_of(path)} - {*sys.stdlib_module_names}
    assert outside <= {"gradio", "huggingface_hub", "pandas", *beside}


@pytest.mark.parametrize("name", ["model_cards/row_checks.py", "evaluation/evaluation_schema.py"])
def test_what_the_space_takes_along_needs_nothing(name):
    assert {module.split(".")[0] for _, module in imports_of(ROOT / name)} <= {*sys.stdlib_module_names}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_module_is_named_like_one_that_it_would_hide(path):
    """A script's folder leads sys.path: trainers/logging.py would stand in for the standard library's."""
    others = {name for name, owners in INSTALLED.items() if "rmcl-hub" not in owners}
    assert path.stem not in {*sys.stdlib_module_names, *others} - {"__init__"}


@pytest.mark.parametrize("path", [path for path in SOURCES if is_script(path)], ids=name_of)
def test_scripts_define_no_classes(path):
    """A class of `__main__` cannot be unpickled elsewhere and differs from its imported twin."""
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    assert not classes


def test_test_files_have_unique_names_and_no_packages():
    stems = [path.stem for path in TESTS if path.stem != "conftest"]
    assert len(stems) == len(set(stems))
    assert "__init__" not in stems
