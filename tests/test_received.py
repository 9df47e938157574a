"""The one door for strangers' files: what passes, what does not, and that there is no way around it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plm import fingerprints
from plm.errors import UserError
from plm.received import archives, documents, folders, offline, tensors, vocabularies
from plm.received.archives import Archive
from plm.received.documents import parse_json
from plm.received.fields import Fields
from plm.received.limits import DEFAULTS, check_growth, limit

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------- no way around it

READERS = {
    "json.load", "json.loads", "h5py.File", "zipfile.ZipFile", "zipfile.is_zipfile", "np.load", "numpy.load",
    "safe_open", "load_file", "torch.load", "gzip.open", "ParquetFile", "read_table", "pickle.load", "pickle.loads",
    "yaml.load", "yaml.safe_load", "SentencePieceProcessor", "from_file", "from_pretrained", "PeftConfig", "LoraConfig",
    "IA3Config", "PeftModel", "load_adapter", "snapshot_download", "hf_hub_download", "InferenceSession", "ONNX",
    "tarfile.open", "bz2.open", "lzma.open", "shutil.unpack_archive", "joblib.load", "eval", "exec", "import_module",
    "memmap", "fromfile", "loadtxt", "genfromtxt", "input_stream", "open_csv", "torch.hub", "re.compile", "re.match",
    "re.fullmatch", "re.search", "re.sub", "regex.compile", "GzipFile", "zlib.decompress", "decompressobj",
    "open_memmap",
    "read_csv", "read_parquet", "read_hdf", "read_excel", "read_json", "read_pickle", "ElementTree.parse", "ET.parse",
    "fromstring", "literal_eval", "__import__", "spec_from_file_location", "onnx.load", "jit.load", "sqlite3.connect",
    "create_study", "load_study", "AutoModel", "AutoConfig", "AutoTokenizer", "PreTrainedTokenizerFast", "PDBParser",
    "MMCIFParser", "SeqIO.parse", "open_file", "read_schema", "feather.read_table", "deserialize",
}
"""Calls that open a file, build something from what a file says, or compile an expression; by the end of their name."""

ALLOWED: dict[str, dict[str, str]] = {
    "plm/jobs/compare_models/cost.py": {"json.loads": "answers of the process that it started"},
    "plm/jobs/compare_models/cost_process.py": {"json.loads": "the order of the process that started it"},
    "plm/masked_lm/shared_work.py": {"json.loads": "what the leading process of the job says"},
    "plm/jobs/variants/marginals.py": {"memmap": "its own scratch file"},
    "plm/masked_lm/corpus_store.py": {
        "json.loads": "laid out by the job itself in its scratch folder", "np.load": "the same", "memmap": "the same",
    },
    "plm/masked_lm/cluster_split.py": {"np.load": "written by the leading process of the same job"},
    "plm/jobs/finetune/job.py": {"json.loads": "its own dictionary, as JSON would give it back"},
    "plm/jobs/distill/teacher_cache.py": {"json.loads": "its own key, as JSON would give it back"},
    "plm/jobs/project/report.py": {"json.loads": "the picture's description that it has just made"},
    "plm/model/checkpoint.py": {
        "from_pretrained": "in a folder of the job's own, with a configuration built from the fields that are acted on",
        "snapshot_download": "a model of the hub that the user named",
    },
    "plm/jobs/install_model/hub.py": {"hf_hub_download": "of the model that was named; compared with its listing"},
    "plm/model/adapters.py": {
        "LoraConfig": "made of numbers and plain names", "IA3Config": "made of plain names and the family's own",
        "PeftModel": "around a configuration made here, never read from a file",
        "re.compile": "names that were judged, and the family's own patterns",
    },
    "plm/jobs/convert/encoder_onnx.py": {
        "InferenceSession": "the file that the job has just exported", "onnx.load": "the same",
    },
    "plm/jobs/classifier/labelled_embeddings.py": {"open_memmap": "its own scratch file"},
    "plm/jobs/classifier/search.py": {"create_study": "of a journal whose lines the door has checked"},
    "plm/jobs/contacts/structures.py": {
        "PDBParser": "text of bounded size, read by Biopython", "MMCIFParser": "the same",
    },
    "plm/jobs/classifier/onnx_export.py": {"InferenceSession": "the file that the job has just exported"},
    "plm/data/embeddings/tabular.py": {
        "input_stream": "text tables, read by Arrow in blocks", "open_csv": "text tables, read by Arrow in blocks",
    },
}
"""Files that may do so outside the door, and why. Nothing here is of a stranger but text tables."""

TEXT_ROOM = (
    "plm/data/text_files.py",
    "plm/data/header_rules.py",
    "plm/data/proteins.py",
)
"""Where FASTA, tables and the users' own expressions come in; they have limits of their own."""


