"""The parts of a set and their copies in an object store."""

from contextlib import nullcontext

import pytest
from tiny_run import digests

from pipeline.data.parts import FINGERPRINT, Sample, write_part
from pipeline.data.stored_sets import exchange_parts
from pipeline.runtime.config import ConfigError
from pipeline.runtime.object_store import ObjectStore


@pytest.mark.parametrize(("fingerprint", "num_stored"), [("b", 3), ("other", 2)])
def test_parts_of_another_configuration_are_not_stored_over(tmp_path, fingerprint, num_stored):
    folder, store = tmp_path / "0", ObjectStore(f"file://{tmp_path}/store", {tmp_path / "0": "0"})
    samples = {
        name: [Sample(number=i, label=3, image=b"", metadata={FINGERPRINT: name}) for i in range(3)]
        for name in ("b", "other")
    }
    keys = {i: [sample.key] for i, sample in enumerate(samples["b"])}
    for i in range(2):
        write_part(folder, i, [samples[fingerprint][i]], "png")
    exchange_parts(store, folder, keys, fingerprint)
    before = digests(tmp_path / "store")
    for i in range(3):
        write_part(folder, i, [samples["b"][i]], "png")
    with nullcontext() if fingerprint == "b" else pytest.raises(ConfigError, match="another configuration"):
        exchange_parts(store, folder, keys, "b")
    after = digests(tmp_path / "store")
    assert before.items() <= after.items()
    assert len(after) == num_stored
