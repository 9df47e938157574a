"""The flagship workflow in a running Galaxy: upload, invoke, follow, download. Talks to it through BioBlend."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plm.errors import UserError
from plm.stage import duration

from harness.model_choice import ModelChoice
from harness.welcome import edition

TERMINAL = ("ok", "error", "deleted", "failed", "stopped", "paused", "skipped")
_SUFFIXES = {"tabular": "tsv", "tool_markdown": "md", "gff3": "gff3"}


@dataclass(frozen=True)
class Step:
    """One tool step of an invocation as it is now."""

    label: str
    state: str
    job: str | None


@dataclass
class Invocation:
    """A workflow that runs.

    Args:
        id: Galaxy's id of it.
        history: Galaxy's id of the history it fills.
        outputs: Label of each workflow output to the dataset's id; filled when it has ended.
    """

    id: str
    history: str
    outputs: dict[str, str] = field(default_factory=dict)


def read_workflow(path: Path) -> dict[str, Any]:
    """A ``.ga`` file's content.

    Raises:
        UserError: It is not there, or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The workflow cannot be read: {error}", where=str(path)) from None
    return content


def input_labels(workflow: Mapping[str, Any]) -> list[str]:
    """The labels of the workflow's inputs."""
    kinds = ("data_input", "data_collection_input", "parameter_input")
    return [step["label"] for step in workflow["steps"].values() if step["type"] in kinds]


def with_model(workflow: Mapping[str, Any], choice: ModelChoice) -> dict[str, Any]:
    """The workflow with another model chosen in every step whose form has the model choice.

    Where the model comes from is a fork in the tools' forms, and Galaxy fixes such forks when a workflow is saved: so
    another source is another edition of the workflow, made here just as a user would make it in the editor.
    """
    changed: dict[str, Any] = json.loads(json.dumps(workflow))
    for step in changed["steps"].values():
        state = json.loads(step.get("tool_state") or "{}")
        model = state.get("model")
        if isinstance(model, str):
            model = json.loads(model)
        if not isinstance(model, dict) or "source" not in model:
            continue
        state["model"] = choice.form()
        step["tool_state"] = json.dumps(state)
        step["input_connections"] = {
            name: connection
            for name, connection in step.get("input_connections", {}).items()
            if not name.startswith("model|")
        }
    return changed


