"""Feature matching in the stages: over rounds, in the identity of a student, and networks that it cannot compare."""

from tiny_run import TWO_ROUNDS, copy_run, run_in_process, tiny_config, write_config

from pipeline.identity import student_identity
from pipeline.models.checkpoint import read_description
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import read_metrics
from pipeline.session import open_session
from stages import chain, distill

NO_MAPS = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_students_of_all_rounds_learn_from_the_maps(tmp_path):
    config = tiny_config(tmp_path, **TWO_ROUNDS, distill__feature_weight=500.0, distill__lr=1e-4)
    run_in_process(chain.main, config)
    for round_index in range(2):
        identity = read_description(config.student_path(round_index))["identity"]
        assert identity["distill"]["feature_weight"] == 500
    plain = tiny_config(tmp_path / "plain", **TWO_ROUNDS, distill__lr=1e-4)
    plain.checkpoints.mkdir(parents=True)
    plain.trained_teacher_path.write_bytes(config.trained_teacher_path.read_bytes())
    run_in_process(chain.main, plain)
    losses = [
        [one["loss"] for one in read_metrics(c.metrics_path()) if one["stage"] == "distill"] for c in (config, plain)
    ]
    assert len(losses[0]) == len(losses[1]) > 1
    assert all(matched > 10 + alone for matched, alone in zip(*losses, strict=True))


def test_the_teacher_that_scores_has_no_hooks(finished, tmp_path):
    copy_run(finished, tmp_path)
    config = tiny_config(tmp_path, distill__feature_weight=50.0)
    with open_session(config, DistributedContext()) as session:
        assert session.distillation.config.feature_weight == 50
        assert not any(module._forward_hooks for module in session.teacher.modules())


def test_a_weight_of_zero_is_the_identity_of_older_students(finished, tmp_path):
    copy_run(finished, tmp_path)
    distillation = student_identity(tiny_config(tmp_path), 0)["distill"]
    assert "feature_weight" not in distillation
    config = tiny_config(tmp_path, distill__feature_weight=2.0)
    assert student_identity(config, 0)["distill"] == {**distillation, "feature_weight": 2.0, "features_version": 1}


def test_a_student_of_another_weight_is_refused(error_of, finished, tmp_path):
    message = error_of(distill, copy_run(finished, tmp_path), "distill.feature_weight=2")
    assert "was made with another configuration (distill.feature_weight: " in message


def test_a_student_without_maps_is_an_error_before_the_synthesis(error_of, tmp_path):
    (tmp_path / "no_maps.py").write_text(NO_MAPS)
    student = {"source": f"python:{tmp_path / 'no_maps.py'}:build"}
    path = write_config(tmp_path, student=student, distill__feature_weight=1.0)
    message = error_of(chain, path)
    assert not (tmp_path / "shards").exists()
    assert "distill.feature_weight: the student has maps of no pixels, the teacher of 8x8, 4x4, 2x2" in message
    assert "set it to 0" in message
