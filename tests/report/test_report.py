"""The HTML report: its sections, for whatever a run has left."""

import re

import numpy as np
import pytest
import torch
from pages import Page, make_evaluation, make_images, make_page, make_record, make_round, metric

from pipeline.report.diversity import measure_diversity
from pipeline.report.pictures import embed_image
from pipeline.report.record import SHOWN_CLASSES
from pipeline.report.report import render_report
from pipeline.report.sections import MAX_ROWS, MAX_TABLE_CLASSES

SETS = "Each set of images with its mean scores, and the student"


def headings(page: Page) -> list[str]:
    return page.texts["h2"]


def test_page_requests_nothing_and_runs_its_own_script_alone():
    page = make_page()
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert references
    assert all(value.startswith(("data:", "#")) for value in references)
    assert not re.search(r"https?:|@import|url\((?!#)", re.sub(r'src="data:[^"]*"', "", page.source))
    (policy,) = [value for value in page.values("meta", "content") if "default-src" in value]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_headline_says_accuracy_size_and_speed():
    (text,) = re.findall(r'<p class="headline">(.*?)</p>', make_page().source)
    assert "96.67 % of 90 real images correctly, its teacher 100.00 %" in text
    assert text.endswith("retention of 96.67 %, with 4.0 times fewer parameters, 2.0 times faster.")


def test_a_larger_student_is_said_to_be_larger_and_slower():
    evaluation = make_evaluation(10)
    evaluation["student"] = {**evaluation["student"], "parameters": 160_000, "forward_ms": 3.1}
    text = make_page(rounds=[make_round(evaluation=evaluation)]).source
    assert "with 2.0 times more parameters, as fast." in text


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (80_000, "as many parameters."),  # the same architecture: a difference of its times is chance
        (77_600, "3.00 % fewer parameters, 2.0 times faster."),
        (80_080, "0.10 % more parameters, 2.0 times faster."),
        (40_000, "2.0 times fewer parameters, 2.0 times faster."),
    ],
)
def test_parameters_are_compared_exactly(parameters, words):
    evaluation = make_evaluation(10)
    evaluation["student"] = {**evaluation["student"], "parameters": parameters}
    assert f"with {words}" in make_page(rounds=[make_round(evaluation=evaluation)]).source


def test_figures_are_those_of_the_evaluation():
    page = make_page()
    rows = {row[0]: row[1:] for row in page.rows("On 90 real images, the student of round 0")}
    assert rows["top-1"] == ["96.67 %", "100.00 %"]
    assert rows["parameters"] == ["20,000", "80,000"]
    assert rows["forward pass of 64 images, ms"] == ["1.50", "3.00"]
    assert ["agreement: equal predictions", "98.75 %"] in page.rows("The student beside its teacher")


def test_text_of_the_user_is_escaped():
    page = make_page(name="<script>x</script>", config_yaml="name: <img src=x> & more")
    assert page.tags.count("script") == 1
    assert page.texts["h1"] == ["<script>x</script>"]
    assert page.texts["pre"] == ["name: <img src=x> & more"]
    assert "class <3>" in page.texts["h3"]


def test_each_image_has_its_pixels_and_scores_and_a_mark_for_a_miss():
    _, pixels = make_images(10, 3, 8)
    page = make_page()
    assert len(page.pictures()) == 30
    for picture, image in zip(page.pictures(), pixels, strict=True):
        assert np.array_equal(picture, image.permute(1, 2, 0).numpy())
    assert page.values("img", "alt")[:2] == [
        "class <0>, image 000000: teacher 75.00 % (hit), verifier 25.00 % (hit)",
        "class <0>, image 000001: teacher 75.00 % (hit), verifier 25.00 % (miss)",
    ]
    assert page.source.count('<span class="miss" aria-hidden="true">') == 15
    assert "marks a miss: the verifier predicts another class." in page.source


