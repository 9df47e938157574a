"""Run with Galaxy's Python by test_scheduling.py: what TPV makes of jobs, and what Galaxy's own builders make of that.

Reads JSON from standard input. ``cases``: each ``{tool, xml, params, rules}`` and perhaps ``states``, those that the
job has been in; the answers are the destination's parameters, environment, when Galaxy would resubmit, and the command
lines of docker and singularity. ``lint``: lists of files of rules; the answers are what TPV's lint finds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from galaxy.jobs.runners.state_handlers._safe_eval import safe_eval
from galaxy.jobs.runners.util.cli import split_params
from galaxy.jobs.runners.util.cli.job.slurm import Slurm
from galaxy.tool_util.deps.container_classes import DockerContainer, SingularityContainer
from galaxy.tool_util.deps.dependencies import AppInfo, JobInfo, ToolInfo
from galaxy.tool_util.deps.requirements import ContainerDescription
from galaxy.tool_util.parser import get_tool_source
from tpv.commands.linter import TPVConfigLinter, TPVLintError
from tpv.commands.test import mock_galaxy
from tpv.rules import gateway

JOB_CONF = """
runners:
  slurm: {load: "galaxy.jobs.runners.slurm:SlurmJobRunner"}
execution:
  default: tpv_dispatcher
  environments:
    tpv_dispatcher: {runner: dynamic, type: python, function: map_tool_to_destination, rules_module: tpv.rules}
"""


class File:
    """A dataset that a form names, as far as a rule looks at it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_size(self) -> int:
        return self.size


def with_files(value: Any) -> Any:
    """The parameters with ``{"file": bytes}`` made a dataset."""
    if isinstance(value, dict):
        return (
            File(value["file"]) if set(value) == {"file"} else {key: with_files(entry) for key, entry in value.items()}
        )
    return [with_files(entry) for entry in value] if isinstance(value, list) else value


def answer(case: dict[str, Any], app: Any, folder: Path) -> dict[str, Any]:
    own = folder / "own.yml"
    own.write_text(json.dumps(case["rules"]))
    requirements = get_tool_source(case["xml"]).parse_requirements()[2]
    job = mock_galaxy.Job()
    job.param_values = with_files(case["params"])
    job.state_history = [SimpleNamespace(state=state) for state in case.get("states", [])]
    tool = mock_galaxy.Tool(case["tool"], "0.1.0", resource_requirements=requirements)
    gateway.ACTIVE_DESTINATION_MAPPERS.clear()
    destination = gateway.map_tool_to_destination(
        app, job, tool, mock_galaxy.User("a", "a@example.org"), tpv_config_files=[case["suite"], str(own)]
    )
    params = dict(destination.params)
    return {
        "id": destination.id,
        "native": params.get("nativeSpecification", ""),
        "params": {name: value for name, value in params.items() if "_env_" not in name and "_volumes" not in name},
        "runner": destination.runner,
        "resubmit": [attempt(entry, case.get("states", [])) for entry in destination.resubmit],
        "script": script(params) if params.get("job_plugin") == "Slurm" else "",
        "gpu_memory": params.get("gpu_memory", ""),
        "env": {entry["name"]: entry["value"] for entry in destination.env},
        "docker": command(DockerContainer, params, folder),
        "singularity": command(SingularityContainer, params, folder),
    }


def attempt(definition: dict[str, Any], states: list[str]) -> dict[str, bool]:
    """What Galaxy's own evaluator makes of a condition after each way in which a job may end."""
    kinds = ("walltime_reached", "memory_limit_reached", "unknown_error", "tool_detected_failure")
    number = 1 + states.count("resubmitted")
    return {
        kind: bool(safe_eval(definition["condition"], {name: name == kind for name in kinds} | {"attempt": number}))
        for kind in kinds
    }


def script(params: dict[str, Any]) -> str:
    """The job script's head that Galaxy's command-line runner writes for Slurm."""
    plugin = Slurm(**split_params(params)[1])
    return "#!/bin/sh\n" + str(plugin.job_script_kwargs("out", "err", "plm")["headers"]) + "true\n"


def command(kind: Any, params: dict[str, Any], folder: Path) -> str:
    """The line with which Galaxy starts the container of a job."""
    places = {name: str(folder / name) for name in ("job", "tool", "files", "tmp")}
    app_info = AppInfo(
        galaxy_root_dir=str(folder),
        default_file_path=places["files"],
        tool_data_path=places["files"],
        container_image_cache_path=places["tmp"],
    )
    tool_info = ToolInfo(tool_id="plm", tool_version="1", requirements=[], profile=25.1)
    job_info = JobInfo(places["job"], places["tool"], places["job"], places["tmp"], places["job"], "galaxy")
    description = ContainerDescription("quay.io/example/plm-suite:1", type=kind.container_type)
    container = kind(description.identifier, app_info, tool_info, params, job_info, description)
    return str(container.containerize_command("true"))


def lint(files: list[str]) -> list[str]:
    """What TPV's lint finds in files of rules that are loaded one after the other."""
    linter = TPVConfigLinter(files, None, False)
    try:
        linter.lint()
    except TPVLintError as error:
        linter.errors.append(str(error))
    return [str(fault) for fault in (*linter.errors, *linter.warnings)]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job_conf.yml").write_text(JOB_CONF)
        app = mock_galaxy.App(job_conf=str(folder / "job_conf.yml"), create_model=True)
        app.config.watch_job_rules = "false"
        asked = json.load(sys.stdin)
        answers = [answer(case, app, folder) for case in asked["cases"]]
        json.dump({"cases": answers, "lint": [lint(files) for files in asked["lint"]]}, sys.stdout)


main()
