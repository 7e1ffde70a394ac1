"""The documentation site: its examples run, its commands exist, and it builds without a warning or a network."""

import re
from pathlib import Path

import pytest
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.datasets_scripts.openpairs import vqa_answers
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering, RMCLViltModel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def name_of(page):
    return str(page.relative_to(DOCS))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.fixture
def after_quickstart(tiny_config, tiny_tokenizer, tmp_path, monkeypatch):
    """A folder as the quickstart leaves it, with models of toy size, in which short searches are shorter."""
    monkeypatch.chdir(tmp_path)
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    processor = ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)
    folder = "runs/quickstart/seed-0/rmcl"
    RMCLViltModel(tiny_config).save_pretrained(folder)
    processor.save_pretrained(folder)
    tiny_config.id2label = dict(enumerate(vqa_answers()))
    RMCLViltForQuestionAnswering(tiny_config).save_pretrained("runs/quickstart/model")
    processor.save_pretrained("runs/quickstart/model")
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_examples_run_in_order(page, after_quickstart):
    namespace = {}
    for code in blocks(page, "python"):
        exec(code, namespace)  # noqa: S102 - the pages are ours
