"""The workflow runs what `.ci/run` runs, with Python versions that the project supports."""

import os
import tomllib

import yaml
from tiny_run import REPOSITORY


def test_workflow_runs_the_script_with_supported_versions():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    (script,) = [step["run"] for step in job["steps"] if "run" in step]
    assert os.access(REPOSITORY / script, os.X_OK)
