"""The plan of a synthesis is balanced and complete, and depends only on configuration and seed."""

import hashlib
from collections import Counter

import pytest
import torch

from pipeline.runtime.config import ConfigError
from pipeline.runtime.ranges import batch_ranges, even_ranges
from pipeline.runtime.seeds import derive_seed, make_generator
from pipeline.synthesis.config import InversionConfig, PhaseConfig, SynthesisConfig
from pipeline.synthesis.plan import BatchSpec, plan_batches
from pipeline.synthesis.terms import TermConfig


def synthesis(**values) -> SynthesisConfig:
    inversion = InversionConfig(phases=(PhaseConfig(steps=1),), terms=TermConfig())
    return SynthesisConfig(**{"num_images": 100, "batch_size": 10, "inversion": inversion} | values)


def plan_all(config: SynthesisConfig, num_classes: int = 10, seed: int = 0) -> list[list[BatchSpec]]:
    return [plan_batches(config, num_classes, seed, r) for r in range(config.rounds)]


CASES = [
    {"num_images": 100, "batch_size": 10},
    {"num_images": 103, "batch_size": 7},
    {"num_images": 64, "batch_size": 64},
    {"num_images": 301, "batch_size": 32, "rounds": 3},
    {"num_images": 51, "batch_size": 9, "rounds": 4},
]


@pytest.mark.parametrize("values", CASES)
def test_classes_are_balanced_per_round_and_overall(values):
    config = synthesis(**values)
    overall: Counter[int] = Counter()
    for specs in plan_all(config):
        counts = Counter(label for spec in specs for label in spec.labels)
        overall += counts
        assert set(counts) <= set(range(10))
        assert max(counts.values()) - min(counts[c] for c in range(10)) <= 1
    assert max(overall.values()) - min(overall[c] for c in range(10)) <= 1


@pytest.mark.parametrize("values", CASES)
def test_every_image_is_planned_once_in_even_rounds(values):
    config = synthesis(**values)
    rounds = plan_all(config)
    numbers = [spec.first_image + i for specs in rounds for spec in specs for i in range(len(spec.labels))]
    assert numbers == list(range(config.num_images))
    sizes = [sum(len(spec.labels) for spec in specs) for specs in rounds]
    assert max(sizes) - min(sizes) <= 1
    assert [spec.index for specs in rounds for spec in specs] == list(range(sum(map(len, rounds))))


@pytest.mark.parametrize("values", CASES)
def test_batches_differ_by_at_most_one_image(values):
    config = synthesis(**values)
    for specs in plan_all(config):
        sizes = [len(spec.labels) for spec in specs]
        assert max(sizes) <= config.batch_size
        assert max(sizes) - min(sizes) <= 1


def test_fewer_images_than_classes_draw_from_all_classes():
    config = synthesis(num_images=84, batch_size=40, rounds=2)
    labels = [
        {label for specs in plan_all(config, 1000, seed) for spec in specs for label in spec.labels} for seed in (0, 1)
    ]
    assert [len(classes) for classes in labels] == [84, 84]
    assert len(labels[0] & labels[1]) < 30
    assert max(labels[0]) > 900


