"""The check of the normalization: statistics of the first BatchNorm layer, and accuracy, with what else it could be."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.doctor.examination import Examination, Sample
from pipeline.doctor.findings import Finding, ok, problem, reason, warning
from pipeline.doctor.preparation import BEST_FIT, GIVEN, Preparation, divergences, nearest
from pipeline.models.classifier import Classifier
from pipeline.runtime.seeds import make_generator
from pipeline.session import models_of
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise, to_pixels
from pipeline.synthesis.statistics import has_batch_norm

# Images whose statistics are compared.
STATISTICS_IMAGES = 128
# Noise in place of test images: amplitudes and correlations of colors as in photographs, brightness 0.45 +- 0.27.
NOISE = InitNoiseConfig(spectrum=1.5, correlation=0.87, std=1.2)
# Divergences in nats. With the right normalization, five published networks have 0.003 to 0.05 on test images and 0.03
# to 0.07 on noise (docs/doctor.md). An alternative must be lower by a factor.
UNUSUAL, GROSS, BETTER_FACTOR = 0.1, 1.0, 4.0
# An alternative whose accuracy is tried has at most this share of the given divergence. Its gain in accuracy must have
# so many standard errors (McNemar's test of paired hits), and be at least so large.
TRIED_SHARE, GAIN_ERRORS, MIN_GAIN = 0.9, 3.0, 0.01
# Beyond these, the normalized input of a teacher that the run trains is far from mean 0 and standard deviation 1.
MAX_INPUT_MEAN, MIN_INPUT_STD = 2.0, 0.1


def check_normalization(examination: Examination) -> Iterator[Finding]:
    """Whether mean, std and the order of colors of every network with weights are those of its training.

    Without test images, which is a problem of its own, gross errors alone are told.
    """
    for key, network in examination.networks.items():
        if key == "teacher" and not examination.has_trained_teacher:
            if examination.sample is not None:
                yield _input_finding(examination.sample, network)
        elif key == "teacher" or models_of(examination.config)[key].weights is not None:
            try:
                yield _network_finding(examination, key, network)
            except Exception as error:  # the code of a user's network may raise anything
                yield problem("normalization", f"{key}: {reason(error, 'correct the code of its forward')}")


def _input_finding(sample: Sample, network: Classifier) -> Finding:
    """For a teacher that the run trains: whether its normalized input has about mean 0 and standard deviation 1."""
    inputs = network.normalize(to_unit(sample.pixels).to(network.device))
    mean, std = inputs.mean().item(), inputs.std().item()
    text = f"teacher: test images have mean {mean:.2f} and standard deviation {std:.2f} after it"
    if abs(mean) > MAX_INPUT_MEAN or not MIN_INPUT_STD < std < 1 / MIN_INPUT_STD:
        fix = "set teacher.mean and teacher.std to those of the images, for pixels in [0, 1]"
        return problem("normalization", f"{text}, far from 0 and 1; {fix}")
    return ok("normalization", f"{text}; the run trains it so")


def _network_finding(examination: Examination, key: str, network: Classifier) -> Finding:
    given = Preparation(name=GIVEN, normalization=network.normalization)
    if examination.sample is not None:
        examination.logits[key] = _logits(network, examination.sample, given)
    if not has_batch_norm(network.network):
        return ok("normalization", f"{key}: has no BatchNorm layer that would tell; see its accuracy")
    pixels = _statistics_pixels(examination).to(network.device)
    own, others = divergences(network.network, pixels, given)
    if not others:
        fix = f"use other weights, {key}.weights holds statistics that are not finite or negative"
        return problem("normalization", f"{key}: no images match its first BatchNorm layer; {fix}")
    nearer = {p: value for p, value in others.items() if value < TRIED_SHARE * own}
    text = f"{key}: the first BatchNorm layer differs by {own:.2g} nats from training"
    if examination.sample is None:
        known, threshold = "on noise, which tells gross errors only", GROSS
    elif better := _more_accurate(examination, key, network, nearer):
        return better
    else:
        known, threshold = "with about the same accuracy", UNUSUAL
    best = nearest(others)
    if own > threshold and own > BETTER_FACTOR * others[best]:
        status = problem if own > GROSS else warning
        return status("normalization", f"{text}, by {others[best]:.2g} with {best.name}, {known}; {_fix(key, best)}")
    if examination.sample is None:
        fit = next((p for p in others if p.name == BEST_FIT), best)
        return ok("normalization", f"{text}, {known}; compare with what fits noise best: {_settings(key, fit)}")
    return ok("normalization", text)


def _statistics_pixels(examination: Examination) -> Tensor:
    """Pixels in [0, 1] of some test images, or noise if there are none."""
    if examination.sample is None:
        shape = (STATISTICS_IMAGES, *examination.config.images.shape)
        return to_pixels(init_noise(shape, NOISE, make_generator(0, "doctor"))).clamp(0, 1)
    pixels = examination.sample.pixels
    return to_unit(pixels[torch.linspace(0, len(pixels) - 1, min(STATISTICS_IMAGES, len(pixels))).long()])


def _more_accurate(
    examination: Examination, key: str, network: Classifier, others: Mapping[Preparation, float]
) -> Finding | None:
    """A problem if the nearest of the others, in either order of colors, gives clearly more hits than the given one."""
    sample = examination.sample
    assert sample is not None
    in_orders = [{p: d for p, d in others.items() if p.is_swapped == is_swapped} for is_swapped in (False, True)]
    tried = {p: _logits(network, sample, p) for p in map(nearest, filter(None, in_orders))}
    if not tried:
        return None
    hits = {p: logits.argmax(1) == sample.labels for p, logits in tried.items()}
    given_hits = examination.logits[key].argmax(1) == sample.labels
    best = max(tried, key=lambda p: int(hits[p].sum()))
    gain, num_changed = int(hits[best].sum() - given_hits.sum()), int((hits[best] != given_hits).sum())
    if gain <= max(GAIN_ERRORS * num_changed**0.5, MIN_GAIN * len(given_hits)):
        return None
    examination.logits[key] = tried[best]
    given_top1, top1 = (x.double().mean().item() for x in (given_hits, hits[best]))
    text = f"{key}: top-1 is {given_top1:.1%} as given and {top1:.1%} with {best.name}"
    return problem("normalization", f"{text}{' and red and blue exchanged' * best.is_swapped}; {_fix(key, best)}")


def _fix(key: str, preparation: Preparation) -> str:
    settings = f"set {_settings(key, preparation)}"
    if not preparation.is_swapped:
        return settings
    swap = (
        "colors are in another order: correct the test images if they are stored as BGR; if the network reads blue "
        "first, exchange the input channels of its first layer's weights, or reverse the channels in its forward"
    )
    return swap if preparation.name == GIVEN else f"{swap}; and {settings}"


def _settings(key: str, preparation: Preparation) -> str:
    """The keys of the config with the values of a normalization, as SET takes them."""
    mean, std = (f"[{','.join(f'{value:.4g}' for value in values)}]" for values in preparation.normalization)
    return f"{key}.mean={mean} and {key}.std={std}"


@torch.no_grad()
def _logits(network: Classifier, sample: Sample, preparation: Preparation) -> Tensor:
    """Logits (N, K) of the sample, on the CPU, of the classes of the run."""
    logits = torch.cat(
        [network.network(preparation.apply(batch)).float().cpu() for batch in sample.batches(network.device)]
    )
    return logits if network.classes is None else logits[:, network.classes.cpu()]
