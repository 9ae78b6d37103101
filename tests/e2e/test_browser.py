"""Prefect's own pages in a headless Chromium: find `select`, change values in its form, start it, see it complete."""

import importlib.util
import re
import shutil

import pytest

from tests.e2e.chain import RUNS, Chain
from tests.e2e.stack import Stack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HAS_BROWSER = bool(CHROMIUM and importlib.util.find_spec("playwright"))
pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect"),
              pytest.mark.skipif(not HAS_BROWSER, reason="needs Playwright and Chromium")]


@pytest.fixture
def page(tmp_path):
    """A page whose last sight is kept for whoever reads a failure."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(120_000)
        yield page
        page.screenshot(path=tmp_path / "last.png")
        browser.close()


def field(page, name: str):
    """The part of the form that is the setting of this name: the innermost one that has it as its label."""
    return page.locator(".schema-form-property", has=page.get_by_text(f"{name} (Optional)", exact=True)).last


def test_values_changed_in_prefects_form_arrive_and_the_run_is_seen_to_complete(stack: Stack, chain: Chain, page, tmp_path):
    chain.upto("score.difficulty")
    settings = {**next(run for run in RUNS if run.slot == "select").settings, "train_positions": 96}  # a version of its own
    page.goto(stack.environment["PREFECT_API_URL"].removesuffix("/api") + "/deployments")
    page.get_by_placeholder("Search deployments").fill("select")
    page.get_by_role("link", name="select", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    for name, value in settings.items():
        field(page, name).locator("input").fill(str(value))
    winnable = field(page, "winnable_tokens")
    assert "(≥ 1, ≤ 16)" in winnable.inner_text()
    assert "Does not change the result." in field(page, "memory_mib").inner_text()
    page.screenshot(path=tmp_path / "form.png", full_page=True)
    winnable.locator("input").fill("40")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("40 is greater than the maximum of 16").first.wait_for()
    winnable.locator("input").fill("4")
    page.get_by_role("button", name="Submit").click()
    run = page.get_by_role("link", name=re.compile("^select .*train_positions=96"))
    run.first.click(timeout=300_000)  # its name appears when the worker has begun it
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=300_000)
    assert stack.ended(page.url.rpartition("/")[2].partition("?")[0])["state"]["type"] == "COMPLETED"
    page.reload()  # its list of artifacts may be older than the run's end
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("select-plot", exact=True).click()
    picture = page.locator("img[src^='data:image/png']")
    picture.wait_for()
    assert picture.evaluate("picture => picture.naturalWidth") > 500
    version = stack.workspace.current("select")
    assert version
    manifest = stack.workspace.manifest("select", version)
    used = {**manifest.config, **manifest.runtime}
    assert {name: used[name] for name in settings} == settings
    positions = stack.workspace.table("select", version, "positions").read(["selected"])["selected"].to_pylist()
    assert positions.count("train") == 96
