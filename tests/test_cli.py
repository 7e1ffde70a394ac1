import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rmcl_hub
from rmcl_hub import cli

ROOT = Path(__file__).parents[1]


def run(code, *argv):
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_help_lists_the_commands_without_importing_torch():
    code = """
import sys
sys.argv[0] = "/usr/bin/rmcl-hub"
from rmcl_hub.cli import main
try:
    main(["--help"])
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    shown = run(code)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False False"
    assert all(f"\n  {command} " in shown.stdout for command in cli.COMMANDS)


def test_importing_the_package_registers_the_model_with_the_auto_classes():
    code = """
import rmcl_hub
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("rmcl_vilt", hidden_size=12, num_hidden_layers=1)
print(type(AutoModel.from_config(config)).__name__)
"""
    shown = run(code)
    assert shown.stdout.strip() == "RMCLViltModel", shown.stderr


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rmcl-hub {rmcl_hub.__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretran", "unknown command 'pretran'; did you mean 'pretrain'?"),
        ("xyz", "choose one of quickstart, "),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(command, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([command])
    assert message in capsys.readouterr().err


def test_the_rest_of_the_line_goes_to_the_command(monkeypatch):
    import_module = cli.import_module
    received = []

    class Command:
        @staticmethod
        def main(argv):
            received.extend(argv)
            return 3

    module, _ = cli.COMMANDS["pretrain"]
    monkeypatch.setattr(cli, "import_module", lambda name: Command if name == module else import_module(name))
    assert cli.main(["pretrain", "recipe.yaml", "--seed", "1", "--help"]) == 3
    assert received == ["recipe.yaml", "--seed", "1", "--help"]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_main(command):
    module, _ = cli.COMMANDS[command]
    source = (ROOT / module.removeprefix("rmcl_hub.").replace(".", "/")).with_suffix(".py").read_text()
    assert "main" in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
