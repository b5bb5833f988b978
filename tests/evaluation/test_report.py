"""The HTML report: its sections, pictures and curves."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_config

from pipeline.evaluation import report
from pipeline.evaluation.charts import HEIGHT, WIDTH
from pipeline.evaluation.report import MAX_TABLE_CLASSES, RunRecord, render
from pipeline.run import resolved_yaml

NO_END_TAG = ("meta", "img", "line", "polyline")


class Page(HTMLParser):
    """Tags, attributes and texts of a page; fails if tags are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in NO_END_TAG:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in NO_END_TAG:
            assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def picture(self, alternative: str) -> np.ndarray:
        """The pixels of the embedded picture with this alternative text."""
        index = self.attributes.index(("img", "alt", alternative))
        tag, name, value = self.attributes[index + 1]
        header, _, data = value.partition(",")
        assert (tag, name, header) == ("img", "src", "data:image/png;base64")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def report_html(finished) -> str:
    """The report of the tiny run."""
    return (finished / "checkpoints/tiny/report.html").read_text()


def make_evaluation(num_classes: int, line: str = "one line") -> dict:
    """An evaluation with nine images per class: the student errs on three of class 0, the teacher on none."""
    confusion = 9 * np.eye(num_classes, dtype=int)
    confusion[0, [0, 1]] = 6, 3
    network = {
        "top1": 1 - 1 / (3 * num_classes),
        "top5": 1.0,
        "nll": 0.5,
        "calibration_error": 0.01,
        "confusion": confusion.tolist(),
        "parameters": 12345,
        "forward_ms": 1.5,
    }
    return {
        "line": line,
        "num_images": 9 * num_classes,
        "class_titles": [f"class <{label}>" for label in range(num_classes)],
        "student": network,
        "teacher": {**network, "top1": 1.0, "parameters": 67890},
        "agreement": 0.9875,
        "kl": 0.25,
        "accuracy_retention": 0.9667,
        "timed_batch": 100,
    }


def render_page(*, num_classes=10, line="one line", **values) -> str:
    """The page of an invented run; `values` are fields of its record."""
    manifest = {"round": 0, "num_images": 40, "scores": {"teacher_top1": 0.875}, "fingerprint": "0123456789abcdef"}
    record = {
        "name": "a run",
        "manifests": [manifest, {**manifest, "round": 1, "num_images": 41}],
        "metrics": [],
        "evaluation": make_evaluation(num_classes, line),
        "tiles": torch.zeros(2, 3, 1, 8, 8, dtype=torch.uint8),
        "tile_labels": [0, 4],
        "config_yaml": "seed: 0\n",
    }
    return render(RunRecord(**{**record, **values}))


def metric(stage: str, step: int, **more) -> dict:
    return {"stage": stage, "round": 0, "step": step, "elapsed_s": 0.5, **more}


def test_page_is_nested_and_self_contained(report_html):
    page = Page(report_html)
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert references
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r'src="data:[^"]*"', "", report_html))


def test_page_has_metrics_curves_grid_and_config(finished, report_html):
    page = Page(report_html)
    assert {"top-1", "agreement", "5,142"} <= set(page.texts["td"])
    assert "on 500 real images" in page.texts["th"]
    assert page.tags.count("svg") == 3
    assert {"classification", "feature_divergence", "loss"} <= set(page.texts["span"])
    assert [page.picture(f"synthetic images of {label}").shape for label in range(10)] == [(9, 6 * 9)] * 10
    (config_yaml,) = page.texts["pre"]
    assert config_yaml == resolved_yaml(tiny_config(finished))


def test_metrics_are_those_of_the_evaluation():
    cells = Page(render_page()).texts["td"]
    assert cells[cells.index("top-1") : cells.index("top-5")] == ["top-1", "96.67%", "100.00%"]
    assert cells[cells.index("parameters") + 1 : cells.index("parameters") + 3] == ["12,345", "67,890"]
    assert cells[cells.index("agreement") + 1] == "98.75%"
    assert cells[cells.index("KL(teacher || student), nats") + 1] == "0.2500"
    rounds = cells[cells.index("0123456789abcdef") - 3 :]
    assert rounds[:8] == ["0", "40", "87.50%", "0123456789abcdef", "1", "41", "87.50%", "0123456789abcdef"]


