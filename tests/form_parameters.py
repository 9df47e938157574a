"""A form's parameters as Galaxy sees them: its macros expanded, its tokens put in."""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parameter:
    """One ``param`` of a form.

    Attributes:
        flag: Its ``argument``, e.g. ``--batch-tokens``.
        kind: Its type.
        value: What it begins with; None for what the user must give.
        low: Smallest number, if there is one.
        high: Largest number, if there is one.
        options: Values of a choice; None where the server fills them.
        optional: Whether it may be left empty.
        several: Whether it takes more than one value.
    """

    flag: str
    kind: str
    value: str | None
    low: float | None
    high: float | None
    options: tuple[str, ...] | None
    optional: bool
    several: bool


def parameters(form: Path) -> list[Parameter]:
    """The parameters that are flags of the script, in the order of the form."""
    inputs = expanded(form).find("inputs")
    assert inputs is not None
    return [_parameter(param) for param in inputs.iter("param") if param.get("argument")]


def _parameter(param: ET.Element) -> Parameter:
    options = [option for option in param.iter("option") if option.get("value") is not None]
    listed = param.find("options") is None
    value = param.get("value")
    if param.get("type") == "boolean":
        value = param.get("checked", "false")
    elif param.get("type") == "select" and listed:
        chosen = [str(option.get("value")) for option in options if option.get("selected") == "true"]
        first = [] if param.get("multiple") == "true" else [str(options[0].get("value"))]
        value = ",".join(chosen or first)
    low, high = (None if param.get(end) is None else float(str(param.get(end))) for end in ("min", "max"))
    return Parameter(
        flag=str(param.get("argument")),
        kind=str(param.get("type")),
        value=value,
        low=low,
        high=high,
        options=tuple(str(option.get("value")) for option in options) if options and listed else None,
        optional=param.get("optional") == "true",
        several=param.get("multiple") == "true",
    )


def expanded(form: Path) -> ET.Element:
    """The form without macros."""
    root = ET.parse(form).getroot()
    macros: dict[str, ET.Element] = {}
    tokens: dict[str, str] = {}
    for place in root.findall("macros"):
        for imported in place.findall("import"):
            _collect(ET.parse(form.parent / str(imported.text)).getroot(), macros, tokens)
        _collect(place, macros, tokens)
        root.remove(place)
    made = _expand(root, macros)[0]
    _put_in(made, tokens)
    return made


def _collect(place: ET.Element, macros: dict[str, ET.Element], tokens: dict[str, str]) -> None:
    for element in place:
        if element.tag == "token":
            tokens[str(element.get("name"))] = element.text or ""
        elif element.tag in ("xml", "macro"):
            macros[str(element.get("name"))] = element


def _expand(element: ET.Element, macros: dict[str, ET.Element]) -> list[ET.Element]:
    """The element with every ``expand`` below it in place, or what stands for it if it is one."""
    if element.tag == "expand":
        return [one for part in _filled(element, macros) for one in _expand(part, macros)]
    made = ET.Element(element.tag, element.attrib)
    made.text, made.tail = element.text, element.tail
    for child in element:
        made.extend(_expand(child, macros))
    return [made]


def _filled(use: ET.Element, macros: dict[str, ET.Element]) -> Iterator[ET.Element]:
    """What a macro holds, with the tokens and the content that its use gives."""
    macro = copy.deepcopy(macros[str(use.get("macro"))])
    tokens = {f"@{name[6:].upper()}@": value for name, value in macro.attrib.items() if name.startswith("token_")}
    tokens |= {f"@{name.upper()}@": value for name, value in use.attrib.items() if name != "macro"}
    _put_in(macro, tokens)
    named = {str(child.get("name")): list(child) for child in use if child.tag == "token"}
    rest = [child for child in use if child.tag != "token"]
    _yield(macro, named, rest)
    yield from macro


def _yield(element: ET.Element, named: dict[str, list[ET.Element]], rest: list[ET.Element]) -> None:
    children = list(element)
    for child in children:
        element.remove(child)
    for child in children:
        if child.tag == "yield":
            element.extend(copy.deepcopy(named.get(str(child.get("name")), []) if child.get("name") else rest))
        else:
            _yield(child, named, rest)
            element.append(child)


def _put_in(element: ET.Element, tokens: dict[str, str]) -> None:
    def put(text: str | None) -> str | None:
        return text and re.sub(r"@[A-Z_]+@", lambda match: tokens.get(match[0], match[0]), text)

    for one in element.iter():
        one.text = put(one.text)
        for name, value in one.attrib.items():
            one.set(name, str(put(value)))
