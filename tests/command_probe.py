"""Run with Galaxy's Python by test_form_commands.py: the command lines that forms make of what users choose.

Reads ``{tools, states, seed}`` as JSON from standard input and writes tool to command lines: ``states`` of each, from
choices drawn at random. Files are named as odd as a history allows.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from galaxy import model
from galaxy.app_unittest_utils.tools_support import UsesTools
from galaxy.job_execution.compute_environment import SimpleComputeEnvironment
from galaxy.tool_util.data import ToolDataTableManager
from galaxy.tools import wrappers
from galaxy.tools.evaluation import ToolEvaluator
from galaxy.tools.parameters import basic
from galaxy.tools.parameters.grouping import Conditional, Repeat, Section
from galaxy.util.template import fill_template

NAMES = ("my file (1).fasta", "a.zip", "It-is_x.y.h5", "..", "proteins.tabular", "ü b.csv", "x.zip.zip", "same", "same")
TEXTS = ("word", "two words", "a,b", "x.y", "", "  ")


class Place(SimpleComputeEnvironment):
    """Where a job would run: nowhere."""

    def __getattribute__(self, name: str) -> Any:
        if name.endswith(("_rewrite", "rewriter")):
            return lambda *given: (lambda path: path) if name.endswith("rewriter") else None
        if name.endswith(("directory", "path", "url")):
            return lambda: f"/job/{name}"
        return super().__getattribute__(name)


class Forms(UsesTools):
    """Galaxy as far as it makes commands."""

    def __init__(self, tools: Path) -> None:
        self.setup_app()
        table = str(tools / "tool_data_table_conf.xml.test")
        self.app.tool_data_tables = ToolDataTableManager(str(tools / "tool-data"), config_filename=table)

    def command(self, tool: Any, draw: random.Random) -> str:
        """The command of a form filled in at random."""
        chosen = state_of(tool.inputs, draw)
        job = model.Job()
        job.tool_id, job.user, job.history = tool.id, None, model.History()
        job.history.id = 1
        evaluator = ToolEvaluator(self.app, tool, job, "/job")
        evaluator.compute_environment = Place()
        outputs = {
            name: dataset(f"output_{name}", "data")
            for name, output in tool.outputs.items()
            if all(eval(rule.text.strip(), {}, dict(chosen)) for rule in output.filters or ())  # noqa: S307
            and not getattr(output, "collection", False)
        }
        known = evaluator.build_param_dict(chosen, {}, outputs, {})
        known |= {file.name: f"/job/{file.name}" for file in tool.config_files}
        filled = fill_template(tool.command, context=known, python_template_version=tool.python_template_version)
        return " ".join(filled.split("\n"))


def dataset(name: str, kind: str) -> model.HistoryDatasetAssociation:
    content = model.Dataset(state="ok")
    content.external_filename = f"/data/{name}"
    made = model.HistoryDatasetAssociation(
        name=name, extension=kind, dataset=content, create_dataset=False, flush=False
    )
    made.id = content.id = made.hid = 1
    return made


def state_of(inputs: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A value for every parameter, nested as in the form."""
    state: dict[str, Any] = {}
    for name, entry in inputs.items():
        if isinstance(entry, Conditional):
            value = value_of(entry.test_param, draw)
            case = entry.get_current_case(value)
            inner = {entry.test_param.name: value, "__current_case__": case}
            state[name] = inner | state_of(entry.cases[case].inputs, draw)
        elif isinstance(entry, Section):
            state[name] = state_of(entry.inputs, draw)
        elif isinstance(entry, Repeat):
            rows = range(max(entry.min, draw.randint(0, 2)))
            state[name] = [{"__index__": row, **state_of(entry.inputs, draw)} for row in rows]
        else:
            state[name] = value_of(entry, draw)
    return state


def value_of(entry: Any, draw: random.Random) -> Any:
    """What a user might choose."""
    empty = entry.optional and draw.random() < 0.4
    if isinstance(entry, basic.DataCollectionToolParameter) or (
        empty and not isinstance(entry, basic.BooleanToolParameter)
    ):
        return None
    if isinstance(entry, basic.DataToolParameter):
        made = [dataset(draw.choice(NAMES), entry.extensions[0]) for _ in range(draw.randint(1, 3))]
        return made if entry.multiple else made[0]
    if isinstance(entry, basic.BooleanToolParameter):
        return draw.random() < 0.5
    if isinstance(entry, basic.SelectToolParameter):
        if entry.is_dynamic:
            return "tiny_esm2"
        values = [value for _, value, _ in entry.static_options]
        return draw.sample(values, draw.randint(1, len(values))) if entry.multiple else draw.choice(values)
    if isinstance(entry, basic.IntegerToolParameter | basic.FloatToolParameter):
        low = 0 if entry.min is None else entry.min
        high = low + 50 if entry.max is None else entry.max
        whole = isinstance(entry, basic.IntegerToolParameter)
        return draw.choice([low, high, draw.randint(int(low), int(high)) if whole else draw.uniform(low, high)])
    for text in (draw.choice(TEXTS), entry.value):  # the second where the form refuses the first
        try:
            entry.validate(text)
            return text
        except ValueError:
            continue
    return entry.value


def main() -> None:
    asked = json.load(sys.stdin)
    tools = Path(asked["tools"])
    # What stands in the row of a table of models is known to the server only.
    field = wrappers.SelectToolParameterWrapper.SelectToolParameterFieldWrapper
    field.__getattr__ = lambda self, name: SimpleNamespace() if name.startswith("__") else f"/models/{name}"
    forms = Forms(tools)
    commands = {}
    for form in sorted(tools.glob("plm_*.xml")):
        draw, tool = random.Random(f"{asked['seed']} {form.stem}"), forms._init_tool_for_path(str(form))
        commands[form.stem] = [forms.command(tool, draw) for _ in range(asked["states"])]
    json.dump(commands, sys.stdout)


main()
