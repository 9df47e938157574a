"""Bundles: the same predictions after reloading, and nothing unsafe, damaged or mismatched gets through."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetuning_cases as cases
import numpy as np
import pytest
import safetensors.torch as tensors
import torch
from plm.errors import UserError
from plm.jobs.finetune.job import FineTuningJob
from plm.jobs.finetune.validation import calibrate
from plm.model.batching import pack
from plm.model.bundles.fine_tuned import FineTunedBundle, load_bundle, raw_answers
from plm.model.encoder import hidden_states

Contents = dict[str, bytes]


@pytest.fixture(scope="module")
def made(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FineTuningJob, FineTunedBundle, Path]:
    """A LoRA job with two seeds on sites, its bundle and the bundle's zip."""
    folder = tmp_path_factory.mktemp("bundle")
    job = cases.trained(cases.dataset("site", "class", 32), tiny_esm2, folder / "job", epochs=2, seeds=(1, 2))
    bundle, _ = cases.released(job, tiny_esm2, folder / "bundle.zip")
    return job, bundle, folder / "bundle.zip"


def rewritten(source: Path, target: Path, change: Callable[[Contents], None], *, honest: bool = True) -> Path:
    """A copy of a bundle with other members; with ``honest`` the manifest lists what is there."""
    with zipfile.ZipFile(source) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    change(contents)
    if honest and "manifest.json" in contents:
        manifest = json.loads(contents["manifest.json"])
        others = sorted(set(contents) - {"manifest.json"})
        manifest["files"] = {name: hashlib.sha256(contents[name]).hexdigest() for name in others}
        contents["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as opened:
        for name, content in contents.items():
            opened.writestr(name, content)
    return target


def load(path: Path, base: Path | str | None, tmp_path: Path) -> FineTunedBundle:
    return load_bundle(
        path, None if base is None else str(base), workdir=tmp_path / "load", device="cpu", precision="fp32"
    )


def test_reloaded_bundle_predicts_what_the_trained_networks_predict(
    made: tuple[FineTuningJob, FineTunedBundle, Path],
) -> None:
    job, bundle, _ = made
    assert job.rows.positions is not None
    found = bundle.predict_members(job.rows.sequences, job.rows.positions)
    for run, member, temperature in zip(job.done, found, calibrate(job).temperatures, strict=True):
        loaded, network = job.trained_network(run)
        raw = raw_answers(
            loaded, network, job.rows.task, job.rows.sequences, job.rows.positions, window=15, budget=4096
        )
        scaled = np.exp(raw / temperature)
        np.testing.assert_allclose(member, scaled / scaled.sum(1, keepdims=True), atol=1e-6)
    assert not np.allclose(found[0], found[1])
    np.testing.assert_allclose(bundle.predict(job.rows.sequences, job.rows.positions), found.mean(0))


def test_whole_proteins_are_seen_in_the_window_of_training(made: tuple[FineTuningJob, FineTunedBundle, Path]) -> None:
    _, bundle, _ = made
    protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQY" * 2
    sites = [at for at, letter in enumerate(protein) if letter == "Y"]
    windows = [protein[max(0, at - 7) : at + 8] for at in sites]
    inside = [min(at, 7) for at in sites]
    whole = bundle.predict([protein] * len(sites), sites)
    np.testing.assert_allclose(whole, bundle.predict(windows, inside), atol=1e-6)


def test_order_and_budget_do_not_matter(made: tuple[FineTuningJob, FineTunedBundle, Path]) -> None:
    job, bundle, _ = made
    assert job.rows.positions is not None
    rows = list(range(32))[::-1]
    forward = bundle.predict(job.rows.sequences, job.rows.positions)
    sequences, positions = ([values[row] for row in rows] for values in (job.rows.sequences, job.rows.positions))
    np.testing.assert_allclose(bundle.predict(sequences, positions, budget=40)[::-1], forward, atol=1e-5)


def test_manifest_says_what_a_user_needs(made: tuple[FineTuningJob, FineTunedBundle, Path]) -> None:
    _, bundle, path = made
    manifest = bundle.manifest
    assert manifest["task"] == {"level": "site", "target": "class"}
    assert manifest["labels"] == ["0", "1"] and manifest["positive"] == "1"
    assert manifest["window"] == 15 and manifest["site_residues"] == "Y"
    assert manifest["seeds"] == [1, 2] and manifest["finished"] is True
    assert 0 < manifest["threshold"] < 1 and manifest["training_prevalence"] == 0.5
    assert manifest["base"]["family"] == "esm2"
    with zipfile.ZipFile(path) as opened:
        everything = b"".join(opened.read(name) for name in opened.namelist())
        ids = json.loads(opened.read("reference.json"))["ids"]
    assert str(path.parent).encode() not in everything, "no path of this machine in the bundle"
    assert b"/models/tiny" not in everything
    assert set(ids) <= {f"r{number}" for number in range(32) if number % 4 < 2}, "training rows only"


def test_same_job_gives_the_same_bytes(tiny_esm2: Path, tmp_path: Path) -> None:
    paths = []
    for attempt in ("one", "two"):
        job = cases.trained(cases.dataset("sequence", "class", 16), tiny_esm2, tmp_path / attempt)
        cases.released(job, tiny_esm2, tmp_path / f"{attempt}.zip")
        paths.append(tmp_path / f"{attempt}.zip")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as opened:
        assert {entry.compress_type for entry in opened.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_peft_alone_loads_the_adapter(method: str, tiny_esm2: Path, tmp_path: Path) -> None:
    import peft
    from transformers import EsmModel

    job = cases.trained(cases.dataset("sequence", "class", 16), tiny_esm2, tmp_path / "job", method=method, epochs=2)
    bundle, _ = cases.released(job, tiny_esm2, tmp_path / "bundle.zip")
    base = EsmModel.from_pretrained(tiny_esm2, add_pooling_layer=False)
    tokens = torch.tensor([bundle.loaded.token_ids("MKTAYIAKQRY")])
    plain = base(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
    alone = peft.PeftModel.from_pretrained(base, str(bundle.folder / "adapter")).eval()
    with torch.no_grad():
        expected = alone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
        bundle.members[0].network.body.set_adapter(bundle.members[0].adapter)
        found = hidden_states(bundle.members[0].network.body, pack([tokens[0].tolist()]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-5), "the adapter must have learned something"


def test_full_bundle_needs_no_base(tiny_esm2: Path, tmp_path: Path) -> None:
    job = cases.trained(cases.dataset("sequence", "class", 16), tiny_esm2, tmp_path / "job", method="full")
    cases.released(job, tiny_esm2, tmp_path / "bundle.zip")
    bundle = load(tmp_path / "bundle.zip", None, tmp_path)
    assert bundle.predict(["MKTAYIAK"]).shape == (1, 2)


def test_folds_keep_their_own_scale_of_numbers(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "number", 18).drop(columns="split")
    frame["fold"] = [str(number % 3 + 1) for number in range(18)]
    frame["label"] = [f"{100 * (number % 3) + number / 10:.1f}" for number in range(18)]
    job = cases.trained(frame, tiny_esm2, tmp_path / "job")
    bundle, _ = cases.released(job, tiny_esm2, tmp_path / "bundle.zip")
    means = [member.mean for member in bundle.members]
    assert [member.fold for member in bundle.members] == [1, 2, 3]
    expected = [np.mean([float(v) for v in frame["label"][frame["fold"] == fold]]) for fold in ("3", "1", "2")]
    np.testing.assert_allclose(means, expected)


# ---------------------------------------------------------------------------------------------------------- bad bundles


def test_wrong_base_names_both_models(
    made: tuple[FineTuningJob, FineTunedBundle, Path], tiny_t5: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"trained on the model tiny_esm2 \(sha256 .*not on tiny_t5 \(sha256"):
        load(made[2], tiny_t5, tmp_path)
    with pytest.raises(UserError, match="trained on the model tiny_esm2, which is not built in"):
        load(made[2], None, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_bundle_is_told(
    made: tuple[FineTuningJob, FineTunedBundle, Path], share: float, tiny_esm2: Path, tmp_path: Path
) -> None:
    content = made[2].read_bytes()
    path = tmp_path / "short.zip"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="no complete zip file"):
        load(path, tiny_esm2, tmp_path)


def put(name: str, content: bytes) -> Callable[[Contents], None]:
    return lambda contents: contents.__setitem__(name, content)


def manifest_with(**fields: Any) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        contents["manifest.json"] = json.dumps({**json.loads(contents["manifest.json"]), **fields}).encode()

    return change


HEAD = "members/0/head.safetensors"
PICKLE = pickle.dumps({"weights": [1.0]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("members/0/head.pkl", PICKLE), "head.pkl.*pickles and code are refused"),
        (put("members/0/pytorch_model.bin", PICKLE), "pickles and code are refused"),
        (put("modeling.py", b"print('hello')"), "modeling.py"),
        (put(HEAD, PICKLE), "is not what its name says.*may be a pickle"),
        (put("self_test.json", PICKLE), "self_test.json.*may be a pickle"),
        (put("README.md", PICKLE), "README.md.*may be a pickle"),
        (put("../escaped.json", b"{}"), "unsafe member"),
        (put("/etc/escaped.json", b"{}"), "unsafe member"),
        (lambda contents: contents.pop("manifest.json"), "no manifest.json"),
        (manifest_with(schema_version=99), "schema version 99"),
        (manifest_with(task={"level": "planet", "target": "class"}), "does not know"),
        (manifest_with(labels=["0", "1", "2"], positive=""), "does not fit"),
    ],
)
def test_bad_members_are_refused(
    made: tuple[FineTuningJob, FineTunedBundle, Path],
    change: Callable[[Contents], None],
    message: str,
    tiny_esm2: Path,
    tmp_path: Path,
) -> None:
    path = rewritten(made[2], tmp_path / "bad.zip", change)
    if "does not fit" in message:
        # The head's sizes come from the manifest as well.
        path = rewritten(path, tmp_path / "bad.zip", _more_outputs)
    with pytest.raises(UserError, match=message):
        load(path, tiny_esm2, tmp_path)
    assert not (tmp_path / "escaped.json").exists()


def _more_outputs(contents: Contents) -> None:
    manifest = json.loads(contents["manifest.json"])
    manifest["head"]["outputs"] = 3
    contents["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda contents: contents.pop(HEAD), "lacks its member"),
        (put("extra.json", b"{}"), "does not list"),
        (lambda contents: contents.__setitem__(HEAD, contents[HEAD][:-1] + b"\x07"), "altered or damaged"),
    ],
)
def test_members_must_be_those_of_the_manifest(
    made: tuple[FineTuningJob, FineTunedBundle, Path],
    change: Callable[[Contents], None],
    message: str,
    tiny_esm2: Path,
    tmp_path: Path,
) -> None:
    path = rewritten(made[2], tmp_path / "bad.zip", change, honest=False)
    with pytest.raises(UserError, match=message):
        load(path, tiny_esm2, tmp_path)


def test_self_test_catches_other_weights(
    made: tuple[FineTuningJob, FineTunedBundle, Path], tiny_esm2: Path, tmp_path: Path
) -> None:
    """An adapter that was exchanged for another, with a manifest to match, gives itself away."""

    def exchange(contents: Contents) -> None:
        other = {name: value + 0.5 for name, value in tensors.load(contents[HEAD]).items()}
        other["output.4.bias"] = torch.tensor([-2.0, 2.0])
        contents[HEAD] = tensors.save(other)

    path = rewritten(made[2], tmp_path / "bad.zip", exchange)
    with pytest.raises(UserError, match="fails its self-test"):
        load(path, tiny_esm2, tmp_path)


def test_changed_base_weights_are_noticed(
    made: tuple[FineTuningJob, FineTunedBundle, Path], tiny_esm2: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tiny_esm2"
    shutil.copytree(tiny_esm2, other)
    state = tensors.load_file(other / "model.safetensors")
    name = next(name for name in state if "query.weight" in name)
    state[name] = state[name] + 0.01
    tensors.save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="very same weights"):
        load(made[2], other, tmp_path)


def test_a_file_that_is_no_zip_is_told(tiny_esm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(PICKLE)
    with pytest.raises(UserError, match="no complete zip file"):
        load(path, tiny_esm2, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "absent.zip", tiny_esm2, tmp_path)