def called(node: ast.Call) -> str:
    """The name that is called, as it is written."""
    return ast.unparse(node.func)


def constant(node: ast.expr) -> bool:
    """Whether an expression is fixed in the code: text, or text put together from names in capitals."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id.lstrip("_").isupper()
    if isinstance(node, ast.JoinedStr):
        return all(constant(part.value) if isinstance(part, ast.FormattedValue) else True for part in node.values)
    if isinstance(node, ast.Attribute):  # errno.ENOSPC
        return node.attr.isupper()
    return isinstance(node, ast.BinOp) and constant(node.left) and constant(node.right)


def written(mode: ast.expr) -> bool:
    """Whether a mode is of a file that is written anew."""
    return isinstance(mode, ast.Constant) and mode.value in ("w", "x")


def ways_around(path: Path, name: str) -> Iterator[str]:
    """Calls in a file of the suite that open or build something of a stranger without the door."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        whole = called(node)
        found = next((one for one in READERS if whole == one or whole.endswith("." + one)), None)
        if found is None and whole.split(".")[-1] in {one for one in READERS if "." not in one}:
            found = whole.split(".")[-1]
        if found is None:
            continue
        if found.startswith("re.") and node.args and constant(node.args[0]):
            continue
        if whole in ("h5py.File", "zipfile.ZipFile") and len(node.args) > 1 and written(node.args[1]):
            continue
        if found in ("eval", "exec") and whole != found:
            continue  # a network's own eval()
        if whole in ("read_table", "tables.read_table", "adapters.load_adapter", "read_json", "documents.read_json"):
            continue  # the suite's own functions
        if found in ALLOWED.get(name, {}) or (name in TEXT_ROOM and (found.startswith("re") or found == "gzip.open")):
            continue
        yield f"{name}:{node.lineno} {whole}"


def sources() -> list[Path]:
    found = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tools" / "plm").rglob("*.py")]
    return sorted(path for path in found if "received" not in path.relative_to(ROOT / "tools").parts)


def test_there_is_no_way_around_the_door() -> None:
    found = [
        way for path in sources() for way in ways_around(path, path.relative_to(ROOT / "tools").as_posix())
    ]
    assert found == [], "read strangers' files through plm.received, or say in ALLOWED why this is none"


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    lines = {
        "import h5py\nh5py.File('x', 'r')": "h5py.File", "import h5py\nh5py.File('x', 'w')": "",
        "import zipfile as z\nz.ZipFile('x')": "", "import zipfile\nzipfile.ZipFile('x')": "zipfile.ZipFile",
        "import json\njson.loads(text)": "json.loads", "load_file(path)": "load_file", "network.eval()": "",
        "import re\nre.compile('a+')": "", "import re\nre.compile(given)": "re.compile",
        "AutoConfig.from_pretrained(folder)": "from_pretrained", "peft.LoraConfig(**read)": "LoraConfig",
        "torch.load(path, weights_only=True)": "torch.load", "pq.ParquetFile(path)": "ParquetFile",
        "np.load(path)": "np.load", "gzip.GzipFile(path)": "GzipFile", "pd.read_csv(path)": "read_csv",
        "Tokenizer.from_file(path)": "from_file", "gzip.open(path)": "gzip.open",
    }
    for code, wanted in lines.items():
        (tmp_path / "x.py").write_text(code)
        assert [way.split()[-1].split(".")[-1] for way in ways_around(tmp_path / "x.py", "x.py")] == (
            [wanted.split(".")[-1]] if wanted else []
        ), code


