"""Checks of the networks: they load, and the teacher has BatchNorm statistics that inversion can match."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.distillation.feature_matching import matched_stages
from pipeline.doctor.examination import Examination
from pipeline.doctor.findings import Finding, ok, problem, reason, warning
from pipeline.models.classifier import Classifier
from pipeline.models.inheritance import inherit_weights
from pipeline.session import build_checked, models_of
from pipeline.synthesis.terms import DEAD_VARIANCE

# Share of dead channels above which they are more than leftovers of training. MobileNetV1 x0.75 has 0.4 %.
MAX_DEAD_SHARE = 0.1
# Normalization layers without running statistics, which a user may take for BatchNorm.
OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def check_networks(examination: Examination) -> Iterator[Finding]:
    """Whether every network can be built, its weights belong to it, and it fits the images and classes."""
    config = examination.config
    if examination.has_trained_teacher:
        config = replace(config, teacher=config.teacher_model, teacher_training=None)
    for key, model in models_of(config).items():
        try:
            network = build_checked(config, key, download=True)
            inherits = key == "student" and config.distill.init == "teacher" and model.weights is None
            if inherits and (teacher := examination.networks.get("teacher")):
                inherit_weights(network.network, teacher.network, config.images.shape, teacher.classes)
        except Exception as error:  # the code of a user's network may raise anything
            text = reason(error, f"correct the code of {model.source}, or {key}.options")
            yield problem(key, text.removeprefix(f"{key}: "))
            continue
        if key != "student":
            network = Classifier(network.network, network.normalization, network.num_classes, config.class_labels)
        examination.networks[key] = network.freeze().to(examination.device)
        start = "to be trained" if key == "teacher" else "starts from the teacher" if inherits else "random weights"
        origin = f"weights {model.weights}" if model.weights else start
        yield ok(key, f"{model.source}, {network.num_parameters:,} parameters, {origin}")


def check_batch_norm(examination: Examination) -> Iterator[Finding]:
    """The BatchNorm layers of the teacher: with statistics, without, as initialized; and their dead channels."""
    teacher = examination.networks.get("teacher")
    if teacher is None:
        yield warning("batch norm", "not checked, since the teacher cannot be loaded")
        return
    layers = [module for module in teacher.network.modules() if isinstance(module, _BatchNorm)]
    matched = [layer for layer in layers if layer.running_mean is not None]
    if not matched:
        others = sum(isinstance(module, OTHER_NORMS) for module in teacher.network.modules())
        without = f"{len(layers)} BatchNorm layers, none with running statistics" if layers else "no BatchNorm layer"
        also = f" (and {others} layers of GroupNorm, LayerNorm or InstanceNorm, which have none)" if others else ""
        yield problem(
            "batch norm", f"the teacher has {without}{also}; inversion matches them: choose a teacher with BatchNorm"
        )
        return
    means = torch.cat([layer.running_mean for layer in matched if layer.running_mean is not None])
    variances = torch.cat([layer.running_var for layer in matched if layer.running_var is not None])
    num_dead = int((variances < DEAD_VARIANCE).sum())
    text = f"{len(matched)} layers with {len(variances):,} channels, {num_dead:,} of them dead"
    if not (torch.isfinite(means).all() and torch.isfinite(variances).all() and (variances >= 0).all()):
        yield problem("batch norm", f"{text}; some statistics are not finite or negative: use other weights")
        return
    num_initial = sum(map(_is_initial, matched))
    if num_initial and examination.has_trained_teacher:
        fix = "use weights with statistics, in which BatchNorm was not merged into convolutions"
        fresh = f"{num_initial} still have the initial mean 0 and variance 1; {fix}"
        yield (problem if num_initial == len(matched) else warning)("batch norm", f"{text}; {fresh}")
    elif len(matched) < len(layers):
        fix = "images are matched to the others alone: build the network with track_running_stats"
        yield warning("batch norm", f"{text}; {len(layers) - len(matched)} more layers have no statistics, {fix}")
    elif num_dead > MAX_DEAD_SHARE * len(variances):
        fix = "little is left to match: check that these are the weights of a finished training"
        yield warning("batch norm", f"{text}; {fix}")
    else:
        yield ok("batch norm", text)


def check_features(examination: Examination) -> Iterator[Finding]:
    """Which maps of student and teacher are compared, if distillation compares them."""
    config, networks = examination.config, examination.networks
    if not config.distill.feature_weight:
        return
    if "student" not in networks or "teacher" not in networks:
        yield warning("features", "not checked, since a network cannot be loaded")
        return
    views = config.distill.view_shape(config.images.shape, examination.context.size)
    pairs = matched_stages(networks["student"], networks["teacher"], views)
    compared = (f"{s.name} with {t.name} ({s.shape[1]}x{s.shape[2]})" for s, t in pairs)
    yield ok("features", f"compared are, of student and teacher, {', '.join(compared)}")


def _is_initial(layer: _BatchNorm) -> bool:
    assert layer.running_mean is not None and layer.running_var is not None
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())