def test_text_of_the_user_is_escaped():
    page = Page(render_page(name="<script>x</script>", config_yaml="name: <img src=x> & more", line="5 < 6 & 7"))
    assert "script" not in page.tags
    assert page.texts["h1"] == ["dreamdistill: <script>x</script>"]
    assert page.texts["pre"] == ["name: <img src=x> & more"]
    assert "5 < 6 & 7" in page.texts["p"]


def test_each_class_has_a_row_of_tiles_under_its_title():
    tiles = torch.arange(2 * 3 * 3).view(2, 3, 3, 1, 1).expand(2, 3, 3, 4, 5).to(torch.uint8)
    page = Page(render_page(tiles=tiles))
    for row, label in enumerate([0, 4]):
        assert f"class <{label}>" in page.texts["th"]
        picture = page.picture(f"synthetic images of class <{label}>")
        assert picture.shape == (5, 3 * 6, 3)
        for column in range(3):
            tile = picture[:4, 6 * column : 6 * column + 5]
            assert np.array_equal(tile[0, 0], tiles[row, column, :, 0, 0].numpy())
            assert (tile == tile[0, 0]).all()
        assert (picture[4] == 255).all()


def test_confusion_matrix_of_20_classes_is_a_table():
    page = Page(render_page(num_classes=MAX_TABLE_CLASSES))
    assert page.texts["th"][-MAX_TABLE_CLASSES:] == [f"class <{label}>" for label in range(MAX_TABLE_CLASSES)]
    matrix = [cell for cell in page.texts["td"] if cell in ("0", "3", "6", "9")][-(MAX_TABLE_CLASSES**2) :]
    expected = make_evaluation(MAX_TABLE_CLASSES)["student"]["confusion"]
    assert matrix == [str(count) for row in expected for count in row]


def test_confusion_matrix_of_25_classes_is_a_picture():
    page = Page(render_page(num_classes=25))
    picture = page.picture("confusion matrix")
    expected = np.full((25, 25), 255) - 255 * np.eye(25)
    expected[0, :2] = 255 - 170, 255 - 85
    assert np.array_equal(picture, expected)
    assert not any(value == "matrix" for _, name, value in page.attributes if name == "class")


def curve_points(page: Page) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in value.split()]
        for tag, name, value in page.attributes
        if (tag, name) == ("polyline", "points")
    ]


def test_curve_is_the_mean_over_batches():
    metrics = [
        metric("synthesize", step, batch=batch, tv_l2=value + batch)
        for batch in (0, 1)
        for step, value in ((0, 3.0), (5, 2.0), (10, 1.0))
    ]
    (curve,) = curve_points(Page(render_page(metrics=metrics)))
    xs, ys = zip(*curve, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1])
    assert ys[0] < ys[2]  # SVG counts y from the top


def test_each_round_has_its_own_curve():
    metrics = [metric("distill", step, loss=1.0 + r, lr=0.1) | {"round": r} for r in (0, 1) for step in (0, 1)]
    page = Page(render_page(metrics=metrics))
    assert len(curve_points(page)) == 2
    assert page.texts["span"] == ["loss, round 0", "loss, round 1"]


def test_times_are_summed_over_lines_and_ranks():
    metrics = [metric("distill", 0, loss=1.0), metric("distill", 1, loss=1.0), metric("synthesize", 0, tv_l2=1.0)]
    cells = Page(render_page(metrics=metrics)).texts["td"]
    assert cells[cells.index("synthesize") + 1] == "0.5"
    assert cells[cells.index("distill") + 1] == "1.0"


@pytest.mark.parametrize("losses", [[1.0], [0.0, 0.0], [1e-9, 1e9], [-1.0, 1.0], [5.0, 5.0]])
def test_curve_stays_inside_the_chart(losses):
    page = Page(render_page(metrics=[metric("teacher", step, loss=loss) for step, loss in enumerate(losses)]))
    (curve,) = curve_points(page)
    assert len(curve) == len(losses)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)


def test_run_without_metrics_has_a_page():
    page = Page(render_page(metrics=[]))
    assert "svg" not in page.tags


@pytest.mark.parametrize(("size_px", "rendering"), [(8, "pixelated"), (224, "auto")])
def test_only_enlarged_images_are_pixelated(size_px, rendering):
    page = report._image("tiles", torch.zeros(1, size_px, 2 * size_px, dtype=torch.uint8), 2 * 64)
    assert f"image-rendering:{rendering}" in page
