"""The quality of a round's synthetic images, or of any folder of shards; with real images, also beside them."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.data.image_sets import ImageSet, load_images
from pipeline.data.loader import evenly_spaced
from pipeline.data.shards import read_manifest
from pipeline.evaluation.features import Features, extract_features, last_linear
from pipeline.evaluation.set_quality import (
    MAX_IMAGES,
    compare_sets,
    own_scores,
    require_comparable,
    smallest_class,
)
from pipeline.models.classifier import Classifier, load_frozen
from pipeline.run import RunConfig
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session
from pipeline.synthesis.statistics import has_batch_norm, pool_statistics
from pipeline.synthesis.terms import layer_divergence

Result = TypeVar("Result")

# The scores in the order of the table, with their titles and what is good.
TITLES = {
    "top1": ("share with the label predicted", "high"),
    "probability": ("probability of the label", "high"),
    "class_distance": ("distance within a class / between classes", "as real"),
    "vendi": ("different images of a class (Vendi score)", "as real"),
    "bn_divergence": ("divergence from BatchNorm's statistics, nats", "low"),
    "frechet_distance": ("Frechet distance to real images", "low"),
    "kernel_distance": ("kernel distance to real images", "low"),
    "precision": ("precision", "high"),
    "recall": ("recall", "high"),
    "density": ("density", "high"),
    "coverage": ("coverage", "high"),
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The scores of a synthetic set by their name, and those of real images for comparison.

    `network` and `layer` say whose features they are in. `set_scores` are those that the set's manifest has. Distances
    in `real` are of one half of the real images from the other half, so a set as good as real images has about those.
    Without real images, `real` is empty.
    """

    shards: str
    fingerprint: str
    network: str
    layer: str
    num_features: int
    num_images: int
    num_real: int
    set_scores: dict[str, float]
    synthetic: dict[str, float]
    real: dict[str, float]

    def lines(self) -> Iterator[str]:
        """The scores as a table."""
        yield (
            f"{self.shards}: {self.num_images:,} images beside {self.num_real:,} real ones; features: the "
            f"{self.num_features} inputs of {self.layer} of the {self.network}"
        )
        yield ", ".join(f"{name} {value:.1%}" for name, value in self.set_scores.items())
        yield f"{'':46}{'synthetic':>11}{'real':>11}  good is"
        for key, (title, good) in TITLES.items():
            if key in self.synthetic:
                real = f"{self.real[key]:11.4g}" if key in self.real else f"{'':11}"
                yield f"{title:46}{self.synthetic[key]:11.4g}{real}  {good}"


def quality_path(config: RunConfig, round_index: int) -> Path:
    """The file of the quality of the images of a round."""
    return config.checkpoints / f"quality-{round_index}.json"


def measure_quality(session: Session, folder: Path) -> Quality:
    """Score the images of a folder of shards, in the features of the network that the config names.

    Warns if the test images cannot be read, or if the sets cannot be compared, and then leaves out what needs that.
    Raises ShardError for a folder without a complete set.
    """
    config, num_neighbors = session.config, session.config.evaluation.quality.num_neighbors
    name, network = _choose_network(session)
    layer, manifest = last_linear(network, config.images.shape), read_manifest(folder)
    shards = replace(config.data, test=f"shards:{folder}")
    images = load_images(shards, "test", config.images, config.class_labels)
    real_images = _or_warn(lambda: load_images(config.data, "test", config.images, config.class_labels))
    # Both before the passes, which can take long.
    are_comparable = real_images is not None and _are_comparable(images, real_images, num_neighbors)
    synthetic = _pass(config, network, layer, images)
    real = None if real_images is None else _or_warn(lambda: _pass(config, network, layer, real_images))
    distances, real_distances = {}, {}
    if real is not None and are_comparable:
        distances = compare_sets(synthetic.features.values, real.features.values, num_neighbors)
        order = torch.randperm(len(real), generator=make_generator(config.seed, "quality"))
        halves = [real.features.values[order[i::2]] for i in range(2)]
        if len(halves[1]) > num_neighbors:
            real_distances = compare_sets(halves[0], halves[1], num_neighbors)
    # The Vendi score grows with the number of images, so both sets have as many of a class.
    num_per_class = min(smallest_class(one.features) for one in (synthetic, real) if one is not None)
    return Quality(
        shards=str(folder),
        fingerprint=manifest["fingerprint"],
        network=name,
        layer=layer,
        num_features=synthetic.features.values.shape[1],
        num_images=len(synthetic),
        num_real=0 if real is None else len(real),
        set_scores=manifest["scores"],
        synthetic=synthetic.scores(num_per_class) | distances,
        real={} if real is None else real.scores(num_per_class) | real_distances,
    )


def _or_warn(read: Callable[[], Result]) -> Result | None:
    """What `read` returns of real images; None, with a warning, if they cannot be read."""
    try:
        return read()
    except ValueError as error:
        warnings.warn(f"the set is scored without real images: {error}", stacklevel=3)
        return None


def _are_comparable(images: ImageSet, real_images: ImageSet, num_neighbors: int) -> bool:
    """Whether the distances of the sets can be measured; warns if not."""
    num_synthetic, num_real = (min(MAX_IMAGES, len(one.labels)) for one in (images, real_images))
    try:
        require_comparable(num_synthetic, num_real, num_neighbors)
    except ValueError as error:
        warnings.warn(f"the set is not compared with the real images: {error}", stacklevel=3)
        return False
    return True


def _choose_network(session: Session) -> tuple[str, Classifier]:
    """The network of the features and its name: that of the config, else the verifier, else the teacher."""
    config = session.config
    if (model := config.evaluation.quality.network) is not None:
        return model.source, load_frozen(model, config.images, session.context.device, config.class_labels)
    if session.scorers.verifier is not None:
        return "verifier", session.scorers.verifier
    return "teacher", session.teacher


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What a network computes for a set; `bn_divergence` is None if it has no BatchNorm statistics."""

    features: Features
    bn_divergence: float | None

    def __len__(self) -> int:
        return len(self.features.labels)

    def scores(self, num_per_class: int) -> dict[str, float]:
        """The scores that need no other images."""
        divergence = {} if self.bn_divergence is None else {"bn_divergence": self.bn_divergence}
        return own_scores(self.features, num_per_class) | divergence


def _pass(config: RunConfig, network: Classifier, layer: str, images: ImageSet) -> _Pass:
    """Send evenly spaced images of a set through a network."""
    indices = evenly_spaced(len(images.labels), MAX_IMAGES)
    batches = [batch.tolist() for batch in torch.split(indices, config.evaluation.batch_size)]
    if not has_batch_norm(network):
        return _Pass(features=extract_features(network, layer, images, batches), bn_divergence=None)
    with pool_statistics(network.network) as pooled:
        features = extract_features(network, layer, images, batches)
    layers = [layer_divergence(statistics) for statistics in pooled.layers()]
    return _Pass(features=features, bn_divergence=torch.stack(layers).mean().item())
