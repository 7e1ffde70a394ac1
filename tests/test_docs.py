"""The documentation: its examples run, its commands exist, and it builds without warning or network."""

import argparse
import html
import json
import re
import shlex
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rmcl_hub import cli
from rmcl_hub.evaluation.rule_explanations import EXPLANATIONS
from rmcl_hub.trainers.recipe import ExperimentRecipe, FinetuneRecipe, PretrainRecipe, load_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = (
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "datasets_scripts/CORPORA.md",
    "recipes/ACCELERATE.md",
)
SHOWN = [*PAGES, *(ROOT / document for document in DOCUMENTS)]
RECIPES = {"quickstart": ExperimentRecipe, "pretrain": PretrainRecipe, "finetune": FinetuneRecipe}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_examples_run_in_order(page, after_quickstart):
    namespace = {"__name__": "example"}
    for code in blocks(page, "python"):
        exec(code, namespace)  # noqa: S102 - the pages are ours
    if page.name == "index.md":
        assert (namespace["attacked"].loss_after > namespace["attacked"].loss_before).all()
        assert namespace["reworded"].forwards > 2


def commands(page):
    """(command, its words) of every line in bash that runs `rmcl-hub` or one of its scripts."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            scripts = [place for place, word in enumerate(words) if word.startswith("trainers/")]
            if words[:1] == ["rmcl-hub"]:
                yield words[1], words[2:]
            elif scripts:
                yield Path(words[scripts[0]]).stem, words[scripts[0] + 1 :]


class ParsedError(Exception):
    """Raised in the place of running a command whose words the parser has understood."""


@pytest.mark.parametrize("page", [page for page in SHOWN if list(commands(page))], ids=name_of)
def test_commands_are_understood_by_the_real_parsers(page, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise ParsedError(parse_args(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for command, words in commands(page):
        module, _ = cli.COMMANDS[command]
        if command in RECIPES and words:
            name, *overrides = words
            dry = overrides.index("--dry-run") if "--dry-run" in overrides else len(overrides)
            load_recipe(RECIPES[command], name, overrides[:dry])
        else:
            with pytest.raises(ParsedError):
                import_module(module).main(words)


def test_make_targets_exist():
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    shown = "\n".join(block for page in SHOWN for block in blocks(page, "bash"))
    named = re.findall(r"^make (\S+)", shown, flags=re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


class References(HTMLParser):
    """What a page fetches by itself, where its links lead, and the anchors that it has."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.links, self.anchors = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag == "link" and values.get("rel") != "canonical":
            self.fetched.append(values.get("href") or "")
        else:
            self.fetched.append(values.get("src") or "")


def test_the_site_builds_without_a_warning(tmp_path):
    """One test, because one build takes as long as all that is asked of it."""
    build = pytest.importorskip("mkdocs.commands.build", reason="needs the dependency group docs")
    from mkdocs.config import load_config

    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = {page: References(page) for page in tmp_path.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 20
    assert [address for page in pages.values() for address in page.fetched if urlsplit(address).netloc] == []
    assert elsewhere_in_styles(tmp_path) == []
    assert [link for page in pages for link in dead_links(page, pages)] == []
    assert missing_from_the_pages(tmp_path) == []


def elsewhere_in_styles(site):
    """Addresses of other hosts that a style sheet would fetch."""
    styles = "\n".join(style.read_text() for style in site.rglob("*.css"))
    return re.findall(r"(?:url\(|@import)[^;)]*//[^;)]*", styles)


def dead_links(page, pages):
    for link in pages[page].links:
        address = urlsplit(link)
        if address.scheme or address.netloc:
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file() or (address.fragment and address.fragment not in pages[target].anchors):
            yield page, link


def missing_from_the_pages(site):
    """What the code and the results file say and a page does not."""

    def text(page):
        return html.unescape(re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text()))

    results = json.loads((ROOT / "recipes/openpairs.results.json").read_text())
    frozen = results["models"]["rmcl"]["tasks"]["vqa"]["frozen"]["pgd-4"]["overall"]["robust_accuracy"]
    expected = {
        "concepts/verdicts": EXPLANATIONS.values(),
        "reference/command-line": [f"usage: rmcl-hub {command}" for command in cli.COMMANDS],
        "thesis": [results["summary"][0], f"{100 * frozen['value']:.1f}"],
    }
    return [told for page, sentences in expected.items() for told in sentences if told not in text(page)]
