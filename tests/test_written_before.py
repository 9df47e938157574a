"""Bundles, checkpoints, models, caches and embeddings of an earlier version are still taken, with the same results."""

from __future__ import annotations

import csv
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load

DATA = Path(__file__).resolve().parents[1] / "test-data"
WRITTEN = DATA / "written_before"
TOLD = json.loads((WRITTEN / "commands.json").read_text())

Run = Callable[..., subprocess.CompletedProcess[str]]


def rerun(run_stage: Run, name: str, output: Path, *more: str | Path) -> str:
    """The command that wrote an archived file, by the present code and into ``output``; what it says."""
    stage, *flags = TOLD["commands"][name].format(data=DATA, here=WRITTEN).split()
    done = run_stage(f"plm_{stage}", *flags, output, *more, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def tensors(archive: Path) -> dict[str, torch.Tensor]:
    """All trained tensors of a model or a bundle, by member and name."""
    with zipfile.ZipFile(archive) as opened:
        members = [name for name in opened.namelist() if name.endswith(".safetensors") and "reference" not in name]
        return {f"{member}:{name}": tensor for member in members for name, tensor in load(opened.read(member)).items()}


def test_the_folder_holds_what_its_commands_wrote_and_stays_small() -> None:
    files = [path for path in WRITTEN.iterdir() if path.name != "README.md"]
    assert sum(path.stat().st_size for path in files) < 600_000
    made = {*TOLD["commands"], *(f"checkpoint_{stage}.zip" for stage in TOLD["stopped"]), "commands.json"}
    assert {path.name for path in files} == made
    assert TOLD["revision"][:7] in (WRITTEN / "README.md").read_text()


@pytest.mark.parametrize("kind", ["classifier", "compressed", pytest.param("finetuned", marks=pytest.mark.slow)])
def test_bundle_predicts_what_it_predicted(kind: str, run_stage: Run, tmp_path: Path) -> None:
    name = f"predictions_{kind}.tabular"
    rerun(run_stage, name, tmp_path / name)
    expected, given = (list(csv.DictReader((folder / name).open(), delimiter="\t")) for folder in (WRITTEN, tmp_path))
    assert len(given) == len(expected) > 0
    for now, then in zip(given, expected, strict=True):
        assert list(now) == list(then)
        for column in then:
            if column.startswith("p_") or column == "distance":
                assert float(now[column]) == pytest.approx(float(then[column]), rel=1e-3, abs=1e-4), (column, now["id"])
            elif column != "top":  # the same probabilities, as text
                assert now[column] == then[column], (column, now["id"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", TOLD["stopped"])
def test_stopped_job_goes_on_as_if_nothing_had_stopped_it(stage: str, run_stage: Run, tmp_path: Path) -> None:
    name = TOLD["stopped"][stage]
    as_then = ["--predictor", "model"] if stage == "finetune" else []  # what bundles answered with before
    said = rerun(run_stage, name, tmp_path / name, "--resume", WRITTEN / f"checkpoint_{stage}.zip", *as_then)
    assert "Going on from" in said
    assert "nfinished" not in said and "UNFINISHED" not in said
    if stage == "distill":
        assert "are in the teacher cache, 0 are computed" in said
    resumed, expected = tensors(tmp_path / name), tensors(WRITTEN / name)
    assert resumed.keys() == expected.keys()
    if all(torch.equal(resumed[key], expected[key]) for key in expected):
        return
    # The machine that wrote the checkpoint adds up otherwise than this one. Where a gradient is next to nothing, AdamW
    # turns such a rounding error into a step as large as the learning rate, so only the mean over all weights is small.
    # The last two steps move it by 4e-4 or more.
    rerun(run_stage, name, tmp_path / f"undisturbed_{name}", *as_then)
    undisturbed = tensors(tmp_path / f"undisturbed_{name}")
    assert resumed.keys() == undisturbed.keys()
    differences = torch.cat([(resumed[key].float() - undisturbed[key].float()).abs().flatten() for key in resumed])
    assert float(differences.mean()) < 1e-5


@pytest.mark.parametrize("level", ["protein", "residue"])
@pytest.mark.parametrize(
    ("given", "wanted", "form"), [("packed", "uniprot", "hdf5-uniprot"), ("uniprot", "packed", "hdf5")]
)
def test_embeddings_are_read_in_each_layout(
    level: str, given: str, wanted: str, form: str, run_stage: Run, tmp_path: Path
) -> None:
    source, expected = (WRITTEN / f"embeddings_{level}_{layout}.h5" for layout in (given, wanted))
    made = tmp_path / "made.h5"
    done = run_stage("plm_merge_embeddings", "--input", source, "--format", form, "--output", made)
    assert done.returncode == 0, done.stderr
    assert contents(made) == contents(expected)


def contents(path: Path) -> dict[str, object]:
    """Data sets by name, with shape and type, and the attributes that say what they are."""
    held: dict[str, object] = {}

    def hold(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            held[name] = (values.shape, str(values.dtype), values.tolist())

    with h5py.File(path) as opened:
        opened.visititems(hold)
        held |= {name: str(value) for name, value in opened.attrs.items() if name != "suite_version"}
    return held