class GalaxyRun:
    """One use of a Galaxy by one account.

    Args:
        url: Where it listens.
        key: The account's API key.
        say: Told in one line what happens.
    """

    def __init__(self, url: str, key: str, say: Callable[[str], None]) -> None:
        from bioblend.galaxy import GalaxyInstance

        self.galaxy = GalaxyInstance(url, key=key)
        self.url, self.say = url, say

    def start(
        self, workflow: Mapping[str, Any], files: Mapping[str, Path], parameters: Mapping[str, Any], title: str
    ) -> Invocation:
        """Uploads the files and starts the workflow on them.

        Args:
            workflow: Content of its ``.ga``.
            files: Label of each data input to the file for it.
            parameters: Label of a parameter input to its value.
            title: Name of the new history.

        Raises:
            UserError: The workflow has no input of such a label, or an upload failed.
        """
        labels = input_labels(workflow)
        for label in [*files, *parameters]:
            if label not in labels:
                raise UserError(f"The workflow has no input '{label}'; it has {', '.join(labels)}")
        history = self.galaxy.histories.create_history(title)["id"]
        uploaded = {label: self._upload(path, history) for label, path in files.items()}
        self._await_uploads({files[label].name: dataset for label, dataset in uploaded.items()})
        imported = self._import(workflow)
        # Galaxy may number the steps anew on import: ask it for the inputs' places
        shown = self.galaxy.workflows.show_workflow(imported["id"])["inputs"]
        places = {described["label"]: place for place, described in shown.items()}
        inputs: dict[str, Any] = {places[label]: {"src": "hda", "id": dataset} for label, dataset in uploaded.items()}
        inputs |= {places[label]: value for label, value in parameters.items()}
        made = self._invoke(imported["id"], inputs, history)
        return Invocation(made["id"], history)

    def _import(self, workflow: Mapping[str, Any]) -> dict[str, Any]:
        """Galaxy's copy of the workflow; a run of the very same edition finds the copy of the run before."""
        from bioblend import ConnectionError as Refusal

        mark = edition(workflow)
        for known in self.galaxy.workflows.get_workflows():
            if known.get("latest_workflow_uuid") == mark:
                return dict(known)
        try:
            imported: dict[str, Any] = self.galaxy.workflows.import_workflow_dict({**workflow, "uuid": mark})
        except Refusal as error:
            raise UserError(f"Galaxy does not take the workflow: {error.body or error}", where=self.url) from None
        return imported

    def _invoke(self, workflow: str, inputs: Mapping[str, Any], history: str) -> dict[str, Any]:
        from bioblend import ConnectionError as Refusal

        try:
            # as planemo does: options that a tool has gained since the workflow was saved take their defaults
            made: dict[str, Any] = self.galaxy.workflows.invoke_workflow(
                workflow, inputs=dict(inputs), history_id=history, allow_tool_state_corrections=True
            )
        except Refusal as error:
            raise UserError(f"Galaxy does not start the workflow: {error.body or error}", where=self.url) from None
        return made

    def _upload(self, path: Path, history: str) -> str:
        kind = "fasta.gz" if path.name.endswith(".gz") else "fasta"
        made = self.galaxy.tools.upload_file(str(path), history, file_name=path.name, file_type=kind)
        return str(made["outputs"][0]["id"])

    def _await_uploads(self, datasets: Mapping[str, str]) -> None:
        for name, dataset in datasets.items():
            ended = self.galaxy.datasets.wait_for_dataset(dataset, maxwait=600, interval=0.5, check=False)
            if ended["state"] != "ok":
                raise UserError(
                    f"Galaxy could not take the file {name}: {ended.get('misc_info') or ended['state']}",
                    fix="Give protein sequences in FASTA format",
                )

    def publish_report(self, invocation: Invocation, title: str) -> str:
        """Makes the invocation's report a page that needs no login; returns its address."""
        slug = f"report-{invocation.id}"
        made = self.galaxy.make_post_request(
            f"{self.galaxy.url}/pages",
            payload={"title": title, "slug": slug, "content_format": "markdown", "invocation_id": invocation.id},
        )
        self.galaxy.make_put_request(f"{self.galaxy.url}/pages/{made['id']}/publish")
        # the page shows datasets by the labels of the workflow: by default only the owner may see either
        used = self.galaxy.invocations.show_invocation(invocation.id)["workflow_id"]
        stored = self.galaxy.make_get_request(f"{self.galaxy.url}/workflows/{used}", params={"instance": "true"}).json()
        for shared in (f"histories/{invocation.history}", f"workflows/{stored['id']}"):
            self.galaxy.make_put_request(f"{self.galaxy.url}/{shared}/enable_link_access")
        return f"{self.url}/published/page?id={made['id']}"

    def follow(self, invocation: Invocation, workflow: Mapping[str, Any]) -> None:
        """Waits until every step has ended, saying when each starts and ends and what a long one reports.

        Raises:
            UserError: A step failed; says which and what it said.
        """
        expected = [step for step in workflow["steps"].values() if step["type"] in ("tool", "subworkflow")]
        begun: dict[str, float] = {}
        ended: set[str] = set()
        said: dict[str, tuple[float, int]] = {}
        started = time.monotonic()
        while len(ended) < len(expected):
            steps = self._steps(invocation)
            for step in steps:
                if step.state in ("running", *TERMINAL) and step.label not in begun:
                    begun[step.label] = time.monotonic()
                    self.say(f"[{_clock(started)}] {step.label}: running")
                if step.state == "running" and step.job:
                    said[step.label] = self._relay(step, said.get(step.label, (time.monotonic(), 0)), started)
                if step.state == "ok" and step.label not in ended:
                    took = duration(time.monotonic() - begun[step.label])
                    self.say(f"[{_clock(started)}] {step.label}: done in {took}")
                    ended.add(step.label)
                elif step.state == "skipped":
                    ended.add(step.label)
                elif step.state in TERMINAL and step.state not in ("ok", "paused"):
                    self._fail(step)
            self._check_scheduling(invocation)
            time.sleep(0.5)
        shown = self.galaxy.invocations.show_invocation(invocation.id)
        invocation.outputs = {label: output["id"] for label, output in shown["outputs"].items()}

    def _steps(self, invocation: Invocation) -> list[Step]:
        shown = self.galaxy.invocations.show_invocation(invocation.id)
        states = {job["id"]: job["state"] for job in self.galaxy.jobs.get_jobs(invocation_id=invocation.id)}
        steps = []
        for step in shown["steps"]:
            if step.get("job_id"):
                label = step["workflow_step_label"] or f"step {step['order_index'] + 1}"
                steps.append(Step(label, states.get(step["job_id"], "new"), step["job_id"]))
        return steps

    def _relay(self, step: Step, said: tuple[float, int], started: float) -> tuple[float, int]:
        """Says the newest line of a job's log, at most every ten seconds."""
        last, position = said
        if time.monotonic() - last < 10:
            return said
        url = f"{self.galaxy.url}/jobs/{step.job}/console_output"
        window = {"stdout_position": position, "stdout_length": 100_000, "stderr_position": 0, "stderr_length": 0}
        answer = self.galaxy.make_get_request(url, params=window)
        text = (answer.json().get("stdout") or "") if answer.status_code == 200 else ""
        lines = [line for line in text.splitlines() if line.strip()]
        if lines:
            newest = re.sub(r"^\[plm_\w+\] ", "", lines[-1].strip())
            self.say(f"[{_clock(started)}] {step.label}: {newest}")
        return time.monotonic(), position + len(text)

    def _check_scheduling(self, invocation: Invocation) -> None:
        shown = self.galaxy.invocations.show_invocation(invocation.id)
        if shown["state"] in ("failed", "cancelled", "cancelling"):
            messages = "; ".join(json.dumps(message) for message in shown.get("messages", []))
            raise UserError(f"Galaxy could not schedule the workflow: {messages or shown['state']}", where=self.url)

    def _fail(self, step: Step) -> None:
        job = self.galaxy.jobs.show_job(step.job, full_details=True)
        lines = [line for line in (job.get("tool_stderr") or job.get("stderr") or "").splitlines() if line.strip()]
        for line in lines[-20:-1]:
            self.say(f"  {line}")
        tool_id = job.get("tool_id", "")
        reason = lines[-1] if lines else f"its job ended as '{step.state}' and said nothing"
        raise UserError(
            f"The step '{step.label}' failed: {reason.removeprefix(f'{tool_id}: error: ')}",
            where=tool_id,
            fix=f"The history is open at {self.url} (scripts/serve prints the login)",
        )

    def download(self, invocation: Invocation, folder: Path) -> dict[str, Path]:
        """Writes every labelled output into ``folder``; returns label to file."""
        files: dict[str, Path] = {}
        for label, dataset in invocation.outputs.items():
            shown = self.galaxy.datasets.show_dataset(dataset)
            target = folder / file_name(label, shown["file_ext"])
            self._fetch(dataset, target)
            files[label] = target
        return files

    def _fetch(self, dataset: str, target: Path) -> None:
        """The dataset's own bytes: without ``raw`` Galaxy would pack a report into a zip with a page around it."""
        answer = self.galaxy.make_get_request(
            f"{self.galaxy.url}/datasets/{dataset}/display", params={"raw": "true"}, stream=True
        )
        if answer.status_code != 200:
            raise UserError(f"Galaxy answered {answer.status_code} for the output {target.name}", where=self.url)
        with target.open("wb") as sink:
            for chunk in answer.iter_content(2**20):
                sink.write(chunk)


def file_name(label: str, extension: str) -> str:
    """A plain file name for a workflow output: ``Candidate sites`` of type tabular -> ``candidate_sites.tsv``."""
    stem = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_").removesuffix(f"_{extension}")
    return f"{stem}.{_SUFFIXES.get(extension, extension)}"


def _clock(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds // 60}:{seconds % 60:02d}"