def test_every_exception_is_still_needed() -> None:
    """Each entry excuses a call that the search would name without it."""
    for name, allowed in ALLOWED.items():
        path = ROOT / "tools" / name
        assert path.is_file(), name
        ways = [way.split(" ", 1)[1] for way in ways_around(path, "without any exception")]
        for call in allowed:
            assert any(way == call or way.endswith(call) for way in ways), f"{name} does not call {call} any more"
    for name in TEXT_ROOM:
        path = ROOT / "tools" / name
        assert list(ways_around(path, "without any exception")), f"{name} opens no text any more"


def test_every_error_says_how_to_put_it_right() -> None:
    lacking = []
    for path in [*(ROOT / "tools").glob("*.py"), *(ROOT / "tools" / "plm").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and called(node).split(".")[-1] == "UserError":
                fixes = [one.value for one in node.keywords if one.arg == "fix"]
                if not fixes or (isinstance(fixes[0], ast.Constant) and not fixes[0].value):
                    lacking.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:100]}")
    assert lacking == []


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\x00b", "a\u202eb", "a\nb\tc", "a\udc80b", "a\u2028b", "x" * 100_000])
def test_what_an_error_quotes_stays_on_its_line(text: str) -> None:
    line = str(UserError(f"The id {text} is wrong", where=text, fix=f"Change {text}"))
    assert len(line) < 1600 and line.startswith("The id ")
    assert not any(ord(letter) < 32 or letter in "\x7f\u202e\u2028\udc80" for letter in line)


def test_modules_are_imported_by_their_own_names() -> None:
    """The search goes by names: an alias would hide a call."""
    watched = {"json", "h5py", "zipfile", "pickle", "gzip", "tarfile", "yaml", "joblib"}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [one.name for one in node.names if one.name in watched and one.asname], path
            if isinstance(node, ast.ImportFrom) and node.module in watched and node.module != "h5py":
                raise AssertionError(f"{path}: import {node.module} itself")


# ------------------------------------------------------------------------------------------------------------- network


def test_a_job_is_offline_by_construction(root: Path) -> None:
    code = (
        "import plm, os, huggingface_hub.constants as c; from plm.received import offline\n"
        "print(os.environ['HF_HUB_OFFLINE'], os.environ['TRANSFORMERS_OFFLINE'], c.HF_HUB_OFFLINE)\n"
        "with offline.lifted(): print(c.HF_HUB_OFFLINE)\n"
        "print(c.HF_HUB_OFFLINE)"
    )
    plain = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}

    def lines(environment: dict[str, str]) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root / "tools", env=environment, capture_output=True, text=True,
            check=True,
        )
        return done.stdout.split("\n")[:-1]

    assert lines(plain) == ["1 1 True", "False", "True"]
    # Processes that a job starts inherit its switches, and may still fetch what the user named.
    assert lines({**plain, "HF_HUB_OFFLINE": "1", "PLM_OFFLINE": "1"}) == ["1 1 True", "False", "True"]
    # What an administrator forbids stays forbidden.
    assert lines({**plain, "HF_HUB_OFFLINE": "1"}) == ["1 1 True", "True", "True"]
    assert offline.FORBIDDEN_FROM_OUTSIDE, "the tests themselves forbid the network"


