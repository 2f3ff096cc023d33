"""The workflows: what they call exists, what they may do is little, and a failed weekly run is reported."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
import yaml

from repository import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
#: GitHub's own actions at one version; nobody else's, and no branch or major version that moves.
ACTION = re.compile(r"actions/[\w-]+@v\d+\.\d+\.\d+")


def defects(text: str) -> list[str]:
    """What is wrong with a workflow, one sentence each."""
    flow = yaml.load(text, Loader=yaml.BaseLoader)  # `on` stays a word: YAML 1.1 takes it for true
    if not isinstance(flow, dict) or not {"name", "on", "permissions", "jobs"} <= flow.keys():
        return ["name, on, permissions and jobs are not all there"]
    found = []
    for name, job in flow["jobs"].items():
        if "timeout-minutes" not in job:
            found.append(f"{name}: no timeout-minutes; a hanging job would run for six hours")
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        found += [f"{name}: needs {other}, which is no job" for other in needs if other not in flow["jobs"]]
        for step in job["steps"]:
            run = step.get("run", "")
            if "uses" in step and not ACTION.fullmatch(step["uses"]):
                found.append(f"{name}: {step['uses']} is not actions/…@vX.Y.Z")
            if ("uses" in step) == ("run" in step):
                found.append(f"{name}: a step either uses or runs, but this one is {step}")
            for target in re.findall(r"\bmake ([\w-]+)", run):
                if target not in TARGETS:
                    found.append(f"{name}: the Makefile has no target {target}")
            for script in re.findall(r"\bbash (\S+)", run):
                if not (ROOT / script).is_file():
                    found.append(f"{name}: there is no script {script}")
            writes = (job.get("permissions") or flow["permissions"]).get("issues") == "write"
            if "report" in run and not writes:
                found.append(f"{name}: reports an issue without the permission issues: write")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_exists(path):
    assert not defects(path.read_text(encoding="utf-8"))


GOOD = """
name: Weekly
on: {schedule: [{cron: "17 4 * * 1"}]}
permissions: {contents: read}
jobs:
  newest:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    steps: [{uses: actions/checkout@v6.0.2}, {run: make test}]
  report:
    needs: newest
    runs-on: ubuntu-latest
    timeout-minutes: 5
    permissions: {issues: write}
    steps: [{run: bash .ci/report}]
"""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("on:", "when:", "name, on, permissions and jobs"),
        ("actions/checkout@v6.0.2", "actions/checkout@v6", "actions/checkout@v6 is not"),
        ("actions/checkout@v6.0.2", "someone/else@v6.0.2", "someone/else@v6.0.2 is not"),
        ("make test", "make tset", "no target tset"),
        (".ci/report", ".ci/reporter", "no script .ci/reporter"),
        ("timeout-minutes: 5", "continue-on-error: true", "report: no timeout-minutes"),
        ("needs: newest", "needs: oldest", "needs oldest, which is no job"),
        ("issues: write", "issues: read", "without the permission"),
    ],
)
def test_a_mistake_in_a_workflow_is_found(right, wrong, message):
    assert defects(GOOD) == []
    found = defects(GOOD.replace(right, wrong))
    assert any(message in sentence for sentence in found), found


@pytest.mark.parametrize(("open_issue", "expected"), [("", "issue create"), ("12", "issue comment 12")])
def test_a_failed_run_opens_an_issue_or_adds_to_the_open_one(tmp_path, open_issue, expected):
    """`.ci/report` with a stand-in for GitHub's program, which writes down what it is asked."""
    stand_in = tmp_path / "gh"
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n[ "$2" != list ] || echo "{open_issue}"\n'
    )
    stand_in.chmod(0o755)
    results = {"newest": {"result": "failure"}, "links": {"result": "success"}}
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RUN": "https://github.com/x/y/actions/runs/1",
        "RESULTS": json.dumps(results),
    }
    subprocess.run(["bash", ROOT / ".ci/report"], env=os.environ | variables, check=True)
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert f"\n{expected}" in asked
    assert variables["RUN"] in asked
    assert "- newest: failure" in asked
    assert "links" not in asked
