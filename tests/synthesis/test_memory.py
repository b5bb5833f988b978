"""The advice for a batch that does not fit into the memory of the device."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny_run import copy_run, run_command

from pipeline.run import load_run
from pipeline.synthesis import batches, memory
from pipeline.synthesis.memory import batch_that_fits
from stages import clean, synthesize


@pytest.mark.parametrize("batch_size", [512, 100, 8])
def test_batch_that_fits_is_extrapolated_from_two_small_ones(batch_size):
    assert batch_that_fits(lambda size: 1000 + 100 * size, batch_size, limit_bytes=20_000) == 170


def test_out_of_memory_raises_with_a_batch_size_that_fits(finished, tmp_path, monkeypatch, capsys):
    path = copy_run(finished, tmp_path)
    clean.remove(load_run(path), 0)
    inputs_of_batch = []

    def invert(objective, labels, *arguments):
        inputs = torch.zeros(len(labels), 1, 8, 8)
        inputs_of_batch.append(weakref.ref(inputs))
        raise torch.OutOfMemoryError

    def peak_bytes(objective, config, batch_size):
        assert inputs_of_batch[0]() is None, "the batch that did not fit is still in memory"
        return 1000 + 100 * batch_size

    monkeypatch.setattr(batches, "invert", invert)
    monkeypatch.setattr(memory, "_peak_bytes", peak_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2000))
    assert run_command(monkeypatch, synthesize.main, path) == 2
    message = "synthesis.batch_size: 20 images at once need more than the 0.0 GiB of cpu; about 8 fit, set it to that"
    assert message in capsys.readouterr().err
    assert not list(load_run(path).round_folder(0).glob("parts/*.tar"))