@pytest.mark.parametrize("value", ["no", "NO", " no "])
def test_an_administrators_word_counts_more_than_a_flag(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts the script himself meets the same switch as users of the form."""
    from plm.model.checkpoint import resolve_model

    monkeypatch.setenv("PLM_ALLOW_HUB", value)
    with pytest.raises(UserError, match="does not let jobs download models"):
        resolve_model("hub:lab/model", workdir=tmp_path, allow_hub=True)


class _Hub(BaseHTTPRequestHandler):
    """A hub on this machine with one model, which notes what it is asked."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = path.rsplit("/", 1)[-1]
        about = [{"type": "file", "path": one, "size": len(data), "oid": "b" * 40} for one, data in self.files.items()]
        headers = {}
        if path.startswith("/api/models/lab/model/tree/"):
            body = json.dumps(about).encode()
        elif path.startswith("/api/models/lab/model"):
            body = json.dumps({"id": "lab/model", "sha": "a" * 40}).encode()
        elif path.startswith("/lab/model/resolve/") and name in self.files:
            body = self.files[name]
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "a" * 40}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.mark.slow
def test_the_hub_is_asked_for_the_named_model_alone(root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    """And for nothing but the files that are acted on; of weights the safe ones."""
    _Hub.files = {path.name: path.read_bytes() for path in sorted(tiny_esm2.iterdir())}
    _Hub.files |= {"pytorch_model.bin": b"x", "modeling.py": b"x", "adapter_config.json": b"{}"}
    config = json.loads(_Hub.files["config.json"])
    _Hub.files["config.json"] = json.dumps({**config, "_name_or_path": "someone/else"}).encode()
    _Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    left_out = ("OFFLINE", "PROXY", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if not any(one in key.upper() for one in left_out)}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    code = (
        "import sys; from pathlib import Path; from plm.model.checkpoint import resolve_model, load_model\n"
        "files = resolve_model('hub:lab/model', workdir=Path(sys.argv[1]), allow_hub=True)\n"
        "assert load_model(files).layers == 2; print(files.sha256)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=root / "tools", env=environment, capture_output=True,
            text=True, timeout=300,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    from plm.model.checkpoint import resolve_model

    assert done.stdout.split()[-1] == resolve_model(str(tiny_esm2), workdir=tmp_path).sha256
    assert _Hub.asked and all("/lab/model/" in path or path.endswith("/lab/model") for path in _Hub.asked)
    fetched = {path.rsplit("/", 1)[-1] for path in _Hub.asked if "/resolve/" in path}
    assert fetched == {path.name for path in tiny_esm2.iterdir()}


# ------------------------------------------------------------------------------------------------------------ archives


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def opened(path: Path) -> Archive:
    return Archive(path, "archive", "Make it again")


BAD_NAMES = {
    "above": "../a.json", "absolute": "/a.json", "drive": "C:/a.json", "backslash": "a\\b.json", "inner": "a/../b.json",
    "dot": "./a.json", "double": "a//b.json", "home": "~/a.json", "tab": "a\tb.json", "line": "a\nb.json",
    "long": "a" * 300 + ".json",
}


@pytest.mark.parametrize("kind", BAD_NAMES)
def test_names_that_could_leave_a_folder_are_refused(kind: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"good.json": b"{}", BAD_NAMES[kind]: b"{}"})
    with pytest.raises(UserError, match="unsafe member") as caught:
        opened(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_links_and_devices_in_archives_are_refused(tmp_path: Path) -> None:
    for mode in (0o120777, 0o020666, 0o010644, 0o140755):
        info = zipfile.ZipInfo("model.safetensors")
        info.external_attr = mode << 16
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(UserError, match="unsafe member"):
            opened(tmp_path / "x.zip")


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.json": bytes(80 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"would become 80\.0 MiB out of"):
        opened(path)
    # Stored files are as large as they are, whatever their size.
    check_growth(12 * 2**30, 12 * 2**30, "The model", "model.zip")


def test_a_member_may_not_grow_while_it_is_unpacked(tmp_path: Path) -> None:
    """The list of members says ten bytes; the compressed content is a million."""
    path = zipped(tmp_path / "x.zip", {"a.json": bytes(1_000_000)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    listed = content.index(b"PK\x01\x02")
    for place in (22, listed + 24):
        content[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    with opened(path) as archive, pytest.raises(UserError, match="no complete zip file"):
        archive.unpack(tmp_path / "out")
    assert not (tmp_path / "out" / "a.json").exists() or (tmp_path / "out" / "a.json").stat().st_size <= 10


@pytest.mark.parametrize("member", ["wanted.json", "unwanted.txt"])
def test_a_wrong_checksum_is_refused_wherever_it_is(member: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"wanted.json": b'{"a": 1}', "unwanted.txt": b"a" * 100})
    content = bytearray(path.read_bytes())
    listed = content.index(b"PK\x01\x02")
    if member == "unwanted.txt":
        listed = content.index(b"PK\x01\x02", listed + 4)
    content[listed + 16] ^= 1
    path.write_bytes(content)
    with opened(path) as archive, pytest.raises(UserError, match="CRC"):
        archive.unpack(tmp_path / "out", lambda name: name if name.startswith("wanted") else None)


def test_a_member_twice_and_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.json", "[]")
    with pytest.raises(UserError, match=r"holds a\.json twice"):
        opened(tmp_path / "x.zip")
    monkeypatch.setenv("PLM_MAX_MEMBERS", "3")
    with pytest.raises(UserError, match="holds 4 files"):
        opened(zipped(tmp_path / "y.zip", {f"{number}.json": b"{}" for number in range(4)}))


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"})
    with opened(path) as archive, pytest.raises(UserError, match="no complete zip file"):
        archive.unpack(tmp_path / "out")


def test_limits_are_an_administrators(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, default in DEFAULTS.items():
        assert limit(name) == default
        monkeypatch.setenv(name, "7")
        assert limit(name) == 7
        for wrong in ("0", "-1", "x", "1e3", "9" * 30):
            monkeypatch.setenv(name, wrong)
            with pytest.raises(UserError, match="is no limit"):
                limit(name)


def test_what_is_an_archive(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"manifest.json": b"{}"})
    assert archives.holds(path, "manifest.json") and not archives.holds(path, "other")
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-10])
    assert not archives.holds(tmp_path / "cut.zip", "manifest.json")
    assert not archives.is_archive(tmp_path / "absent")


# ----------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested too deeply"), ("[" + "9" * 5_000 + "]", "a number of 5000 digits"),
        ('{"a": 1, "a": 2}', "'a' comes twice"), ("{", "no proper JSON"), ("", "no proper JSON"),
    ],
    ids=["deep-list", "deep-object", "deep", "digits", "twice", "cut", "empty"],
)
def test_documents_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_json(text, "config.json", "model.zip")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and caught.value.fix


