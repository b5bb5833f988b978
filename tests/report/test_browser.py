"""The pages in a headless Chromium: nothing fails or is requested, all is accessible, also small and in the dark."""

import shutil

import pytest
import torch
from pages import DIFFERENT_KEYS, Page, make_images, make_record, metric
from tiny_run import copy_run

from pipeline.report.diversity import measure_diversity
from pipeline.report.pictures import embed_image
from pipeline.report.report import render_report
from pipeline.runtime.files import read_json, write_json
from stages.command_line import run

LOAD_LIMIT_S, SIZE_LIMIT_BYTES = 1.0, 5_000_000
FAULTS = ("serious", "critical")
VIEWPORTS = {"desktop": (1280, 900), "phone": (360, 740)}
LOOKS = [("desktop", "light"), ("phone", "dark")]
OTHER_LOOKS = [("desktop", "dark"), ("phone", "light")]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the dev extra brings playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def large_record():
    """A run of 1,000 classes of 224-pixel images, with every part of the page, also a warning."""
    steps = [
        metric("synthesize", step, batch=batch, classification=1.0 / (1 + step))
        for batch in range(20)
        for step in range(0, 1000, 5)
    ]
    training = [metric("distill", step, loss=100.0 / (1 + step)) for step in range(2000)]
    images, pixels = make_images(20, 6, 224)
    strip = embed_image(torch.randint(0, 256, (3, 224, 1600), dtype=torch.uint8))
    collapsed = measure_diversity([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], torch.tensor([0, 0, 1, 1]))
    return make_record(
        num_classes=1000,
        metrics=[[*steps, *training]],
        shown=[(image, embed_image(pixels[image.position])) for image in images],
        strips={0: strip},
        preview=strip,
        diversity=collapsed,
    )


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """The pages of a finished run, of a run of 1,000 classes, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    large = folder / "large.html"
    large.write_text(render_report(large_record()))
    copy_run(finished, folder / "runs")
    shutil.copytree(folder / "runs/checkpoints/tiny", folder / "runs/checkpoints/other")
    path = folder / "runs/checkpoints/other/eval-0.json"
    evaluation = read_json(path)
    evaluation["config"]["distill"]["lr"] = 0.05
    del evaluation["config"]["evaluation"]  # as of an earlier version
    write_json(path, evaluation)
    assert (
        run(
            ["compare", "tiny", "other", "--checkpoints-dir", str(folder / "runs/checkpoints"), "--output", str(folder)]
        )
        == 0
    )
    rows = Page((folder / "compare.html").read_text()).rows(DIFFERENT_KEYS)
    assert {"distill.lr", "evaluation.batch_size"} <= {row[0] for row in rows}
    return {"tiny": finished / "checkpoints/tiny/report.html", "large": large, "compare": folder / "compare.html"}


def open_page(browser, path, *, viewport="desktop", scheme="light"):
    """A page with what it logs and requests, in `page.problems`."""
    width, height = VIEWPORTS[viewport]
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)  # other programs may compute too
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url))
    page.goto(path.as_uri())
    page.problems = [text for text in page.problems if text != path.as_uri() and not text.startswith("data:")]
    return page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "viewport", "scheme"),
    [(name, *look) for name in ("tiny", "large", "compare") for look in LOOKS]
    + [("tiny", *look) for look in OTHER_LOOKS],
)
def test_page_has_no_fault(browser, pages, name, viewport, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the dev extra brings axe-core")
    page = open_page(browser, pages[name], viewport=viewport, scheme=scheme)
    assert page.problems == []
    broken = "Array.from(document.images).filter(image => !image.complete || !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    violations = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in FAULTS] == []
    page.context.close()


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_page_is_small_and_opens_quickly(browser, pages, name):
    """The time is that of the processor, so that other programs do not count."""
    assert pages[name].stat().st_size < SIZE_LIMIT_BYTES
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(pages[name].as_uri())
    seconds = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < seconds["TaskDuration"] < LOAD_LIMIT_S
    page.close()


def test_images_are_enlarged_by_keyboard(browser, pages):
    page = open_page(browser, pages["tiny"])
    page.locator("button.enlarge").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    texts = page.locator("button.enlarge img").evaluate_all("images => images.map(image => image.alt)")
    assert page.locator("dialog figcaption").inner_text() == texts[0]
    width = "document.querySelector('dialog img').getBoundingClientRect().width"
    assert page.evaluate(width) >= 300  # an image of eight pixels
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog figcaption").inner_text() == texts[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("dialog img").get_attribute("alt") == texts[-1]
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.querySelector('img').alt") == texts[-1]
    assert page.problems == []
    page.context.close()


def test_images_are_enlarged_by_a_click(browser, pages):
    page = open_page(browser, pages["tiny"], viewport="phone", scheme="dark")
    page.locator("button.enlarge").nth(2).click()
    assert page.locator("dialog").is_visible()
    page.get_by_role("button", name="Next").click()
    alt = page.locator("button.enlarge img").nth(3).get_attribute("alt")
    assert page.locator("dialog img").get_attribute("alt") == alt
    page.get_by_role("button", name="Close").click()
    assert not page.locator("dialog").is_visible()
    page.context.close()
