"""Checks of what exists of a run: the sets of images that it learns from, and its outputs."""

from collections.abc import Iterator

from pipeline.copies import open_object_store
from pipeline.data.class_names import listed
from pipeline.data.given_sets import labels_in_run
from pipeline.data.remote import is_remote
from pipeline.data.shards import is_packed
from pipeline.doctor.examination import Examination
from pipeline.doctor.findings import Finding, ok, warning
from pipeline.pool import Pool, run_classes
from pipeline.preview import list_outputs
from pipeline.resolve import with_growth
from pipeline.session import models_of


def check_images(examination: Examination) -> Iterator[Finding]:
    """Whether the set that exists can grow, or the sets of `distill.shards` are here and fit the run."""
    examination.is_ready = False  # unless nothing below raises
    config = examination.config = with_growth(examination.config)
    names, synthesis = config.distill.shards, config.synthesis
    unfetched = [name for name in names if is_remote(name) and not is_packed(config.given_folder(name))]
    folders = {name: config.given_folder(name) for name in names if name not in unfetched}
    if not names:
        grown = f", {synthesis.grown_from[-1]:,} before the set grew" if synthesis.grown_from else ""
        yield ok("images", f"{synthesis.num_images:,} are synthesized{grown}")
    elif unfetched:
        labels_in_run(folders, run_classes(config), needs_all_classes=False)
        fix = "the stage `distill` fetches it to the disk, and checks then whether all sets fit"
        yield warning("images", f"{listed(unfetched)}: not fetched yet; {fix}")
    else:
        Pool(config, examination.context).require_complete(0)
        yield ok("images", f"of {listed(names)}, which fit the run")
    examination.is_ready = True


def check_object_store(examination: Examination) -> Iterator[Finding]:
    """Whether the object store can be written, if the run has one; raises StoreError if not."""
    store = open_object_store(examination.config)
    if store is not None:
        store.require_writable(examination.config.checkpoints)
        yield ok("object store", f"{examination.config.object_store} can be written")


def check_outputs(examination: Examination) -> Iterator[Finding]:
    """Whether outputs of another configuration are in the way."""
    config = examination.config
    missing = sorted(models_of(config).keys() - examination.networks.keys())
    if missing or not examination.is_ready:
        cause = f"{listed(missing)} cannot be loaded" if missing else "the stages would refuse this configuration"
        yield warning("outputs", f"not checked, since {cause}; solve the problem above first")
        return
    num_existing = sum(output.exists for output in list_outputs(config))
    yield ok("outputs", f"in {config.shards} and {config.checkpoints}; {num_existing} exist")