def test_bytes_that_are_no_text_and_documents_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        parse_json(b'{"a": "\xff"}', "config.json", "model.zip")
    monkeypatch.setenv("PLM_MAX_JSON_MIB", "1")
    with pytest.raises(UserError, match="too large"):
        parse_json(b" " * (2**20 + 1), "config.json", "model.zip")


def test_text_is_brought_on_one_line() -> None:
    assert documents.cleaned({"a\tb": ["x\ny", {"c": "d\x1be"}], "n": 1}) == {"a b": ["x y", {"c": "d e"}], "n": 1}
    assert documents.one_line("a\tb\nc" + "d" * 500).startswith("a b cd") and len(documents.one_line("d" * 500)) == 200
    assert documents.has_breaks("a\u2028b") and not documents.has_breaks("sp|P1|A_B ü 中")


@pytest.mark.parametrize("value", [None, [], {}, "x", True, -1, 1.5, 1e400, float("nan"), 10**24, "a\tb"], ids=repr)
def test_fields_of_a_wrong_kind_are_one_line(value: Any) -> None:
    fields = Fields({"field": value}, "The manifest", "bundle.zip", "Give another")
    asked: list[Callable[[], Any]] = [
        lambda: fields.whole("field", 0, 10), lambda: fields.text("field", choices=("y",)),
        lambda: fields.entries("field", most=3),
    ]
    if value != []:
        asked += [lambda: fields.texts("field"), lambda: fields.numbers("field", 0, 1)]
    for ask in asked:
        with pytest.raises(UserError, match="field") as caught:
            ask()
        assert "\n" not in str(caught.value) and caught.value.where == "bundle.zip"