@pytest.mark.parametrize("step", [1, -1])
def test_a_network_that_scored_some_images_is_shown_with_their_number(step):
    images, pixels = make_images(10, 3, 8)
    for image in images[:12]:  # of the classes 0 to 3
        for name in ("verifier_probability", "verifier_top1"):
            del image.metadata[name]
    images[0].metadata["teacher_top1"] = False
    shown = [(image, embed_image(pixels[image.position])) for image in images]
    page = make_page(images=images[::step], shown=shown)
    assert {"teacher", "verifier, 18 images"} <= set(page.texts["text"])
    labels = [value for value in page.values("svg", "aria-label") if value.startswith("Histogram of the prob")]
    assert labels == ["Histogram of the probability of the label; mean: teacher 75.00 %, verifier, 18 images 25.00 %"]
    (hits,) = [value for value in page.values("svg", "aria-label") if value.startswith("Share of images with a hit")]
    assert "class <0> teacher 66.67 %, verifier, 18 images -; " in hits
    assert "class <4> teacher 100.00 %, verifier, 18 images 66.67 %; " in hits
    assert "the verifier, or the teacher of images without its score, predicts another class." in page.source
    assert page.source.count('<span class="miss" aria-hidden="true">') == 9 + 1


def test_axes_say_what_is_counted():
    few, many = make_page().texts["text"], make_page(num_classes=MAX_ROWS + 1).texts["text"]
    assert few.count("% of images") == many.count("% of images") == 1
    assert "% of classes" not in few
    assert many.count("% of classes") == 2  # share of hits, mean distance
    assert {"share of hits", "mean distance"} <= set(many)
    assert {"share of hits, %", "mean distance, %", "top-1, %"} <= set(few)


def test_images_of_many_classes_are_counted():
    page = make_page(num_classes=50)
    assert f"{SHOWN_CLASSES} of 50 classes, {3 * SHOWN_CLASSES} of 40 images" in page.source


def test_shards_alone_make_a_page():
    page = make_page(rounds=[make_round()])
    common = ["Images", "Sets", "Curves", "Scores of the images", "Diversity", "Time and cost", "Repeat it"]
    assert headings(page) == common
    assert (
        "40 synthetic images, and no student yet: run the stage <code>distill</code>, then <code>evaluate</code>."
        in page.source
    )


def test_student_without_evaluation_makes_a_page():
    page = make_page(rounds=[make_round(student_round=0)])
    assert "The student is not evaluated yet: run the stage <code>evaluate</code>." in page.source


def test_synthesis_under_way_shows_curves_and_preview():
    nothing = {"rounds": [], "images": [], "shown": [], "diversity": None}
    preview = embed_image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    page = make_page(**nothing, preview=preview)
    assert headings(page) == ["Images", "Curves", "Time and cost", "Repeat it"]
    assert page.values("img", "src") == [preview.uri]
    assert "No round of images is complete yet: run the stage <code>synthesize</code>." in page.source


def test_several_rounds_have_a_row_each_and_the_last_evaluation_counts():
    evaluation = make_evaluation(10)
    rounds = [
        make_round(0, evaluation={**evaluation, "student": {**evaluation["student"], "top1": 0.5}}),
        make_round(1, evaluation=evaluation),
        make_round(2),
    ]
    page = make_page(rounds=rounds)
    table = page.rows(SETS)
    assert table[0] == ["set", "images", "teacher top1", "student top-1", "fingerprint"]
    assert [row[3] for row in table[1:]] == ["50.00 %", "96.67 %", "-"]
    assert "The figures are those of round 1; the last one is round 2." in page.source
    assert "96.67 % of 90 real images" in page.source


def test_hundreds_of_rounds_stay_readable():
    metrics = [[metric("synthesize", s, batch=0, tv_l2=1.0) | {"round": r} for r in range(300) for s in (0, 1)]]
    page = make_page(rounds=[make_round(r) for r in range(300)], metrics=metrics)
    assert len(page.rows(SETS)) == 21
    assert "20 of 300 sets." in page.source
    labels = [text for text in page.texts["text"] if text.startswith("round ")]
    assert labels == [f"round {r}" for r in (0, 60, 120, 179, 239, 299)]


