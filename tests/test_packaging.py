"""The wheel: one top-level name, and every file of every room inside."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """File names in a wheel built from a copy of the sources, without network or build isolation."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, tree / folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=tree, check=True, capture_output=True)
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_only_top_level_name_is_rmcl_hub(wheel_names):
    top_level = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"rmcl_hub"}


@pytest.mark.parametrize(("package", "folder"), FOLDERS.items())
def test_every_file_of_the_folder_is_in_the_wheel(package, folder, wheel_names):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in files
        if "__pycache__" not in path.parts
    }
    missing = names - wheel_names
    assert not missing, "add the file name's ending to [tool.setuptools.package-data]"


@pytest.mark.parametrize(
    "name", ["attacks/synonyms", "datasets_scripts/openpairs/", "model_cards/", "recipes/quickstart.yaml"]
)
def test_data_files_are_in_the_wheel(name, wheel_names):
    assert any(f"rmcl_hub/{name}" in member and not member.endswith(".py") for member in wheel_names)
