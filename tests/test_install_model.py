"""plm_install_model: from a folder, a zip and a hub on this machine to a verified model and a row of the table."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_hub
import numpy as np
import plm_install_model
import pytest
import torch
from harness.layout import Layout
from harness.server import GalaxyServer
from local_hub import COMMIT, TOKEN, HeldModel
from plm.errors import UserError
from plm.jobs.install_model import model_table, offers, stored_model
from plm.jobs.install_model.offers import Offer, OfferedFile
from plm.model import checkpoint, encoder
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["value", "name", "pipeline_tag", "domain", "free_tag", "version", "path"]


@dataclass(frozen=True)
class Installed:
    """What an installation wrote below a folder."""

    place: Path

    @property
    def models(self) -> Path:
        return self.place / "models"

    def rows(self) -> list[dict[str, str]]:
        tables: dict[str, list[dict[str, str]]] = json.loads((self.place / "rows.json").read_text())["data_tables"]
        return tables.get("huggingface", [])

    def row(self) -> dict[str, str]:
        (row,) = self.rows()
        assert list(row) == COLUMNS
        return row

    def folder(self) -> Path:
        return self.models / self.row()["path"]

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder() / "plm_source.json").read_text())
        return record

    def report(self) -> str:
        return (self.place / "report.md").read_text()

    def is_empty(self) -> bool:
        return not any(self.models.rglob("*"))


def flags(place: Path, *given: str | Path) -> list[str]:
    place.mkdir(exist_ok=True)
    return [
        *map(str, given), "--models", str(place / "models"), "--output", str(place / "rows.json"),
        "--report", str(place / "report.md"),
    ]


def install(place: Path, *given: str | Path) -> Installed:
    plm_install_model.run(flags(place, *given))
    return Installed(place)


def refused(place: Path, *given: str | Path) -> str:
    """The one line of a refusal, after which nothing is there."""
    with pytest.raises(UserError) as caught:
        plm_install_model.run(flags(place, *given))
    assert Installed(place).is_empty() and not (place / "rows.json").exists() and not (place / "report.md").exists()
    line = str(caught.value)
    assert "\n" not in line
    return line


def table_of(place: Path, *rows: dict[str, str]) -> Path:
    path = place / "huggingface.loc"
    path.write_text("#comment\n" + "".join("\t".join(row.values()) + "\n" for row in rows))
    return path


def copied(source: Path, target: Path, **changes: bytes | None) -> Path:
    """A model's folder with files changed, or left out (None); ``__`` in a name stands for a dot."""
    target.mkdir(parents=True)
    held: dict[str, bytes | None] = {**local_hub.files_in(source)}
    held |= {name.replace("__", "."): data for name, data in changes.items()}
    for name, data in held.items():
        if data is not None:
            (target / name).write_bytes(data)
    return target


