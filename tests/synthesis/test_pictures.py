"""The pictures of a synthesis: when they are drawn, of what, and with which titles."""

from dataclasses import replace

import pytest
import torch
from tiny_run import make_facts, make_samples

from pipeline.data.codec import decode_image, to_uint8
from pipeline.data.parts import write_part
from pipeline.data.shards import pack
from pipeline.runtime.sinks import open_sinks
from pipeline.synthesis import pictures
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.inputs import to_pixels
from pipeline.synthesis.pictures import LivePictures, RoundTitles, draw_grid, has_pictures
from pipeline.synthesis.plan import BatchSpec
from pipeline.synthesis.terms import TermConfig

CONFIG = InversionConfig(phases=(PhaseConfig(steps=40),), terms=TermConfig(), log_every=4)
SPECS = [BatchSpec(index=i, first_image=0, labels=(2, 2, 0, 2, 1), seed=i) for i in range(2)]
TITLES = RoundTitles(round="run, round 0", classes=("cat", "dog", "fox"))


@pytest.fixture
def sheets(monkeypatch):
    """The (rows, tile size, text) of every sheet that is drawn."""
    drawn, draw = [], pictures.draw_sheet

    def record(*arguments):
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(pictures, "draw_sheet", record)
    return drawn


def invert_two_batches(folder, *, config=CONFIG, evolution="evolution-0", size=(8, 8)) -> list[tuple[str, int]]:
    """Show two batches of random inputs; returns the name and the step of each picture."""
    sent = []
    with open_sinks([], "run", folder, {}) as sinks:
        sinks._send = lambda name, picture, step: sent.append((name, step))
        live = LivePictures(sinks, TITLES, config, size, evolution)
        for spec in SPECS:
            for step in [*range(0, config.num_steps, config.log_every), config.num_steps - 1]:
                live.on_step(spec, step, torch.randn(5, 3, *size, generator=torch.Generator().manual_seed(step)))
            live.finish(spec, torch.full((5, 3, *size), 7, dtype=torch.uint8))
    return sent


def test_the_first_picture_comes_with_the_first_step(tmp_path):
    sent = invert_two_batches(tmp_path)
    assert sent[:2] == [("preview", 0), ("evolution-0", 0)]
    assert {path.name for path in tmp_path.iterdir()} == {"preview.png", "evolution-0.png"}


def test_the_evolution_is_of_the_first_batch_and_complete_when_it_is_finished(tmp_path, sheets):
    sent = invert_two_batches(tmp_path)
    last = max(i for i, (name, _) in enumerate(sent) if name == "evolution-0")
    assert sent[last] == ("evolution-0", 40)
    rows, _, text = sheets[last]
    assert text.columns == ["0", "4", "12", "16", "24", "28", "36", "40"]
    assert [row.title for row in rows] == ["fox", "cat", "dog"]  # one image of each class
    for row, index in zip(rows, (0, 2, 4), strict=True):
        inputs = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(12))[index]
        assert torch.equal(row.images[2], to_uint8(to_pixels(inputs)))
        assert (row.images[-1] == 7).all()


def test_the_preview_names_batch_and_step(tmp_path, sheets, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.sinks.LIVE_SHARE", float("inf"))
    monkeypatch.setattr("pipeline.runtime.sinks.LIVE_SENT_EVERY_S", 0.0)
    assert ("preview", 76) in invert_two_batches(tmp_path)  # step 36 of the second batch
    captions = [text.caption for _, _, text in sheets]
    assert "run, round 0, batch 1, step 36 of 40" in captions


def test_a_round_without_pictures_of_its_own_has_a_preview(tmp_path):
    assert {name for name, _ in invert_two_batches(tmp_path, evolution=None)} == {"preview"}


@pytest.mark.parametrize(("size", "num_shown"), [((8, 8), 5), ((224, 224), 5), ((6, 500), 5)])
def test_pictures_of_any_size_are_drawn(tmp_path, sheets, size, num_shown):
    invert_two_batches(tmp_path, config=replace(CONFIG, log_every=100), size=size)
    rows = sheets[0][0]
    assert sum(len(row.images) for row in rows) == num_shown
    assert sheets[-1][2].columns == ["0", "40"]


@pytest.mark.parametrize(
    ("num_rounds", "expected"),
    [(1, [0]), (10, list(range(10))), (1000, [0, 111, 222, 333, 444, 555, 666, 777, 888, 999])],
)
def test_up_to_ten_rounds_have_pictures(num_rounds, expected):
    assert [r for r in range(num_rounds) if has_pictures(r, num_rounds)] == expected


def pack_round(folder, labels, *, with_verifier: bool, **facts):
    samples, _ = make_samples(labels, channels=3)
    for i, sample in enumerate(samples):
        if with_verifier:
            sample.metadata["verifier_top1"] = i % 3 == 0
    write_part(folder, 0, samples, "png")
    facts = make_facts(channels=3, images_per_shard=20, **facts)
    pack(folder, [0], {}, {**facts, "class_titles": [f"class {i}" for i in range(facts["num_classes"])]})
    return samples


@pytest.mark.parametrize("with_verifier", [True, False])
def test_the_grid_marks_the_hits_of_the_verifier_else_of_the_teacher(tmp_path, sheets, with_verifier):
    samples = pack_round(tmp_path, [0, 2, 2, 0, 2, 2], with_verifier=with_verifier)
    draw_grid(tmp_path, "run, round 0")
    ((rows, _, text),) = sheets
    assert [row.title for row in rows] == ["class 0", "class 2"]
    expected = {"class 0": [True, True], "class 2": [False] * 4} if with_verifier else {}
    hits = {row.title: row.hits for row in rows}
    assert hits == (expected or {"class 0": [True, False], "class 2": [False, True, True, False]})
    assert text.hit.startswith(f"the {'verifier' if with_verifier else 'teacher'} predicts the class (")
    assert text.caption == "run, round 0: 6 images"
    shown = torch.stack(list(rows[1].images))
    assert torch.equal(shown, torch.stack([decode_image(samples[i].image, 3, "") for i in (1, 2, 4, 5)]))


def test_the_grid_of_many_classes_shows_some(tmp_path, sheets):
    pack_round(tmp_path, list(range(100)) * 2, with_verifier=False, num_classes=100)
    picture = draw_grid(tmp_path, "run, round 0")
    ((rows, _, text),) = sheets
    assert [len(rows), rows[0].title, rows[-1].title] == [20, "class 0", "class 99"]
    assert text.caption.endswith(": 200 images, 20 of 100 classes")
    assert max(picture.size) < 2000
