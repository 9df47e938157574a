"""Where everything lies: the checkout, and the state below its ``.plm`` folder, which git ignores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from plm.errors import UserError

ENVIRONMENTS = ("tools", "dev", "galaxy", "planemo", "shed", "supply")


class Layout:
    """The folders of one checkout. Nothing outside ``root`` is ever written.

    Args:
        root: Absolute path of the checkout.
    """

    def __init__(self, root: Path) -> None:
        if any(character in str(root) for character in " '\"\\$:"):
            raise UserError(
                "The path of the checkout holds a space, quote, colon, $ or backslash, which Python's"
                " environments and Galaxy's job scripts do not survive",
                where=str(root),
                fix="Move the checkout",
            )
        self.root = root
        self.locks, self.tools, self.workflows = root / "locks", root / "tools", root / "workflows"
        self.state = root / ".plm"
        self.envs, self.cache, self.galaxy = self.state / "envs", self.state / "cache", self.state / "galaxy"
        self.config, self.logs = self.galaxy / "config", self.galaxy / "log"
        self.job_variables = self.galaxy / "job_variables.sh"

    def env(self, name: str) -> Path:
        return self.envs / name

    def python(self, name: str) -> Path:
        return self.env(name) / "bin" / "python"

    def tool_files(self) -> list[Path]:
        """The suite's tools: every ``tools/plm_*.xml``, by name."""
        return sorted(self.tools.glob("plm_*.xml"))

    def workflow_files(self) -> list[Path]:
        """The suite's workflows: every ``workflows/<name>/*.ga``, by name."""
        return sorted(self.workflows.glob("*/*.ga"))


def child_environment(
    layout: Layout, extra: Mapping[str, str] | None = None, *, own_home: bool = True
) -> dict[str, str]:
    """The environment of a process that the harness starts: caches, temporary files and HOME lie below the checkout.

    Args:
        layout: The checkout.
        extra: Variables to set on top.
        own_home: Whether HOME moves too. Installers keep the user's, which holds the settings of her package index.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PLM_CALLED_FROM")
    }
    home, temporary = layout.state / "home", layout.state / "tmp"
    for folder in (home, temporary, layout.cache):
        folder.mkdir(parents=True, exist_ok=True)
    environment |= {
        "TMPDIR": str(temporary),
        "UV_CACHE_DIR": str(layout.cache / "uv"),
        "PIP_CACHE_DIR": str(layout.cache / "pip"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_PYTHON_INSTALL_DIR": str(layout.cache / "python"),
        "UV_PYTHON_DOWNLOADS": "never",
        "PLANEMO_GLOBAL_WORKSPACE": str(layout.state / "planemo"),
        "PYTHONNOUSERSITE": "1",
    }
    if own_home:
        environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(layout.cache), "XDG_CONFIG_HOME": str(home)}
    return environment | dict(extra or {})