@pytest.mark.parametrize("batch_size", range(3, 61, 7))
def test_any_batch_size_covers_all_images(batch_size):
    specs = plan_batches(synthesis(num_images=60, batch_size=batch_size), 10, 0, 0)
    assert sum(len(spec.labels) for spec in specs) == 60
    assert len(specs) == -(-60 // batch_size)


def test_batches_mix_classes():
    for specs in plan_all(synthesis(num_images=1000, batch_size=50, rounds=2)):
        for spec in specs:
            assert len(set(spec.labels)) >= 7
            assert max(Counter(spec.labels).values()) <= 20
            assert list(spec.labels) != sorted(spec.labels)


GROWTHS = [((100,), 150, 10), ((100, 150), 217, 10), ((30,), 41, 70), ((30, 77), 300, 70), ((21,), 26, 4)]


@pytest.mark.parametrize(("grown_from", "num_images", "num_classes"), GROWTHS)
def test_growth_continues_numbers_classes_and_seeds(grown_from, num_images, num_classes):
    config = synthesis(num_images=num_images, grown_from=grown_from)
    specs = [spec for step in config.growth for spec in plan_batches(step, num_classes, 0, 0)]
    assert [spec.index for spec in specs] == list(range(len(specs)))
    assert len({spec.seed for spec in specs}) == len(specs)
    numbers = [spec.first_image + i for spec in specs for i in range(len(spec.labels))]
    assert numbers == list(range(num_images))
    assert min(len(spec.labels) for spec in specs) >= config.batch_size // 2
    assert plan_batches(synthesis(num_images=grown_from[0]), num_classes, 0, 0) == plan_batches(
        config.growth[0], num_classes, 0, 0
    )
    for step in config.growth:  # balanced at every size, so that the smaller sets are as good
        labels = Counter(label for spec in specs if spec.first_image < step.num_images for label in spec.labels)
        counts = [labels[label] for label in range(num_classes)]
        assert sum(counts) == step.num_images
        assert max(counts) - min(counts) <= 1


def test_added_images_have_an_order_of_their_own():
    first, second = (
        [label for spec in plan_batches(step, 10, 0, 0) for label in spec.labels]
        for step in synthesis(num_images=200, grown_from=(100,)).growth
    )
    assert sorted(first) == sorted(second)
    assert first != second


def test_batch_seeds_differ_over_rounds_and_runs():
    config = synthesis(num_images=400, batch_size=4, rounds=5)
    seeds = [[spec.seed for specs in plan_all(config, seed=seed) for spec in specs] for seed in range(3)]
    all_seeds = [seed for run in seeds for seed in run]
    assert len(set(all_seeds)) == len(all_seeds) == 3 * 100


def test_plan_depends_on_config_and_seed():
    config = synthesis(num_images=103, batch_size=7, rounds=2)
    torch.manual_seed(1)
    first = plan_all(config)
    second_round = plan_batches(config, 10, 0, 1)
    torch.manual_seed(2)
    assert plan_all(config) == first
    assert second_round == first[1]
    assert plan_all(config, seed=1) != first


def test_plan_of_a_seed_is_pinned():
    """Existing shards were made from this plan; if it changes, a resumed run mixes two data sets."""
    (spec,) = plan_batches(synthesis(num_images=6, batch_size=6), 3, 0, 0)
    assert spec.labels == (2, 1, 0, 1, 2, 0)
    assert spec.seed == int(hashlib.sha256(b"0/batch/0").hexdigest()[:16], 16) // 2


def test_rounds_have_different_orders_of_labels():
    first, second = (
        [label for spec in specs for label in spec.labels] for specs in plan_all(synthesis(num_images=200, rounds=2))
    )
    assert first != second


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (3, 3), (7, 1), (100, 7)])
def test_even_ranges_cover_all_in_order(total, parts):
    ranges = even_ranges(total, parts)
    assert [i for r in ranges for i in r] == list(range(total))
    assert len(ranges) == parts
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_batch_ranges_are_as_few_as_possible():
    for total in range(1, 40):
        for batch_size in range(1, 45):
            ranges = batch_ranges(total, batch_size)
            assert len(ranges) == -(-total // batch_size)
            assert max(map(len, ranges)) <= batch_size
            assert [i for r in ranges for i in r] == list(range(total))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_images": 0}, "num_images: 0 must be at least 1"),
        ({"rounds": 101}, "rounds: 101 is more than num_images=100"),
        ({"rounds": 11}, "batch_size: 10 is larger than the set of one round, 9 images"),
        ({"grown_from": (95,)}, "num_images: 100 adds 5 images to a set of 95; .* at least 6, .*raise it to 101"),
        ({"grown_from": (60, 50)}, "num_images: 50 adds -10 images to a set of 60"),
        ({"grown_from": (5,)}, "grown_from: 5 images are fewer than batch_size=12"),
        ({"grown_from": (50,), "rounds": 2}, r"grown_from: \[50\] needs rounds: 1"),
        ({"batch_size": 1}, "batch_size: 1 has no statistics to match"),
        ({"jpeg_quality": 101}, r"jpeg_quality: 101 must be in 1\.\.100"),
    ],
)
def test_invalid_synthesis_config_raises(values, message):
    size = {"batch_size": 12} if "grown_from" in values else {}
    with pytest.raises(ConfigError, match=message):
        synthesis(**size, **values)


def test_derived_seeds_differ_by_run_purpose_and_index():
    seeds = {derive_seed(s, p, i) for s in range(5) for p in ("batch", "labels", "1/batch") for i in range(20)}
    assert len(seeds) == 5 * 3 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(4, generator=make_generator(1, "batch", i)).tolist() for i in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
