"""Locks and their hashes, licences, known weaknesses and the bill of materials."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import supply_command
from harness.install import Installer, read_hashes, read_lock
from harness.layout import Layout
from plm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("minor", supply_command.MINORS)
@pytest.mark.parametrize("name", supply_command.LOCKS)
def test_every_pin_has_hashes_for_every_python(name: str, minor: int) -> None:
    lock = ROOT / "locks" / f"{name}.txt"
    held = read_hashes(lock)
    for pin in read_lock(lock, minor).items():
        assert held.get(pin), f"{'=='.join(pin)}: run scripts/supply hashes {name}"
        assert all(one.startswith("sha256:") and len(one) == 71 for one in held[pin])


def test_no_lock_is_left_out() -> None:
    assert {path.stem for path in (ROOT / "locks").glob("*.txt")} == set(supply_command.LOCKS)
    assert {path.stem for path in (ROOT / "locks" / "hashes").glob("*.txt")} == set(supply_command.LOCKS)
    assert supply_command.stale(Layout(ROOT)) == []


def test_a_pin_without_a_hash_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "locks" / "hashes").mkdir(parents=True)
    lock = tmp_path / "locks" / "tools.txt"
    lock.write_text('Some.Thing==2.0\nother==1.0 ; python_version >= "3.13"\n')
    (lock.parent / "hashes" / "tools.txt").write_text(
        f'some-thing==2.0 \\\n    --hash=sha256:{"a" * 64} \\\n    --hash=sha256:{"b" * 64}\n'
        f'other==1.0 ; python_version >= "3.13" \\\n    --hash=sha256:{"c" * 64}\n'
    )
    hashes = read_hashes(lock)
    assert set(hashes) == {("some-thing", "2.0"), ("other", "1.0")} and len(hashes["some-thing", "2.0"]) == 2
    installer = Installer(Layout(tmp_path), lambda line: None)
    assert installer._line(lock, ("other", "1.0"), hashes) == f"other==1.0 --hash=sha256:{'c' * 64}\n"
    with pytest.raises(UserError, match=r"hash of other==1\.1 is not known.*scripts/supply hashes tools"):
        installer._line(lock, ("other", "1.1"), hashes)


def test_licences_that_do_not_go_together_are_named() -> None:
    told = supply_command.unfit({"good": "BSD-3-Clause", "odd": "AGPL-3.0", "none": "UNKNOWN", "biopython": "UNKNOWN"})
    assert told == ["none is under UNKNOWN", "odd is under AGPL-3.0"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}', 1),
        ("", supply_command.OUT_OF_REACH),
    ],
)
def test_weaknesses_are_named_and_a_database_out_of_reach_is_no_success(
    said: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, said, "ConnectionError: no route to the index")

    monkeypatch.setattr(supply_command.subprocess, "run", answered)
    assert supply_command.weaknesses(Layout(ROOT)) == code
    told = capsys.readouterr().out
    assert {0: "none", 1: "a 1: CVE-1, cured in 2", supply_command.OUT_OF_REACH: "out of reach"}[code] in told


@pytest.mark.slow
def test_the_bill_names_what_is_installed(tmp_path: Path) -> None:
    layout = Layout(ROOT)
    if not layout.python("supply").exists():
        pytest.skip("THE ENVIRONMENT 'supply' IS ABSENT: scripts/supply check installs it")
    supply_command.write_bill(layout, tmp_path / "bill.json")
    bill = json.loads((tmp_path / "bill.json").read_text())
    held = {one["name"].lower().replace("_", "-"): one["version"].split("+")[0] for one in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "plm-suite"
    pins = read_lock(ROOT / "locks" / "tools.txt")
    assert {name: held.get(name) for name in pins} == pins
