"""The page in a browser, at the width of a desk and of a phone; left out where no Chromium is installed."""

import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
expect.set_options(timeout=20_000)  # milliseconds, for machines that do much else


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (375, "dark")], ids=str)
def page(request, browser, served):
    """Rows of VQA on the embedded set; afterwards it must not have overflowed, failed or asked elsewhere."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, errors, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served)
    expect(page.get_by_role("gridcell").first).to_be_visible()
    choose(page, "Task", "vqa")
    choose(page, "Protocol", "embedded openpairs")
    expect(page.get_by_role("gridcell", name="Barlow <b>Twins</b>")).to_be_visible()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
    context.close()


def choose(page, label, option):
    page.get_by_label(label).first.click()
    page.get_by_role("option", name=option).first.click()


def column(page, number):
    cells = page.locator(f'[role=gridcell][data-col="{number}"]')
    return [text.strip() for text in cells.all_inner_texts()]


def test_filter_sort_open_and_plot(page):
    assert column(page, 0) == ["RMCL", "Barlow <b>Twins</b>", "Control", "RMCL"]

    page.get_by_label("not converged").uncheck()
    expect(page.get_by_role("gridcell", name="Barlow <b>Twins</b>")).to_have_count(0)
    assert column(page, 0) == ["RMCL", "Control", "RMCL"]

    choose(page, "Sorted by", "robust accuracy, highest first")
    expect(page.get_by_role("gridcell").nth(3)).to_have_text("68.8")
    assert column(page, 3) == ["68.8", "62.5", "14.1"]

    page.get_by_role("gridcell", name="RMCL").first.click()
    details = page.locator("article.details")
    expect(details).to_contain_text("RMCL under words-20pct")
    expect(details).to_contain_text("of 64 examples")
    assert details.locator("img").count() == 4
    assert details.locator("img").first.evaluate("image => image.naturalWidth") == 48
    details.get_by_text("All checks").click()
    expect(details.get_by_text("28. artefacts are stored")).to_be_visible()

    page.get_by_role("tab", name="Plots").click()
    points = page.locator("#scatter path[role=graphics-symbol]")
    expect(points).to_have_count(3)
    assert "robust accuracy, %: 68.8" in points.first.get_attribute("aria-label")
    expect(page.locator("#curve-linf path[role=graphics-object], #curve-linf .mark-line path")).to_have_count(
        2
    )
    expect(page.locator("#curve-l2")).to_have_count(0)


def test_the_menu_of_a_heading_sorts(page):
    heading = page.get_by_role("columnheader", name=re.compile("Robust"))
    heading.hover()
    heading.get_by_label("Open cell menu").click()
    page.get_by_text("Sort ascending").click()
    expect(page.locator('[role=gridcell][data-col="3"]').first).to_have_text("14.1")
    assert column(page, 3) == ["14.1", "46.9", "62.5", "68.8"]
    page.get_by_role("gridcell", name="Control").first.click()
    expect(page.locator("article.details")).to_contain_text("Control under linf-4")


def test_another_protocol_replaces_the_table(page):
    choose(page, "Protocol", "contaminated")
    expect(page.get_by_role("gridcell")).to_have_count(10)
    assert column(page, 2) == ["93.8"]
    page.get_by_role("gridcell").first.click()
    expect(page.locator("article.details")).to_contain_text("Contaminated: all test questions")


def test_refused_rows_and_about(page):
    page.get_by_role("tab", name="Refused").click()
    expect(page.get_by_text("gate 18 of the audit, splits are apart, is not passed")).to_be_visible()
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_text("not one of the Hub's own leaderboards")).to_be_visible()


def test_by_keyboard_alone(page):
    page.get_by_label("Opened row").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("article.details")).to_be_visible()
    seen = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.getAttribute('role') || document.activeElement.tagName")
        )
    assert {"combobox", "tab", "gridcell", "INPUT"} <= seen
