"""The quality of a round's synthetic images, or of any folder of shards; with real images, also beside them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.data.image_sets import ImageSet, load_images
from pipeline.data.shards import read_manifest
from pipeline.evaluation.features import Features, extract_features, last_linear
from pipeline.evaluation.set_quality import MAX_IMAGES, compare_sets, own_scores, smallest_class
from pipeline.models.classifier import Classifier, load_frozen
from pipeline.run import RunConfig
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session
from pipeline.synthesis.statistics import has_batch_norm, pool_statistics
from pipeline.synthesis.terms import layer_divergence

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

    Warns if the test images cannot be read, and then leaves out what needs real images. Raises ShardError for a folder
    without a complete set, ValueError when torchmetrics is missing or a set is too small.
    """
    config, num_neighbors = session.config, session.config.evaluation.quality.num_neighbors
    name, network = _choose_network(session)
    layer, manifest = last_linear(network, config.images.shape), read_manifest(folder)
    shards = replace(config.data, test=f"shards:{folder}")
    synthetic = _pass(config, network, layer, load_images(shards, "test", config.images, config.class_labels))
    real, distances, real_distances = None, {}, {}
    try:
        images = load_images(config.data, "test", config.images, config.class_labels)
    except ValueError as error:
        warnings.warn(f"the set is scored without real images: {error}", stacklevel=2)
    else:
        real = _pass(config, network, layer, images)
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
    count = min(len(images.labels), MAX_IMAGES)
    indices = torch.linspace(0, len(images.labels) - 1, count, dtype=torch.float64).round().long().tolist()
    batches = [indices[r.start : r.stop] for r in batch_ranges(count, config.evaluation.batch_size)]
    if not has_batch_norm(network):
        return _Pass(features=extract_features(network, layer, images, batches), bn_divergence=None)
    with pool_statistics(network.network) as pooled:
        features = extract_features(network, layer, images, batches)
    layers = [layer_divergence(statistics) for statistics in pooled.layers()]
    return _Pass(features=features, bn_divergence=torch.stack(layers).mean().item())
