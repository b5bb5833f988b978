"""All checks of a run, one after the other; one that fails or finds a problem does not stop the others."""

from collections.abc import Callable, Iterable, Iterator

from pipeline.doctor.cost import check_estimate
from pipeline.doctor.examination import Examination
from pipeline.doctor.findings import Finding, ok, problem, reason
from pipeline.doctor.images import check_class_names, check_labels, check_test_images
from pipeline.doctor.machine import check_acceleration, check_device, check_disk
from pipeline.doctor.networks import check_batch_norm, check_features, check_networks
from pipeline.doctor.normalization import check_normalization
from pipeline.doctor.outputs import check_images, check_object_store, check_outputs
from pipeline.run import RunConfig
from pipeline.runtime.distributed import DistributedContext

Check = Callable[[Examination], Iterable[Finding]]


def examine(config: RunConfig, context: DistributedContext) -> Iterator[Finding]:
    """The findings of all checks of a run on this machine, in order. Nothing is written.

    Published weights and test images may be downloaded, as the run itself would do.
    """
    examination = Examination(config=config, context=context)
    for subject, check in CHECKS.items():
        try:
            yield from check(examination)
        except Exception as error:  # whatever stops one check, the others are of use
            yield problem(subject, reason(error, "correct the code of your network, or else report it as a fault"))


def _check_processes(examination: Examination) -> Iterator[Finding]:
    """Whether the processes can share a batch of distillation."""
    config, num_processes = examination.config, examination.context.size
    config.distill.require_even_shares(num_processes)
    yield ok("processes", f"{num_processes}, with {config.distill.batch_size // num_processes} images of a batch each")


# The checks by their subject, in an order in which each finds what it needs of those before.
CHECKS: dict[str, Check] = {
    "device": check_device,
    "processes": _check_processes,
    "images": check_images,
    "precision": check_acceleration,
    "networks": check_networks,
    "disk": check_disk,
    "object store": check_object_store,
    "outputs": check_outputs,
    "batch norm": check_batch_norm,
    "features": check_features,
    "class names": check_class_names,
    "test images": check_test_images,
    "normalization": check_normalization,
    "accuracy": check_labels,
    "estimate": check_estimate,
}