def test_confusion_matrix_of_20_classes_is_a_table():
    page = make_page(num_classes=MAX_TABLE_CLASSES)
    _, _, rest = page.source.partition('<table class="matrix">')
    rows = re.findall(r"<tr>(.*?)</tr>", rest.partition("</table>")[0])[1:]
    counts = [[int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", row)] for row in rows]
    assert counts == make_evaluation(MAX_TABLE_CLASSES)["student"]["confusion"]
    assert 'style="--share:27%">6</td>' in rows[0]  # 40 % of 6 / 9
    assert page.rows("Most frequent confusions")[1:] == [["class &lt;0&gt;", "class &lt;1&gt;", "3"]]


def test_confusion_matrix_of_25_classes_is_a_picture():
    page = make_page(num_classes=25)
    picture = page.pictures()[-1]
    assert "Confusion matrix of 25 classes" in page.values("img", "alt")[-1]
    expected = np.rint(255 * np.sqrt(np.array(make_evaluation(25)["student"]["confusion"]) / 9))
    assert np.array_equal(picture[:, :, 3], expected)
    assert "matrix" not in page.values("table", "class")


@pytest.mark.parametrize("num_classes", [10, MAX_ROWS + 1])
def test_accuracy_by_class_lists_where_the_student_loses_most(num_classes):
    page = make_page(num_classes=num_classes)
    rows = page.rows("Where the student loses most")
    assert rows[1] == ["class &lt;0&gt;", "66.67 %", "100.00 %", "-33.3"]
    assert len(rows) == 11
    assert ("All 41 classes" in page.source) == (num_classes > 10)


def test_time_and_cost_of_each_stage_stand_beside_the_estimate():
    used = {"cores": 40, "peak_memory_bytes": 2**30}
    one = [metric("synthesize", step, batch=0, tv_l2=1.0, **used) for step in range(4)]
    two = [metric("synthesize", step, batch=1, tv_l2=1.0, **used) for step in range(6)]
    distill = metric("distill", 0, loss=1.0, gpus=1, peak_memory_bytes=2**31)
    estimate = {"teacher_s": 0.0, "synthesize_s": 90.0, "distill_s": 1.0, "shard_bytes": 2**21}
    page = make_page(metrics=[[*one, distill], two], estimate=estimate | {"peak_memory_bytes": 2**32})
    caption = next(text for text in page.texts["caption"] if text.startswith("Time of each stage"))
    assert page.rows(caption)[1:] == [
        ["synthesize", "3.0 s", "1.5 min", "86 %", "2", "0.06 core hours", "2.00 GiB"],
        ["distill", "0.5 s", "1.0 s", "14 %", "1", "&lt; 0.01 GPU hours", "2.00 GiB"],
        ["memory of a process", "2.00 GiB", "4.00 GiB", "", "", "", ""],
        ["images", "1.0 MiB", "2.0 MiB", "", "", "", ""],
    ]
    assert "Distillation: loss" in page.texts["figcaption"]
    assert not {"Distillation: gpus", "Inversion: cores", "Inversion: peak_memory_bytes"} & set(
        page.texts["figcaption"]
    )
    given = make_page(metrics=[[metric("distill", 0, loss=1.0)]], estimate={**estimate, "shard_bytes": 0})
    assert given.rows(caption)[1:] == [  # metrics of an earlier version, of a run that makes no images
        ["distill", "0.5 s", "1.0 s", "100 %", "1", "-", "-"],
        ["images", "1.0 MiB", "-", "", "", "", ""],
    ]


def test_command_and_the_origin_of_outputs_are_stated():
    page = make_page(facts={"command": "make CONFIG=a.yaml SET='seed=1'", "this page written on": "another machine"})
    assert "make CONFIG=a.yaml SET='seed=1'" in page.texts["code"]
    facts = dict(zip(page.texts["dt"][4:], page.texts["dd"][4:], strict=True))  # after the cards
    assert list(facts) == ["command", "images packed on", "images packed with", "evaluated on", "this page written on"]
    assert list(facts.values())[1:] == ["cuda:0 (a card)", "python 3.11", "cpu (a processor)", "another machine"]


def test_copies_in_a_class_are_warned_of():
    images, pixels = make_images(10, 3, 8)
    pixels[:3] = pixels[0]
    labels = torch.tensor([image.label for image in images])
    page = make_page(diversity=measure_diversity([pixels], labels))
    assert page.source.count("The images of 1 of 10 classes hardly differ") == 2
    assert "(class &lt;0&gt;). A student learns little from copies" in page.source
    assert "hardly differ" not in make_page().source


def test_the_same_record_makes_the_same_bytes():
    assert render_report(make_record()) == render_report(make_record())
