import re
from html.parser import HTMLParser

import pytest

from rmcl_hub.evaluation.report import render_report, word_difference, write_report


class Page(HTMLParser):
    """Text, tags and attribute values of a page; fails on unbalanced tags."""

    VOID = ("meta", "img", "br", "path", "rect", "polyline")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words, self.attributes = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(results):
    return Page(render_report(results))


class TestPage:
    def test_needs_nothing_from_outside(self, page):
        assert not {"script", "link", "iframe"} & set(page.tags)
        sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
        assert len(sources) == 6  # three pictures of two examples
        assert all(value.startswith("data:image/png;base64,") for value in sources)
        assert not re.search(r"url\(|@import|https?://", page.text)

    def test_fits_a_phone(self, page):
        assert ("name", "viewport") in page.attributes
        assert page.tags.count("table") <= sum(
            "scroll" in (value or "") for name, value in page.attributes if name == "class"
        )

    def test_texts_are_escaped(self, results, page):
        assert "Quickstart <report>" in page.text
        assert "yes & <i>no</i>" in page.text
        assert "alert(1)" in page.text
        assert "<script" not in render_report(results)

    def test_headline_holds_both_models_and_the_difference(self, results, page):
        comparison = results["comparisons"][0]
        for key in ("control", "rmcl"):
            rate = results["models"][key]["tasks"]["VQA"]["frozen"]["pgd-4"]["overall"]["robust_accuracy"]
            expected = f"{100 * rate['value']:.1f} [ {100 * rate['low']:.1f} , {100 * rate['high']:.1f} ]"
            assert expected.replace(" ", "") in page.text.replace(" ", "")
        gain = 100 * comparison["differences"]["robust_accuracy"]["value"]
        assert f"{gain:+.1f}" in page.text

    def test_every_verdict_and_summary_sentence_is_there(self, results, page):
        for sentence in [
            *results["summary"],
            *results["notes"],
            *(row["verdict"] for row in results["comparisons"]),
        ]:
            assert sentence in page.text

    def test_seeds_are_shown_one_by_one(self, results, page):
        comparison = results["comparisons"][0]
        seeds = ", ".join(
            f"{run}: {100 * found['robust_accuracy']:+.1f}" for run, found in comparison["per_seed"].items()
        ).replace("-", "\u2212")
        assert f"Difference of robust accuracy, seed by seed: {seeds}." in page.text
        assert ", ".join(f"{p:.2g}" for p in comparison["mcnemar_p"].values()) + "." in page.text

    def test_facts_of_the_run_are_there(self, page):
        for fact in (
            "abc123",
            "def456",
            "Seeds: 0, 1",
            "majority 30.0 %",
            "linf 4/255",
            "test: questions 160",
            "2.0",
        ):
            assert fact in page.text

    def test_retrieval_has_size_and_chance(self, page):
        assert "openpairs, text to image 12 1 100.0 [75.8, 100.0]" in page.text
        assert "8.3" in page.text

    def test_examples_are_grouped_by_model(self, results):
        results["examples"][1]["model"] = "rmcl"
        html = render_report(results)
        assert html.count("<details open>") == 1
        assert "<summary>Continued, VQA, frozen</summary>" in html
        assert "<summary>RMCL, VQA, frozen</summary>" in html

    def test_diagrams(self, page):
        assert page.tags.count("svg") == 3  # bars of the task and of retention, one curve

    def test_only_clear_differences_are_bold(self, results):
        html = render_report(results)
        flags = re.findall(r'<span class="(clear)?">([+\u2212][\d.]+)</span>', html)
        clear = sum(
            row["low"] > 0 or row["high"] < 0
            for comparison in results["comparisons"]
            for name, row in comparison["differences"].items()
            if name != "clean_accuracy"
        )
        assert sum(bool(flag) for flag, _ in flags) == clear > 0

    def test_undefined_numbers_say_so(self, results):
        for comparison in results["comparisons"]:
            comparison["differences"]["attack_success_rate"] = None
        assert "n/a" in Page(render_report(results)).text

    def test_without_optional_parts(self, results):
        for model in results["models"].values():
            del model["retention"], model["retrieval"]
        results["comparisons"] = [row for row in results["comparisons"] if row["task"] == "VQA"]
        results |= {"curves": [], "examples": [], "baselines": {}}
        text = Page(render_report(results)).text
        assert "Retrieval" not in text
        assert "Attacked examples" not in text


class TestWriteReport:
    def test_writes_one_file(self, results, tmp_path):
        path = write_report(results, tmp_path / "run")
        assert path == tmp_path / "run" / "report.html"
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]

    def test_missing_field(self, results, tmp_path):
        del results["curves"]
        with pytest.raises(ValueError, match="results lack curves"):
            write_report(results, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_unwritable_folder(self, results, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="choose a folder that you may write"):
            write_report(results, tmp_path / "file")


@pytest.mark.parametrize(
    ("attacked", "runs"),
    [
        ("a red boat", [("same", "a red boat")]),
        ("a crimson boat", [("same", "a"), ("del", "red"), ("ins", "crimson"), ("same", "boat")]),
        ("a boat", [("same", "a"), ("del", "red"), ("same", "boat")]),
        ("a red boat now", [("same", "a red boat"), ("ins", "now")]),
    ],
)
def test_word_difference(attacked, runs):
    assert word_difference("a red boat", attacked) == runs