# ------------------------------------------------------------------------------------------------- folders and weights


def test_links_lead_inside_a_folder_or_its_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    cache = tmp_path / "models--lab--model"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("..") / ".." / "blobs" / "123")
    (snapshot / "vocab.txt").symlink_to(secret)
    (snapshot / "gone.json").symlink_to(tmp_path / "nothing")
    roots = folders.roots_of(snapshot)
    assert folders.real_file(snapshot, "config.json", "model", roots) == blobs / "123"
    assert folders.real_file(snapshot, "absent.json", "model", roots) is None
    with pytest.raises(UserError, match="leads out of the model's folder"):
        folders.real_file(snapshot, "vocab.txt", "model", roots)
    with pytest.raises(UserError, match="link to nothing"):
        folders.real_file(snapshot, "gone.json", "model", roots)
    monkeypatch.setenv("PLM_MODEL_ROOTS", f"/nowhere:{tmp_path}")
    assert folders.real_file(snapshot, "vocab.txt", "model", folders.roots_of(snapshot)) == secret


def test_safetensors_that_do_not_fit_their_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for header in (
        {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(UserError, match="cannot be read"):
            tensors.shapes(path)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="cannot be read"):
        tensors.shapes(path)
    with pytest.raises(UserError, match="is missing"):
        tensors.shapes(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"A C \xff", "not UTF-8"), ("vocab.txt", b"A C A", "'A' twice"),
        ("tokenizer.json", b"{", "no proper JSON"), ("tokenizer.json", b"[]", "not a JSON object"),
        ("tokenizer.json", b"{}", "holds no vocabulary"), ("tokenizer.json", b"[" * 10_000, "nested too deeply"),
        ("tokenizer.json", b'{"model": {"vocab": {"A": -1}}}', "no token with its number"),
        ("tokenizer.json", b'{"model": {"vocab": {"A": 1, "C": 1}}}', "number 1 twice"),
        ("tokenizer.json", b'{"model": {"vocab": [["A", 0.0], null]}}', "no token with its number"),
        ("spiece.model", b"rubbish", "damaged"), ("spiece.model", b"", "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_vocabularies_that_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        vocabularies.read_vocabulary(tmp_path, "model")


def test_a_tokenizer_file_is_read_without_being_built(tmp_path: Path) -> None:
    content = {
        "model": {"type": "WordLevel", "vocab": {"<cls>": 0, "A": 1}},
        "added_tokens": [{"id": 0, "content": "<cls>"}, {"id": 2, "content": "<mask>"}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert vocabularies.read_vocabulary(tmp_path, "model") == {"<cls>": 0, "A": 1, "<mask>": 2}


# -------------------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_are_compared_as_far_as_they_go() -> None:
    full, other, early = fingerprints.join("a" * 64, "b" * 64), fingerprints.join("a" * 64, "c" * 64), "a" * 64
    assert fingerprints.difference(full, full) == "" and not fingerprints.partial(full, full)
    assert fingerprints.difference(full, other) == fingerprints.REST
    assert fingerprints.difference(full, "d" * 64) == fingerprints.WEIGHTS
    assert fingerprints.difference(full, early) == "" and fingerprints.partial(early, full)
    assert fingerprints.difference("", full) == "" and not fingerprints.partial("", full)
    assert fingerprints.weaker(full, early) == early
    assert [what for what, *_ in fingerprints.facts(full, other)][1].startswith("configuration or vocabulary")


def test_numpy_is_what_the_door_gives(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / "x.safetensors")
    assert tensors.shapes(tmp_path / "x.safetensors") == {"a": (2, 3)}
    np.testing.assert_array_equal(tensors.load_numpy(tmp_path / "x.safetensors")["a"], [[0, 1, 2], [3, 4, 5]])
