import torch

from pipeline.runtime.seeds import derive_seed, make_generator


def test_seeds_differ_by_run_purpose_and_index():
    seeds = {derive_seed(seed, purpose, index) for seed in (0, 1) for purpose in ("a", "b") for index in (0, 1)}
    assert len(seeds) == 8


def test_generators_of_one_purpose_draw_the_same_numbers():
    first, second = (torch.rand(3, generator=make_generator(0, "a")) for _ in range(2))
    assert torch.equal(first, second)