def as_bin(source: Path, target: Path, parts: int = 1) -> Path:
    """The model with its weights as the hub had them before safetensors."""
    copied(source, target, model__safetensors=None)
    weights = load_file(source / "model.safetensors")
    if parts == 1:
        torch.save(weights, target / "pytorch_model.bin")
        return target
    names, places = sorted(weights), {}
    for number in range(parts):
        file = f"pytorch_model-{number + 1:05d}-of-{parts:05d}.bin"
        own = {name: weights[name] for name in names[number::parts]}
        torch.save(own, target / file)
        places |= dict.fromkeys(own, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return target


@functools.cache
def states(folder: Path, place: Path) -> list[np.ndarray]:
    """What a model makes of two proteins."""
    loaded = checkpoint.load_model(checkpoint.resolve_model(str(folder), workdir=place))
    return [state.numpy() for state in encoder.encode(loaded, ["MKTAYIAKQRQISF", "GSHMACDEFGHIK"])]


def answer_alike(one: Path, other: Path, place: Path) -> bool:
    """Whether two models compute the same numbers, bit for bit."""
    return all(np.array_equal(*pair) for pair in zip(states(one, place), states(other, place), strict=True))


def zipped(folder: Path, target: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, inside + path.name)
    return target


# ------------------------------------------------------------------------------------------------- folders and archives


def test_a_folder_becomes_a_model_and_a_row(tiny_esm2: Path, tmp_path: Path) -> None:
    card = b"---\nlicense: mit\n---\n# Tiny\n"
    source = copied(tiny_esm2, tmp_path / "source", README__md=card, run__py=b"x", y__h5=b"")
    done = install(tmp_path, "--directory", source, "--id", "lab/tiny")
    row, record = done.row(), done.record()
    assert row["value"] == "lab/tiny" and row["name"] == "tiny (ESM-2, 0.019 million parameters)"
    assert (row["pipeline_tag"], row["domain"], row["free_tag"]) == ("feature-extraction", "sequence", "esm2")
    assert row["version"].startswith("sha256:") and row["path"].startswith("lab/") and row["path"].endswith("/tiny")
    held = {path.name: path.read_bytes() for path in done.folder().iterdir()}
    del held["plm_source.json"]
    assert held == {name: data for name, data in local_hub.files_in(source).items() if name not in ("run.py", "y.h5")}
    assert (record["licence"], record["source"], record["left_out"]) == ("mit", "directory", ["run.py", "y.h5"])
    assert {file["name"]: file["bytes"] for file in record["files"]} == {name: len(data) for name, data in held.items()}
    files = checkpoint.resolve_model(str(done.folder()), workdir=tmp_path / "w")
    assert files.id == "tiny" and files.sha256 == record["fingerprint"]
    assert answer_alike(done.folder(), tiny_esm2, tmp_path)
    assert "lab/tiny in revision" in done.report() and "| Licence | mit |" in done.report()
    assert "Not taken, since no tool of the suite reads it: run.py, y.h5." in done.report()
    assert not [path for path in done.models.iterdir() if path.name.startswith(".")]


def test_a_zip_is_the_same_model_wherever_it_lies_in_it(tiny_esm2: Path, tmp_path: Path) -> None:
    first = install(tmp_path / "a", "--directory", tiny_esm2, "--id", "lab/tiny")
    for number, inside in enumerate(("", "tiny/")):
        archive = zipped(tiny_esm2, tmp_path / f"{number}.zip", inside)
        again = install(tmp_path / f"z{number}", "--archive", archive, "--id", "lab/tiny", "--licence", "mit")
        assert again.row() == first.row()
        assert again.record()["licence"] == "mit" and again.record()["from"] == archive.name


@pytest.mark.parametrize("family", ["tiny_t5", "tiny_bert"])
def test_other_families(family: str, root: Path, tmp_path: Path) -> None:
    done = install(tmp_path, "--directory", root / "test-data" / "models" / family, "--id", f"lab/{family}")
    assert done.row()["free_tag"] == {"tiny_t5": "prott5", "tiny_bert": "bert"}[family]


def test_twice_and_another_revision(tiny_esm2: Path, tmp_path: Path) -> None:
    first = install(tmp_path / "a", "--directory", tiny_esm2, "--id", "lab/tiny")
    there = {**first.row(), "path": str(first.folder())}
    table = table_of(tmp_path, there)
    again = install(tmp_path / "b", "--directory", tiny_esm2, "--id", "lab/tiny", "--table", table)
    assert again.rows() == [] and again.is_empty()
    assert "is in the table already, as lab/tiny" in again.report() and "34553eff" in again.report()
    looked = install(tmp_path / "l", "--directory", tiny_esm2, "--id", "lab/tiny", "--table", table, "--dry-run")
    assert "in this revision already, as lab/tiny" in looked.report()
    # the folder of all models, given again without the table: nothing is brought, the row is told
    before = (first.folder() / "model.safetensors").stat().st_mtime_ns
    assert install(tmp_path / "a", "--directory", tiny_esm2, "--id", "lab/tiny").row() == first.row()
    assert (first.folder() / "model.safetensors").stat().st_mtime_ns == before
    # for another server: the files all the same
    carried = install(tmp_path / "c", "--directory", tiny_esm2, "--id", "lab/tiny", "--table", table, "--bundle")
    assert carried.row() == first.row()
    assert local_hub.files_in(carried.folder()) == local_hub.files_in(first.folder())
    other = copied(tiny_esm2, tmp_path / "other", LICENSE=b"free")
    second = install(tmp_path / "d", "--directory", other, "--id", "lab/tiny", "--table", table)
    assert second.row()["value"] == f"lab/tiny@{second.row()['version'].removeprefix('sha256:')[:12]}"
    assert "revision" in second.row()["name"] and "in another revision" in second.report()
    table = table_of(tmp_path, there, {**second.row(), "path": str(second.folder())})
    assert install(tmp_path / "e", "--directory", other, "--id", "lab/tiny", "--table", table).rows() == []
    # a folder that nobody can see from here, and one that lost a file
    gone = table_of(tmp_path, {**there, "path": "/nowhere/tiny"})
    unseen = install(tmp_path / "f", "--directory", tiny_esm2, "--id", "lab/tiny", "--table", gone)
    assert unseen.rows() == [] and "cannot be seen from where this job ran" in unseen.report()
    (first.folder() / "vocab.txt").unlink()
    table = table_of(tmp_path, there)
    with pytest.raises(UserError, match=r"its file vocab.txt is missing.*Remove the row and the folder"):
        plm_install_model.run(flags(tmp_path / "g", "--directory", tiny_esm2, "--id", "lab/tiny", "--table", table))


def test_a_dry_run_brings_nothing(tiny_esm2: Path, tmp_path: Path) -> None:
    for number, source in enumerate((("--directory", tiny_esm2), ("--archive", zipped(tiny_esm2, tmp_path / "a.zip")))):
        looked = install(tmp_path / f"{number}", *source, "--id", "lab/tiny", "--dry-run")
        assert looked.rows() == [] and looked.is_empty()
        assert "Dry run, nothing was brought" in looked.report()
        assert "| model.safetensors | 80.0 KiB |" in looked.report()


@pytest.mark.parametrize("parts", [1, 3])
def test_bin_files_become_safetensors(parts: int, tiny_esm2: Path, tmp_path: Path) -> None:
    source = as_bin(tiny_esm2, tmp_path / "source", parts)
    done = install(tmp_path, "--directory", source, "--id", "lab/old")
    names = {path.name for path in done.folder().iterdir()}
    assert not [name for name in names if "bin" in name]
    assert ("model.safetensors" in names) is (parts == 1) and len(done.record()["converted"]) == parts
    assert answer_alike(done.folder(), tiny_esm2, tmp_path)
    assert "nothing in it was run; stored as safetensors" in done.report()


class Harm:
    """Unpickled without care it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_harms_is_refused(tiny_esm2: Path, tmp_path: Path) -> None:
    source = copied(tiny_esm2, tmp_path / "source", model__safetensors=None)
    torch.save({"esm.x": Harm(tmp_path / "harm")}, source / "pytorch_model.bin")
    line = refused(tmp_path / "out", "--directory", source, "--id", "lab/harm")
    assert "holds Python objects beside tensors, which could run code and are never read" in line
    assert not (tmp_path / "harm").exists()


def test_settings_that_ask_for_code_stay_behind(tiny_esm2: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_esm2 / "tokenizer_config.json").read_text())
    asking = json.dumps(settings | {"auto_map": {"AutoTokenizer": ["tokenizer.Own", None]}}).encode()
    source = copied(tiny_esm2, tmp_path / "source", tokenizer_config__json=asking, tokenizer__py=b"x")
    done = install(tmp_path, "--directory", source, "--id", "lab/tiny")
    assert not {"tokenizer_config.json", "tokenizer.py"} & {path.name for path in done.folder().iterdir()}


def nan_weights(folder: Path) -> bytes:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("query.weight"))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, folder / "nan.tmp")
    return (folder / "nan.tmp").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config__json": None}, "no config.json"),
        ({"model__safetensors": None}, "no weights that the suite reads"),
        ({"model__safetensors": None, "tf_model__h5": b"x"}, "no weights that the suite reads, but tf_model.h5"),
        ({"model__safetensors": None, "model-00001-of-00002__safetensors": b"x"}, "part 2 of 2 is missing"),
        ({"config__json": b'{"model_type": "llama"}'}, "is none that the suite knows"),
        ({"config__json": b'{"model_type": "esm", "auto_map": {}}'}, "wants to run code of its own"),
        ({"config__json": b"{"}, "no proper JSON"),
        ({"vocab__txt": None}, "vocab"),
        ({"model__safetensors": b"\x10" * 100}, "The weights cannot be loaded"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_is_no_model_is_one_line(
    change: dict[str, bytes | None], said: str, tiny_esm2: Path, tmp_path: Path
) -> None:
    source = copied(tiny_esm2, tmp_path / "source", **change)
    assert said in refused(tmp_path / "out", "--directory", source, "--id", "lab/x")


def test_numbers_that_are_none_are_refused(tiny_esm2: Path, tmp_path: Path) -> None:
    source = copied(tiny_esm2, tmp_path / "source")
    (source / "model.safetensors").write_bytes(nan_weights(source))
    assert "hold NaN or infinite numbers" in refused(tmp_path / "out", "--directory", source, "--id", "lab/x")


def test_a_model_that_the_memory_does_not_hold(
    starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALAXY_MEMORY_MB", "8")
    line = refused(tmp_path / "out", "--directory", starter, "--id", "lab/starter")
    assert "Trying the model takes" in line and "and the job has 8.0 MiB" in line
    monkeypatch.setenv("GALAXY_MEMORY_MB", "40")  # enough for the numbers in 16 bits alone
    assert install(tmp_path, "--directory", starter, "--id", "lab/starter").row()["free_tag"] == "esm2"


def test_archives_that_are_no_model(root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    both = zipped(tiny_esm2, tmp_path / "both.zip", "a/")
    with zipfile.ZipFile(both, "a") as archive:
        archive.write(tiny_esm2 / "config.json", "b/config.json")
    (tmp_path / "text.zip").write_text("no zip")
    for archive_path, said in (
        (root / "test-data" / "bundle_tiny_site.zip", "The zip holds no model"), (both, "holds 2 models"),
        (tmp_path / "text.zip", "no complete zip file"), (tmp_path / "none.zip", "does not exist"),
    ):
        assert said in refused(tmp_path / "out", "--archive", archive_path, "--id", "lab/x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--id", "lab/x"], "One source is needed"),
        (["--hub", "lab/x", "--directory", "/x", "--allow-hub"], "There can be one source only"),
        (["--hub", "lab/x"], "may only be asked when it is allowed"),
        (["--hub", "../x", "--allow-hub"], "'../x' is no id of a model"),
        (["--hub", "lab/x", "--allow-hub", "--id", "y"], "keeps its id"),
        (["--hub", "lab/x", "--allow-hub"], "The network is forbidden here"),
        (["--directory", "/nowhere", "--id", "lab/x"], "no such folder where the job runs"),
        (["--directory", "/x"], "needs an id"),
        (["--directory", "/x", "--id", "a/b/c"], "is no id of a model"),
        (["--directory", "/x", "--id", "lab/x", "--revision", "main"], "This is for models of the hub"),
        (["--directory", "/x", "--id", "lab/x", "--title", "a\tb"], "does not fit a table"),
    ],
)
def test_flags_that_do_not_go_together(given: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, *given)


def test_a_model_that_the_disk_does_not_hold(tmp_path: Path) -> None:
    huge = OfferedFile("pytorch_model.bin", 2**59)
    offer = Offer("lab/x", "hub", "", "main", COMMIT, "", "", False, (huge,), ())
    with pytest.raises(UserError, match=r"The model takes 1,048,576.0 TiB and"):
        stored_model.check_room(offer, tmp_path)
    with pytest.raises(UserError, match=r"config.json has 1.0 GiB, as no such file has"):
        offers.check_small([OfferedFile("config.json", 2**30)], "lab/x")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"), ("---\nlicense: \"apache-2.0\"\n---", "apache-2.0"), ("license: mit", ""),
        ("---\nlicense: other\nlicense_name: cambrian-1\n---", "cambrian-1"), ("---\ntags: x\n---\nlicense: mit", ""),
        ("---\nlicense: other\n---", "other"), ("", ""),
    ],
)
def test_licences_of_cards(card: str, licence: str) -> None:
    assert offers.stated_licence(card) == licence


def test_a_table_that_is_full_of_one_model() -> None:
    rows = [model_table.TableRow(value, "", "", "", "", "1", "/x") for value in ("lab/x", "lab/x@abc")]
    with pytest.raises(UserError, match="has rows lab/x and lab/x@abc already"):
        model_table.free_value(rows, "lab/x", "abc")


# ------------------------------------------------------------------------------------------------------------- the hub


@dataclass(frozen=True)
class Visit:
    """What came of several installations from one hub."""

    place: Path
    outcomes: dict[str, str]
    hub: local_hub.LocalHub
    printed: str

    def of(self, name: str) -> Installed:
        assert self.outcomes[name] == "", self.outcomes[name]
        return Installed(self.place / name)

    def refused(self, name: str) -> str:
        made = Installed(self.place / name)
        assert made.is_empty() and not (made.place / "rows.json").exists()
        assert self.outcomes[name], f"{name} was installed"
        return self.outcomes[name]


CASES = {
    "branch": ("lab/esm", ["--revision", "main"], ""), "commit": ("lab/esm", ["--revision", COMMIT], ""),
    "dry": ("lab/looked", ["--dry-run"], ""), "old": ("lab/old", [], ""), "code": ("lab/code", [], ""),
    "damaged": ("lab/damaged", [], ""), "small": ("lab/small", [], ""), "short": ("lab/short", [], ""),
    "unknown": ("lab/none", [], ""), "revision": ("lab/esm", ["--revision", "v9"], ""),
    "moved": ("lab/moved", ["--revision", COMMIT], ""), "llama": ("lab/llama", [], ""),
    "closed": ("lab/gated", [], ""), "wrong_token": ("lab/gated", [], "hf_another"), "open": ("lab/gated", [], TOKEN),
    "looked_at_gated": ("lab/gated", ["--dry-run"], ""), "twice": ("lab/esm", [], ""),
}


@pytest.fixture(scope="module")
def visit(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """All cases of the hub, in one process: starting one costs more than the rest."""
    place = tmp_path_factory.mktemp("hub")
    tiny = local_hub.files_in(root / "test-data" / "models" / "tiny_esm2")
    old = local_hub.files_in(as_bin(root / "test-data" / "models" / "tiny_esm2", place / "old_source"))
    flipped = bytearray(tiny["model.safetensors"])
    flipped[-1] ^= 1
    about = {"pipeline_tag": "fill-mask", "cardData": {"license": "mit"}, "tags": ["license:mit"]}
    code = tiny | {"modeling.py": b"x", "pytorch_model.bin": b"x", "flax_model.msgpack": b"x", "onnx/model.onnx": b"x"}
    models = {
        "lab/esm": HeldModel(code | {"README.md": b"# Tiny"}, about=about), "lab/looked": HeldModel(tiny, about=about),
        "lab/old": HeldModel(old), "lab/damaged": HeldModel(tiny, {"model.safetensors": bytes(flipped)}),
        "lab/small": HeldModel(tiny, {"vocab.txt": tiny["vocab.txt"].replace(b"A", b"C")}),
        "lab/short": HeldModel(tiny, {"model.safetensors": tiny["model.safetensors"][:-8]}),
        "lab/code": HeldModel(tiny | {"config.json": b'{"model_type": "esm", "auto_map": {}}'}),
        "lab/moved": HeldModel(tiny, answers="f" * 40), "lab/gated": HeldModel(tiny, gated=True, about=about),
        "lab/llama": HeldModel(tiny | {"config.json": b'{"model_type": "llama"}'}),
    }
    there = ("lab/esm", "x", "fill-mask", "sequence", "", COMMIT, "/x")
    table = table_of(place, dict(zip(COLUMNS, there, strict=True)))
    left_out = ("OFFLINE", "PROXY", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if not any(one in key.upper() for one in left_out)}
    orders = []
    for name, (model, given, token) in CASES.items():
        own = ["--table", str(table)] if name == "twice" else []
        argv = flags(place / name, "--hub", model, "--allow-hub", *given, *own)
        orders.append({"name": name, "argv": argv, "token": token})
    with local_hub.running(models) as hub:
        environment |= {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(root / "tools"),
        }
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("installation_probe.py")], input=json.dumps(orders),
            env=environment, capture_output=True, text=True, timeout=600, check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return Visit(place, json.loads(done.stdout.splitlines()[-1]), hub, done.stdout + done.stderr)


def test_a_branch_is_resolved_to_its_commit(visit: Visit, tiny_esm2: Path, tmp_path: Path) -> None:
    done, pinned = visit.of("branch"), visit.of("commit")
    row, record = done.row(), done.record()
    assert (row["value"], row["version"], row["pipeline_tag"]) == ("lab/esm", COMMIT, "fill-mask")
    assert row["path"] == f"lab/{COMMIT[:12]}/esm" and row == pinned.row()
    assert (record["asked"], record["revision"], record["licence"]) == ("main", COMMIT, "mit")
    assert record["from"] == visit.hub.url and pinned.record()["asked"] == COMMIT
    held = local_hub.files_in(done.folder())
    assert {name: held[name] for name in local_hub.files_in(tiny_esm2)} == local_hub.files_in(tiny_esm2)
    assert set(held) == {*local_hub.files_in(tiny_esm2), "README.md", "plm_source.json"}
    assert visit.hub.downloads("lab/esm") == set(held) - {"plm_source.json"}
    assert answer_alike(done.folder(), tiny_esm2, tmp_path)


def test_a_look_at_the_hub_downloads_nothing(visit: Visit) -> None:
    looked = visit.of("dry")
    assert looked.rows() == [] and looked.is_empty() and visit.hub.downloads("lab/looked") == set()
    assert "81.2 KiB in 5 files, licence: mit" in looked.report()
    assert "sha256 34553eff964828db83c9dedc4b6b8e5f1ab26c53f5a1c48bd96bf6110ea414c7" in looked.report()
    gated = visit.of("looked_at_gated")
    assert "gated: its terms must be accepted on the hub" in gated.report() and gated.rows() == []


def test_what_the_table_has_is_not_downloaded_again(visit: Visit) -> None:
    again = visit.of("twice")
    assert again.rows() == [] and again.is_empty() and "is in the table already, as lab/esm" in again.report()


def test_a_model_with_bin_files_alone_is_converted(visit: Visit, tiny_esm2: Path, tmp_path: Path) -> None:
    done = visit.of("old")
    assert (done.folder() / "model.safetensors").is_file() and not list(done.folder().glob("*.bin"))
    assert done.record()["converted"] == ["pytorch_model.bin"]
    assert answer_alike(done.folder(), tiny_esm2, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("damaged", "model.safetensors is not what is listed: its sha256 is"),
        ("small", "vocab.txt is not what is listed: its git checksum differs"),
        ("short", "model.safetensors"),
        ("unknown", "The hub has no such model, or does not show it without a token"),
        ("revision", "The model has no revision v9"),
        ("moved", f"commit {'f' * 40} where {COMMIT} was asked for"),
        ("llama", "is none that the suite knows"),
        ("code", "wants to run code of its own"),
        ("closed", "The model is gated and no token came with the job"),
        ("wrong_token", "does not give this model to the owner of the token"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(name: str, said: str, visit: Visit) -> None:
    line = visit.refused(name)
    assert said in line and "\n" not in line and f"[{CASES[name][0]}]" in line


def test_weights_of_an_unknown_family_are_not_even_fetched(visit: Visit) -> None:
    assert visit.refused("llama") and "model.safetensors" not in visit.hub.downloads("lab/llama")
    assert "config.json" in visit.hub.downloads("lab/llama")


def test_a_gated_model_comes_with_the_token_which_stays_hidden(visit: Visit) -> None:
    done = visit.of("open")
    assert done.row()["value"] == "lab/gated" and done.record()["gated"] is True
    assert {token for _, path, token in visit.hub.asked if path.startswith("/lab/gated/")} >= {TOKEN}
    assert TOKEN not in visit.printed
    for path in done.place.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_hub_that_does_not_answer(run_stage: Callable[..., Any], tmp_path: Path) -> None:
    """As an administrator sees it: one line, exit code 1."""
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    argv = flags(tmp_path, "--hub", "lab/x", "--allow-hub", "--dry-run")
    done = run_stage("plm_install_model", *argv, env=environment)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "could not be fetched from http://127.0.0.1:9" in done.stderr and TOKEN not in done.stderr + done.stdout


# ---------------------------------------------------------------------------------------------------------- in Galaxy


class Administrator:
    """Runs tools in the real Galaxy and waits for them.

    Args:
        server: A Galaxy that runs.
    """

    def __init__(self, server: GalaxyServer) -> None:
        self.server = server
        self.history = server.request("POST", "/api/histories", {"name": "installing models"})["id"]

    def run(self, tool: str, inputs: dict[str, Any], **more: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The job as Galaxy tells of it, and output to id."""
        asked = {"tool_id": tool, "history_id": self.history, "inputs": inputs, **more}
        made = self.server.request("POST", "/api/tools", asked)
        job = self.finished(made["jobs"][0]["id"])
        return job, {output["output_name"]: output["id"] for output in made["outputs"]}

    def finished(self, job: str) -> dict[str, Any]:
        for _ in range(600):
            told: dict[str, Any] = self.server.request("GET", f"/api/jobs/{job}?full=true")
            if told["state"] in ("ok", "error", "deleted"):
                assert told["state"] == "ok", told["stderr"]
                return told
            time.sleep(0.5)
        raise AssertionError(f"the job {job} did not end")

    def upload(self, file: Path) -> str:
        """A dataset of its own, by id."""
        elements = [{"src": "pasted", "paste_content": file.read_text(), "name": file.name, "ext": "fasta"}]
        targets = [{"destination": {"type": "hdas"}, "elements": elements}]
        made = self.server.request("POST", "/api/tools/fetch", {"history_id": self.history, "targets": targets})
        self.finished(made["jobs"][0]["id"])
        return str(made["outputs"][0]["id"])

    def content(self, dataset: str) -> bytes:
        details = self.server.request("GET", f"/api/datasets/{dataset}")
        return Path(details["file_name"]).read_bytes()

    def download(self, dataset: str, target: Path) -> Path:
        """A dataset with its folder, as a browser saves it."""
        address = f"{self.server.url}/api/datasets/{dataset}/display?to_ext=data_manager_json"
        asked = urllib.request.Request(address, headers={"x-api-key": self.server.account().key})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
            target.write_bytes(answer.read())
        return target

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of the table whose id begins so."""
        table = self.server.request("GET", "/api/tool_data/huggingface")
        rows = [dict(zip(table["columns"], fields, strict=True)) for fields in table["fields"]]
        return [row for row in rows if row["value"].startswith(name)]

    def remove(self, name: str) -> None:
        """As an administrator does: the row, and the folder that it names."""
        for row in self.rows(name):
            values = "\t".join(row[column] for column in COLUMNS)
            self.server.request("DELETE", "/api/tool_data/huggingface", {"values": values})
            shutil.rmtree(row["path"], ignore_errors=True)


@pytest.mark.galaxy
def test_an_installed_model_is_offered_and_used(tiny_esm2: Path, root: Path, tmp_path: Path) -> None:
    """A gated model of a hub: into the table, a second time, through plm_embed, as a bundle to another server."""
    layout = Layout(root)
    server = GalaxyServer(layout, lambda line: None)
    if not server.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    about = {"pipeline_tag": "fill-mask", "cardData": {"license": "mit"}}
    # The process that imports bundles does not hear of rows that were removed: each run has a model of its own.
    name, other = "plm-suite-tests/gated", f"plm-suite-tests/carried-{secrets.token_hex(4)}"
    held = HeldModel(local_hub.files_in(tiny_esm2), gated=True, about=about)
    inputs = {"origin|source": "hub", "origin|hub": name, "origin|revision": "main"}
    administrator = Administrator(server)
    administrator.remove(name)
    with local_hub.running({name: held, other: held}) as hub:
        # what docs/administrators.md advises: the token in the environment of this server's jobs
        layout.job_variables.write_text(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN}\n")
        try:
            job, outputs = administrator.run("plm_install_model", inputs)
            first = len(hub.downloads(name))
            again, _ = administrator.run("plm_install_model", inputs)
            carried, bundle = administrator.run(
                "plm_install_model", {**inputs, "origin|hub": other}, data_manager_mode="bundle"
            )
            assert first == len(held.files) == len(hub.downloads(name))
        finally:
            layout.job_variables.unlink()
    (row,) = administrator.rows(name)
    assert (row["value"], row["version"], row["pipeline_tag"]) == (name, COMMIT, "fill-mask")
    folder = Path(row["path"])
    assert folder.is_relative_to(layout.galaxy) and (folder / "model.safetensors").is_file()
    assert "is in the table already" in again["stdout"]
    shown = json.dumps([job, again, carried]).encode() + administrator.content(outputs["report"])
    assert b"licence: mit" in shown and TOKEN.encode() not in shown
    # its row is offered by forms, though its tag is the hub's own; and a job computes with it
    history = f"history_id={administrator.history}"
    form = json.dumps(server.request("GET", f"/api/tools/plm_embed/build?{history}"))
    assert name in form
    proteins = administrator.upload(root / "test-data" / "simulated_query.fasta")
    asked = {"input": {"src": "hda", "id": proteins}, "model|source": "table", "model|table": name}
    embedded, _ = administrator.run("plm_embed", asked)
    assert "6 records: 6 embedded" in embedded["stdout"] and str(folder) in embedded["command_line"]
    # another server: the bundle alone brings model and row
    assert not administrator.rows(other)
    carried_file = administrator.download(bundle["output"], tmp_path / "bundle.zip")
    server.request("POST", "/api/tool_data", {"source": {"src": "uri", "uri": carried_file.as_uri()}})
    for _ in range(120):
        if administrator.rows(other):
            break
        time.sleep(0.5)
    (imported,) = administrator.rows(other)
    assert (imported["version"], imported["pipeline_tag"]) == (COMMIT, "fill-mask")
    brought = local_hub.files_in(Path(imported["path"]))
    assert {file: brought[file] for file in held.files} == held.files
    for one in (name, other):
        administrator.remove(one)
