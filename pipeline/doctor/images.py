"""Checks of the test images: names of classes, shape, labels."""

import warnings
from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.data.class_names import listed
from pipeline.data.image_sets import load_images
from pipeline.data.loader import check_images
from pipeline.doctor.examination import Examination, draw_sample
from pipeline.doctor.findings import Finding, ok, problem, warning

# Standard errors of an accuracy above chance that a network with the right labels exceeds.
CHANCE_ERRORS = 3.0
# Images of each class from which a better order of the labels is looked for, and the accuracy it must add.
IMAGES_PER_CLASS, ORDER_GAIN = 10, 0.05
# Confidence minus accuracy above which something is wrong with images or labels. Usual networks are below 0.1.
MAX_OVERCONFIDENCE = 0.3


def check_class_names(examination: Examination) -> Iterator[Finding]:
    """Whether the file of `data.class_names` names every class."""
    config = examination.config
    names = config.data.read_class_names(config.images.num_classes)
    if names is None:
        yield ok("class names", "no data.class_names: labels follow the sorted names of folders, or those of the set")
    else:
        titles = listed(config.class_titles)
        yield ok("class names", f"{len(names):,} names; the run has {len(config.class_titles):,}: {titles}")


def check_test_images(examination: Examination) -> Iterator[Finding]:
    """Whether the test images can be read and fit shape and classes."""
    config = examination.config
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load_images(config.data, "test", config.images, config.class_labels)
        check_images(images)
        sample = draw_sample(images)
    for message in dict.fromkeys(str(w.message) for w in caught):
        yield warning("test images", message)
    brightest = int(sample.pixels.max())
    text = f"{len(images.labels):,} of {config.data.test}, {tuple(sample.pixels.shape[1:])}"
    if brightest <= 1:
        yield problem("test images", f"{text}, but the brightest pixel is {brightest}; store pixels as 0 to 255")
        return
    examination.sample = sample
    yield ok("test images", f"{text}, {len(set(images.labels.tolist())):,} classes; {len(sample.labels):,} are tried")


def check_labels(examination: Examination) -> Iterator[Finding]:
    """Whether the networks with weights give the test images their labels, more often than by chance."""
    if examination.sample is None:
        yield warning("accuracy", "not checked, since no test images can be read")
        return
    for key, logits in examination.logits.items():
        yield _label_finding(key, logits, examination.sample.labels)


def _label_finding(key: str, logits: Tensor, labels: Tensor) -> Finding:
    subject, count, num_classes = "accuracy", len(labels), logits.shape[1]
    predictions = logits.argmax(1)
    top1 = (predictions == labels).double().mean().item()
    confidence = logits.double().softmax(1).amax(1).mean().item()
    text = f"{key}: top-1 {top1:.1%} of {count:,} test images"
    if moved := _better_order(predictions, labels, num_classes, top1):
        fix = (
            "the order of the labels differs: for folders of images set data.class_names to the classes in the "
            "network's order, else renumber the labels"
        )
        return problem(subject, f"{text}, {moved}; {fix}")
    if len(set(labels.tolist())) > 1 and top1 <= _chance_limit(predictions, labels, num_classes):
        fix = "check the order of the labels (data.class_names), the weights and the architecture"
        return problem(subject, f"{text} is chance, at a confidence of {confidence:.1%}; {fix}")
    if confidence - top1 > MAX_OVERCONFIDENCE:
        fix = "check the labels, data.short_side_px and images.height and width against the network's training"
        return warning(subject, f"{text}, but its confidence is {confidence:.1%}; {fix}")
    return ok(subject, f"{text}, confidence {confidence:.1%}")


def _chance_limit(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """The accuracy that predictions in these proportions exceed only if they depend on the images.

    By chance it is the sum of p(k) q(k), with the shares p(k) of class k in the labels and q(k) in the predictions.
    """
    shares = [torch.bincount(x, minlength=num_classes).double() / len(labels) for x in (labels, predictions)]
    chance = (shares[0] * shares[1]).sum().item()
    return float(chance + CHANCE_ERRORS * (chance * (1 - chance) / len(labels)) ** 0.5)


def _better_order(predictions: Tensor, labels: Tensor, num_classes: int, top1: float) -> str:
    """The labels that another order of the classes would move, if it fits clearly better; else nothing.

    The order with the most hits is the best assignment in the matrix of confusions.
    """
    if len(labels) < IMAGES_PER_CLASS * num_classes:
        return ""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    confusion.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    best = confusion[rows, columns].sum().item() / len(labels)
    if best - top1 < ORDER_GAIN:
        return ""
    moved = [f"{row} is {column}" for row, column in zip(rows, columns, strict=True) if row != column]
    return f"and {best:.1%} if label {listed(moved)} for the network"
