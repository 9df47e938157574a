"""plm_contacts: structures as they are found, precisions by an independent count, heads, windows, every record kept."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plm_contacts
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plm import stage
from plm.data.own_tables import recognise
from plm.errors import UserError
from plm.jobs.contacts import contact_job, fitting
from plm.jobs.contacts.bands import (
    BandFiller,
    ListedPairs,
    PlacedResidues,
    SequenceWindow,
    pairs_of,
    unseen_pairs,
    windows_of,
)
from plm.jobs.contacts.contact_baselines import BASELINES, ContactBaselines, residue_codes
from plm.jobs.contacts.contact_heads import PairNetwork, published_regression, window_maps
from plm.jobs.contacts.fitting import chosen_pairs
from plm.jobs.contacts.precision import CELLS, precision_at, precisions, summarise
from plm.jobs.contacts.reading import ContactReader
from plm.jobs.contacts.structures import Chain, Unread, align, letter_of, read_structures
from plm.model import encoder
from plm.model.capacity import Capacity, capacity
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import FAMILIES
from plm.model.loaded import LoadedModel

Rows = list[dict[str, str]]
FIXED = ("--device", "cpu", "--precision", "fp32", "--resamples", "100")
DATA = Path(__file__).resolve().parents[1] / "test-data"
LOG = stage.logging.getLogger("test_contacts")


def rows_of(path: Path) -> Rows:
    with path.open() as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def made(tmp_path: Path, *more: str | Path, model: str | Path = DATA / "models" / "tiny_esm2") -> dict[str, Path]:
    """All outputs of a run."""
    names = ("contacts", "proteins", "metrics", "status", "figure", "new-head", "report")
    outputs = {name: tmp_path / f"{name}.out" for name in names}
    flags = [str(word) for name, path in outputs.items() for word in (f"--{name}", path)]
    plm_contacts.run([*map(str, more), "--model", str(model), *flags, *FIXED])
    return outputs


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("contacts")
    files = resolve_model(str(DATA / "tiny_esm2_contacts.zip"), workdir=folder)
    return load_model(files, purpose="encoder", dtype="float32", device=torch.device("cpu"))


# ----------------------------------------------------------------------------------------------------------- structures


def atom(
    serial: int, name: str, residue: str, number: int, place: tuple[float, float, float], *, chain: str = "A",
    alternative: str = " ", inserted: str = " ", occupancy: float = 1.0, kind: str = "ATOM  ",
) -> str:
    x, y, z = place
    return (
        f"{kind}{serial:5d}  {name:<3s}{alternative}{residue} {chain}{number:4d}{inserted}   {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}  0.00           {name[0]}\n"
    )


def residue(number: int, name: str = "ALA", *, without: str = "", **more: Any) -> str:
    """N, CA and CB of a residue at x = 10 times its number, the C-beta at y = 1."""
    places = {"N": (10.0 * number - 1, 0.0, 0.0), "CA": (10.0 * number, 0.0, 0.0), "CB": (10.0 * number, 1.0, 0.0)}
    if name == "GLY":
        del places["CB"]
    return "".join(atom(1, kind, name, number, place, **more) for kind, place in places.items() if kind != without)


def read(tmp_path: Path, text: str, chain: str = "", name: str = "s.pdb") -> list[Chain | Unread]:
    (tmp_path / name).write_text(text)
    return list(read_structures([tmp_path / name], chain))


def one(tmp_path: Path, text: str, chain: str = "") -> Chain:
    (it,) = read(tmp_path, text, chain)
    assert isinstance(it, Chain), it
    return it


def test_the_c_beta_counts_and_the_c_alpha_of_glycine(tmp_path: Path) -> None:
    chain = one(tmp_path, residue(1) + residue(2, "GLY") + residue(3, "TRP") + "END\n")
    assert (chain.letters, chain.name, chain.id) == ("AGW", "A", "s")
    assert chain.places.tolist() == [[10, 1, 0], [20, 0, 0], [30, 1, 0]]


def test_missing_atoms_and_residues_are_unknown_not_far(tmp_path: Path) -> None:
    chain = one(tmp_path, residue(1) + residue(2, without="CB") + residue(5) + residue(6))
    assert chain.letters == "AAXXAA" and chain.resolved == 3
    assert np.isnan(chain.places[1:4]).all() and chain.places[4].tolist() == [50, 1, 0]
    assert chain.remarks == ("3 of 6 residues without a known place",)
    known = PlacedResidues(chain.places)
    rows, columns = np.array([0, 0, 0]), np.array([1, 4, 5])
    assert known.known(rows, columns).tolist() == [False, True, True]
    assert known.touch(rows, columns).tolist() == [False] * 3


def test_the_sequence_that_a_file_states_holds_residues_without_coordinates(tmp_path: Path) -> None:
    seqres = "SEQRES   1 A    7  MSE ALA GLY TRP LYS ALA SER\n"
    text = seqres + residue(12, "ALA") + residue(13, "GLY") + residue(15, "LYS") + residue(16, "ALA")
    chain = one(tmp_path, text)
    assert chain.letters == "MAGWKAS"
    assert np.flatnonzero(np.isfinite(chain.places[:, 0])).tolist() == [1, 2, 4, 5]
    wrong = one(tmp_path, "SEQRES   1 A    4  TRP TRP TRP TRP\n" + residue(1) + residue(2) + residue(3))
    assert wrong.letters == "AAA" and "do not fit the sequence" in wrong.remarks[0]


def test_insertion_codes_alternative_places_and_modified_residues(tmp_path: Path) -> None:
    text = residue(1) + residue(52) + residue(52, "SER", inserted="A") + residue(53, "MSE", kind="HETATM")
    chain = one(tmp_path, text)
    assert chain.letters.replace("X", "") == "AASM" and len(chain.letters) == 1 + 50 + 3
    both = (
        atom(1, "N", "LEU", 2, (0, 0, 0)) + atom(2, "CA", "LEU", 2, (1, 0, 0))
        + atom(3, "CB", "LEU", 2, (5, 0, 0), alternative="A", occupancy=0.3)
        + atom(4, "CB", "LEU", 2, (9, 0, 0), alternative="B", occupancy=0.7)
    )
    assert one(tmp_path, residue(1) + both + residue(3)).places[1].tolist() == [9, 0, 0]
    # two amino acids at one place: the one that is there more often
    mixed = residue(2, "VAL", alternative="A", occupancy=0.6) + residue(2, "THR", alternative="B", occupancy=0.4)
    assert one(tmp_path, residue(1) + mixed + residue(3)).letters == "AVA"
    assert [letter_of(name) for name in ("MSE", "SEP", "TRP", "ZZZ")] == ["M", "S", "W", "X"]


def test_water_ligands_and_nucleotides_are_no_residues(tmp_path: Path) -> None:
    dna = "".join(atom(1, "P", " DA", number, (number, 0, 0), chain="B") for number in range(1, 6))
    ligand = atom(9, "C1", "ATP", 90, (0, 0, 0), kind="HETATM") + atom(9, "O", "HOH", 91, (0, 0, 0), kind="HETATM")
    assert one(tmp_path, residue(1) + residue(2) + residue(3) + ligand + dna).letters == "AAA"
    (unread,) = read(tmp_path, dna)
    assert isinstance(unread, Unread) and unread.reason == "no chain is a protein"


def test_chains_are_chosen_and_said(tmp_path: Path) -> None:
    text = "".join(residue(number, name, chain=chain) for chain, name in (("H", "ALA"), ("L", "SER"))
                   for number in (1, 2, 3))
    first = one(tmp_path, text)
    assert first.letters == "AAA" and first.remarks == ("chain H of 2 protein chains (also L)",)
    assert one(tmp_path, text, "L").letters == "SSS"
    assert [(each.id, each.source) for each in read(tmp_path, text, "all")] == [("s_H", "s.pdb"), ("s_L", "s.pdb")]
    (unread,) = read(tmp_path, text, "Q")
    assert isinstance(unread, Unread) and unread.reason == "there is no protein chain Q (chains: H, L)"


def test_only_the_first_model_counts(tmp_path: Path) -> None:
    models = "".join(f"MODEL     {n}\n{residue(1)}{residue(2)}{residue(2 + n)}ENDMDL\n" for n in (1, 5))
    assert one(tmp_path, models).letters == "AAA"


def test_zips_gzipped_files_and_mmcif_give_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    plain = {chain.id: chain for chain in read_structures([DATA / "simulated_structures.zip"]) if
             isinstance(chain, Chain)}
    assert len(plain) == 12 and plain["SIMF06"].source.endswith("SIMF06.cif")
    assert plain["SIMF06"].resolved == len(plain["SIMF06"].letters) == 43
    (tmp_path / "SIMF01.pdb.gz").write_bytes(gzip.compress(texts["SIMF01.pdb"]))
    (again,) = read_structures([tmp_path / "SIMF01.pdb.gz"])
    assert isinstance(again, Chain) and again.id == "SIMF01" and again.letters == plain["SIMF01"].letters
    assert np.array_equal(again.places, plain["SIMF01"].places)


def scheme(rows: str) -> str:
    return (
        "loop_\n_pdbx_poly_seq_scheme.asym_id\n_pdbx_poly_seq_scheme.seq_id\n_pdbx_poly_seq_scheme.mon_id\n"
        f"_pdbx_poly_seq_scheme.pdb_strand_id\n{rows}#\n"
    )


def test_the_scheme_of_an_mmcif_file_states_what_is_not_resolved(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as archive:
        text = archive.read("SIMF06.cif").decode()
    whole = {chain.id: chain for chain in read_structures([DATA / "simulated_structures.zip"])}["SIMF06"]
    assert isinstance(whole, Chain)
    names = {line.split()[8]: line.split()[5] for line in text.splitlines() if line.startswith("ATOM")}
    rows = "".join(f"A {at} {name} A\n" for at, name in enumerate(["MET", *names.values(), "TRP"], start=1))
    longer = one_cif(tmp_path, text + scheme(rows))
    assert longer.letters == f"M{whole.letters}W" and longer.resolved == 43
    assert np.array_equal(longer.places[1:-1], whole.places)


def test_places_in_a_sequence_are_those_that_the_file_gives(tmp_path: Path) -> None:
    """A residue beside a gap has its letter on both sides, and repeats fit in many places: numbers decide."""
    names = ["LYS", "GLN", "ALA", "GLU", "SER", "GLN", "PRO", "LYS"]
    seqres = f"SEQRES   1 A    8  {' '.join(names)}\n"
    kept = [(1, "LYS"), (2, "GLN"), (7, "PRO"), (8, "LYS")]
    gap = one(tmp_path, seqres + "".join(residue(number, name) for number, name in kept))
    assert np.flatnonzero(np.isfinite(gap.places[:, 0])).tolist() == [0, 1, 6, 7]
    other = one(tmp_path, seqres + "".join(residue(n, name) for n, name in [(1, "LYS"), (6, "GLN"), *kept[2:]]))
    assert np.flatnonzero(np.isfinite(other.places[:, 0])).tolist() == [0, 5, 6, 7]
    repeats = "SEQRES   1 A   12  " + " ".join(["ALA", "SER", "LYS"] * 4) + "\n"
    third = one(tmp_path, repeats + residue(7, "ALA") + residue(8, "SER") + residue(9, "LYS"))
    assert np.flatnonzero(np.isfinite(third.places[:, 0])).tolist() == [6, 7, 8]
    # numbers that jump back say nothing of the sequence's gaps: the alignment does
    odd = one(tmp_path, seqres + residue(1, "LYS") + residue(902, "GLN") + residue(903, "ALA") + residue(7, "PRO"))
    assert odd.letters == "KQAESQPK" and odd.resolved == 4 and np.isfinite(odd.places[[0, 1, 2, 6], 0]).all()


def test_an_mmcif_file_without_a_scheme_numbers_its_residues(tmp_path: Path) -> None:
    """The authors' numbers may jump where the sequence goes on (a fused domain), as 6WQA's do: the file's own count."""
    columns = ("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id",
               "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv",
               "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num")
    rows = [
        f"ATOM {at} C {atom} . ALA A {place} ? {10 * place} {at % 3} 0 1.0 0.0 {number} A 1\n"
        for at, (place, number, atom) in enumerate(
            (place, number, atom) for place, number in ((1, 210), (2, 211), (3, 1001), (6, 1004), (7, 212))
            for atom in ("N", "CA", "CB")
        )
    ]
    head = "data_s\nloop_\n" + "".join(f"_atom_site.{name}\n" for name in columns)
    chain = one_cif(tmp_path, head + "".join(rows) + "#\n")
    assert chain.letters == "AAAXXAA" and chain.places[[0, 2, 5, 6], 0].tolist() == [10, 30, 60, 70]


def one_cif(tmp_path: Path, text: str) -> Chain:
    (it,) = read(tmp_path, text, name="s.cif")
    assert isinstance(it, Chain), it
    return it


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "data_x\nloop_\n_atom_site.id\n1 2\n", "ATOM      1  CA\n", "\0\0\0"]
)
def test_what_is_no_structure_is_listed_with_its_reason(tmp_path: Path, text: str) -> None:
    (it,) = read(tmp_path, text)
    assert isinstance(it, Unread) and it.reason


def test_a_zip_without_structures_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(UserError, match=r"The zip holds no structures"):
        list(read_structures([tmp_path / "z.zip"]))
    with pytest.raises(UserError, match=r"does not exist"):
        list(read_structures([tmp_path / "no.pdb"]))


def test_a_gzipped_bomb_is_no_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plm.jobs.contacts import structures

    monkeypatch.setattr(structures, "MOST_BYTES", 10_000)
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress(b"REMARK\n" * 10_000))
    (it,) = read_structures([tmp_path / "b.pdb.gz"])
    assert isinstance(it, Unread) and "becomes more than" in it.reason
    (tmp_path / "b.pdb").write_bytes(b"REMARK\n" * 10_000)
    (it,) = read_structures([tmp_path / "b.pdb"])
    assert isinstance(it, Unread) and "at most" in it.reason


def test_a_chain_is_laid_on_its_sequence() -> None:
    lined = align("MKTAYIAKQRQISFVKS", "TAYIVKSFVKS")
    assert lined.positions.tolist() == [2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16]
    assert lined.differences == ("A7V",) and lined.identity == pytest.approx(10 / 11)
    assert align("ACDEFGHIKL", "WWWWWWW").identity < 0.5


# ------------------------------------------------------------------------------------------------------------ precision


def counted(scores: np.ndarray, truth: np.ndarray, known: np.ndarray, least: int, part: int) -> float:
    """Precision of a square map, counted pair by pair."""
    length = len(scores)
    pairs = [(-scores[i, j], i, j) for i in range(length) for j in range(i + least, length) if known[i, j]]
    best = sorted(pairs)[: max(1, length // part)]
    return sum(bool(truth[i, j]) for _, i, j in best) / len(best) if best else float("nan")


@pytest.mark.parametrize("seed", range(6))
def test_precisions_are_those_of_an_independent_count(seed: int) -> None:
    generator = np.random.default_rng(seed)
    length = int(generator.integers(30, 90))
    places = generator.normal(0, 6, (length, 3))
    places[generator.random(length) < 0.1] = np.nan
    scores = generator.random((length, length))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    known = np.isfinite(distance)
    rows, columns = pairs_of(length, length)
    contacts = PlacedResidues(places)
    usable = contacts.known(rows, columns)
    rows, columns = rows[usable], columns[usable]
    mine = precisions(scores[rows, columns], contacts.touch(rows, columns), columns - rows, length)
    parts = {"L": 1, "L/2": 2, "L/5": 5}
    for at, (least, top) in enumerate(CELLS):
        with np.errstate(invalid="ignore"):
            assert mine[at] == pytest.approx(counted(scores, distance < 8, known, least, parts[top])), (least, top)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_equal_scores_are_taken_in_every_order(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    scores, truth = generator.integers(0, 3, 12).astype(float), generator.random(12) < 0.5
    means = []
    for _ in range(400):
        order = generator.permutation(12)
        best = order[np.argsort(-scores[order], kind="stable")[:count]]
        means.append(truth[best].mean())
    assert precision_at(scores, truth, count) == pytest.approx(np.mean(means), abs=0.09)


def test_pairs_that_were_not_seen_come_last_and_no_pairs_are_no_number() -> None:
    scores, truth = np.array([np.nan, 0.1, 0.2]), np.array([True, False, True])
    assert precision_at(scores, truth, 2) == 0.5 and precision_at(scores, truth, 9) == pytest.approx(2 / 3)
    assert np.isnan(precision_at(scores[:0], truth[:0], 3))


def test_random_pairs_have_the_precision_of_chance() -> None:
    touches = np.arange(200) < 30
    assert precision_at(np.zeros(200), touches, 17) == pytest.approx(0.15)


def test_intervals_draw_families_and_are_left_out_for_few() -> None:
    values = np.linspace(0, 1, 12)[:, None].repeat(9, 1)
    few = summarise("m", values, ["a"] * 6 + ["b"] * 6, resamples=100, seed=1)
    assert few.groups == 2 and np.isnan(few.low).all() and few.mean[0] == pytest.approx(0.5)
    many = summarise("m", values, [str(at) for at in range(12)], resamples=500, seed=1)
    assert 0.2 < many.low[0] < 0.45 < 0.55 < many.high[0] < 0.8
    wide = summarise("m", values, [str(at // 4) for at in range(12)] + [], resamples=500, seed=1)
    assert np.isnan(wide.low).all()


# ---------------------------------------------------------------------------------------------------- windows and heads


@given(st.integers(20, 200), st.integers(16, 80))
def test_windows_answer_each_pair_once_and_unseen_ones_are_counted(length: int, whole: int) -> None:
    windows = windows_of(length, whole)
    filler = BandFiller(length, windows)
    for window in windows:
        index = np.arange(window.start, window.end, dtype=np.float32)
        filler.add(window, {"x": index[:, None] * 1000 + index[None]})
    band = filler.bands["x"]
    rows, columns = pairs_of(length, length)
    inside = columns - rows < band.shape[1]
    seen = np.zeros(len(rows), bool)
    seen[inside] = np.isfinite(band[rows[inside], (columns - rows)[inside]])
    assert np.array_equal(band[rows[seen], (columns - rows)[seen]], rows[seen] * 1000 + columns[seen])
    together = np.array([
        any(w.start <= i and j < w.end for w in windows) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
    ])
    assert np.array_equal(seen, together) and unseen_pairs(length, windows) == int((~together).sum())


def test_a_pair_is_answered_where_it_lies_farthest_from_a_cut() -> None:
    filler = BandFiller(20, [SequenceWindow(0, 14), SequenceWindow(6, 20)])
    filler.add(SequenceWindow(0, 14), {"x": np.zeros((14, 14), np.float32)})
    filler.add(SequenceWindow(6, 20), {"x": np.ones((14, 14), np.float32)})
    assert filler.bands["x"][6, 6] == 0  # at the beginning of the second window
    assert filler.bands["x"][7, 6] == 1  # at the end of the first


def test_the_published_regression_is_that_of_embed(loaded: LoadedModel) -> None:
    head = published_regression(loaded)
    assert head is not None
    sequence = "MKTAYIAKQRQISFVKSHFSRQ"
    mine = window_maps(loaded, sequence, {"x": head})["x"]
    np.testing.assert_allclose(mine, encoder.contacts(loaded, sequence).numpy(), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
def test_attention_maps_are_those_of_transformers(family: Any, tmp_path: Path) -> None:
    folder = DATA / "models" / f"tiny_{ {'prott5': 't5'}.get(family.name, family.name) }"
    files = resolve_model(str(folder), workdir=tmp_path)
    loaded = load_model(files, purpose="encoder", dtype="float32", device=torch.device("cpu"))
    sequence = "MKTAYIAKQRQISFVKSHFSRQ"
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        states = encoder.attention_maps(loaded, sequence, lambda _, maps: seen.append(maps.clone()))
    assert len(seen) == loaded.layers and states.shape == (len(sequence), loaded.hidden_size)
    import transformers

    plain = getattr(transformers, family.encoder_class).from_pretrained(
        files.directory, attn_implementation="eager", **family.encoder_options
    ).eval()
    ids = torch.tensor([loaded.token_ids(sequence)])
    with torch.inference_mode():
        attended = plain(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
    first = len(family.before)
    for mine, theirs in zip(seen, attended, strict=True):
        maps = theirs[0, :, first : first + len(sequence), first : first + len(sequence)].double().numpy()
        maps = maps + maps.transpose(0, 2, 1)
        for head, one_map in enumerate(maps):
            product = np.outer(one_map.sum(1), one_map.sum(0)) / one_map.sum()
            np.testing.assert_allclose(mine[head].numpy(), one_map - product, rtol=2e-4, atol=2e-5)


def test_the_pair_head_is_symmetric_and_rows_equal_the_whole() -> None:
    torch.manual_seed(1)
    head, states = PairNetwork(12).eval(), torch.randn(90, 12)
    with torch.inference_mode():
        square = head.square(states)
        assert torch.allclose(square, square.T, atol=1e-6)
        i, j = torch.tensor([3, 80]), torch.tensor([70, 4])
        assert torch.allclose(head(head.projected(states), i, j), square[i, j], atol=1e-6)


def test_windows_of_a_long_protein_agree_with_the_reader_of_the_whole(loaded: LoadedModel) -> None:
    head = published_regression(loaded)
    assert head is not None
    sequence = "".join(np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), 150))
    room = capacity(loaded)
    whole, cut = ContactReader(loaded, room, LOG), ContactReader(loaded, room, LOG, 64)
    first, second = (next(iter(reader.bands([sequence], {"x": head})))["x"] for reader in (whole, cut))
    assert first.shape == (150, 150) and second.shape == (150, 64)
    seen = np.isfinite(second)
    assert np.corrcoef(first[:, :64][seen], second[seen])[0, 1] > 0.5
    small = Capacity(1000, room.token, room.pair)
    with pytest.raises(UserError, match=r"do not fit the memory"):
        ContactReader(loaded, small, LOG)


def test_a_memory_that_runs_out_halves_the_window_and_loses_nothing(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = published_regression(loaded)
    assert head is not None
    reader = ContactReader(loaded, capacity(loaded), LOG)
    from plm.jobs.contacts import reading

    real = reading.window_maps

    def full(model: LoadedModel, letters: str, heads: Any) -> Any:
        if len(letters) > 100:
            raise MemoryError
        return real(model, letters, heads)

    monkeypatch.setattr(reading, "window_maps", full)
    sequences = ["MKTAYIAKQR" * 3, "MKTAYIAKQR" * 15, "ACDEFGHIKL" * 3]
    bands = [each["x"] for each in reader.bands(sequences, {"x": head})]
    assert [len(band) for band in bands] == [30, 150, 30] and reader.whole == 75
    assert bands[1].shape[1] == 75


def test_a_sample_of_pairs_keeps_contacts_and_stands_for_all() -> None:
    known = ListedPairs.of(120, [(i, i + 10) for i in range(0, 100, 2)])
    rows, _, touches, weights = chosen_pairs(120, known, 400, np.random.default_rng(1))
    every = 114 * 115 // 2
    assert len(rows) == 400 and touches.sum() == 50
    assert weights[touches].tolist() == [1.0] * 50 and weights.sum() == pytest.approx(every)


def test_baselines_learn_how_far_contacts_are_and_which_residues_touch() -> None:
    generator = np.random.default_rng(2)
    rows, columns = pairs_of(100, 100)
    separation = columns - rows
    codes = residue_codes("".join(generator.choice(list("CA"), 100)))
    kinds = np.stack([codes[rows], codes[columns]], axis=1)
    cysteines = (kinds == "ACDEFGHIKLMNPQRSTVWY".index("C")).all(1)
    touches = (separation < 12) & cysteines
    learned = ContactBaselines([separation], [touches], [kinds])
    near, far = np.array([8]), np.array([60])
    one_kind = np.array([[1, 1]])
    assert learned.score(BASELINES[1], near, one_kind) > 5 * learned.score(BASELINES[1], far, one_kind)
    assert learned.score(BASELINES[2], near, one_kind) > learned.score(BASELINES[2], near, np.array([[0, 1]])) + 1
    assert learned.score(BASELINES[0], near, one_kind) == 0


# ---------------------------------------------------------------------------------------------------------- whole stage


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fitted")
    return made(
        folder, "--structures", DATA / "simulated_structures.zip", "--methods", "regression,published,pair",
        model=DATA / "tiny_esm2_contacts.zip",
    )


def test_every_record_and_metric_is_there(fitted: dict[str, Path]) -> None:
    status, proteins, metrics = (rows_of(fitted[name]) for name in ("status", "proteins", "metrics"))
    assert [row["id"] for row in status] == [f"SIMF{number:02d}" for number in range(1, 13)]
    assert sorted({row["part"] for row in status}) == ["test", "train", "valid"]
    assert len(proteins) == 12 * 6 and len(metrics) == 2 * 6 * 9
    chosen = {row["method"] for row in metrics if row["chosen"] == "yes"}
    assert len(chosen) == 1
    (method,) = chosen
    valid = {row["method"]: float(row["precision"]) for row in metrics
             if row["part"] == "valid" and (row["separation"], row["top"]) == ("6", "L") and row["kind"] == "head"}
    assert valid[method] == max(valid.values())
    test = [row for row in proteins if row["part"] == "test" and row["method"] == method]
    mean = np.mean([float(row["precision_L5_12"]) for row in test])
    told = next(row for row in metrics if (row["part"], row["method"], row["separation"], row["top"]) ==
                ("test", method, "12", "L/5"))
    assert float(told["precision"]) == pytest.approx(mean, abs=1e-3)
    for name in ("contacts", "status", "proteins", "metrics"):
        table = recognise(fitted[name].read_text().splitlines()[0].split("\t"))
        assert table is not None and table.tool == "plm_contacts", name


def test_listed_pairs_are_the_likeliest_and_judged_by_their_distance(fitted: dict[str, Path]) -> None:
    contacts = rows_of(fitted["contacts"])
    lengths = {row["id"]: int(row["length"]) for row in rows_of(fitted["status"])}
    for name, length in lengths.items():
        mine = [row for row in contacts if row["id"] == name]
        probabilities = [float(row["probability"]) for row in mine]
        assert len(mine) == length and probabilities == sorted(probabilities, reverse=True)
        assert all(int(row["j"]) - int(row["i"]) == int(row["separation"]) >= 6 for row in mine)
        assert all((row["verdict"] == "right") == (float(row["distance"]) < 8) for row in mine)


def test_the_report_names_everything_and_fits(fitted: dict[str, Path]) -> None:
    text = fitted["report"].read_text()
    assert text.startswith("**Of the likeliest L/5 pairs at least 12 residues apart ")
    assert len(text.encode()) < 10_240 and "[shortened here" not in text
    for piece in ("at least 24 apart (long range, CASP)", "| random pairs |", "No intervals: fewer than ten families"):
        assert piece in text


def test_the_head_answers_the_same_without_structures(fitted: dict[str, Path], tmp_path: Path) -> None:
    names = {row["id"]: row["part"] for row in rows_of(fitted["status"])}
    chains = {each.id: each for each in read_structures([DATA / "simulated_structures.zip"]) if isinstance(each, Chain)}
    fasta = tmp_path / "p.fasta"
    fasta.write_text("".join(f">{name}\n{chains[name].letters}\n" for name in names))
    model = DATA / "tiny_esm2_contacts.zip"
    again = made(tmp_path, "--input", fasta, "--head", fitted["new-head"], model=model)
    keys = ("id", "i", "j", "probability")
    before, now = ([[row[key] for key in keys] for row in rows_of(each["contacts"])] for each in (fitted, again))
    assert before == now
    assert again["new-head"].read_bytes() == fitted["new-head"].read_bytes()
    assert "no known contacts judge them" in again["report"].read_text()
    structures = DATA / "simulated_structures.zip"
    judged = made(tmp_path, "--structures", structures, "--head", fitted["new-head"], model=model)
    parts = {row["id"]: row["part"] for row in rows_of(judged["status"])}
    assert all((part == "test") == (parts[name] == "test") for name, part in names.items())
    assert set(parts.values()) == {"test", "seen in training"}
    with pytest.raises(UserError, match=r"was fitted on another model"):
        made(tmp_path, "--input", fasta, "--head", fitted["new-head"])


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    outputs: list[dict[str, bytes]] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run = made(tmp_path / name, "--structures", DATA / "simulated_structures.zip", "--methods", "regression,pair")
        outputs.append({key: path.read_bytes() for key, path in run.items()})
    assert outputs[0] == outputs[1]


def test_a_table_of_contacts_serves_as_structures_do(tmp_path: Path) -> None:
    run = made(
        tmp_path, "--input", DATA / "simulated_folds.fasta", "--pairs", DATA / "simulated_contacts.tabular",
        "--methods", "regression", "--train-proteins", "2",
    )
    status = {row["id"]: row for row in rows_of(run["status"])}
    assert status["SIMF12"]["part"] == "" and status["SIMF01"]["structure"] == "simulated_contacts.tabular"
    contacts = rows_of(run["contacts"])
    listed = {tuple(line.split("\t")) for line in (DATA / "simulated_contacts.tabular").read_text().splitlines()[1:]}
    for row in contacts:
        if row["id"] == "SIMF12":
            assert row["verdict"] == "unknown"
        else:
            assert (row["verdict"] == "right") == ((row["id"], row["i"], row["j"]) in listed)
    truth = {chain.id: PlacedResidues(chain.places) for chain in read_structures([DATA / "simulated_structures.zip"])
             if isinstance(chain, Chain)}
    proteins = [row for row in rows_of(run["proteins"]) if row["method"] == "random pairs"]
    for row in proteins:
        rows, columns = pairs_of(int(row["length"]), int(row["length"]))
        assert int(row["contacts_6"]) == truth[row["id"]].touch(rows, columns).sum()


def test_structures_are_laid_on_given_sequences(tmp_path: Path) -> None:
    chains = {each.id: each for each in read_structures([DATA / "simulated_structures.zip"]) if isinstance(each, Chain)}
    sequences = {name: chain.letters for name, chain in chains.items()}
    sequences["SIMF01"] = f"MHHHHHH{sequences['SIMF01']}"
    sequences["SIMF02"] = sequences["SIMF02"][:9] + "W" + sequences["SIMF02"][10:]
    sequences["SIMF03"] = "".join(np.random.default_rng(1).permutation(list(sequences["SIMF03"])))
    del sequences["SIMF04"]
    sequences["other"] = "MKTAYIAKQRQISFVKSHFSRQ"
    fasta = tmp_path / "p.fasta"
    fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in sequences.items()))
    run = made(tmp_path, "--input", fasta, "--structures", DATA / "simulated_structures.zip", "--methods", "regression")
    status = {row["id"]: row for row in rows_of(run["status"])}
    assert status["SIMF01"]["length"] == "51" and status["SIMF01"]["part"]
    assert f"differs from the sequence: W10{chains['SIMF02'].letters[9]}" in status["SIMF02"]["details"]
    assert "contacts unknown: only" in status["SIMF03"]["details"] and not status["SIMF03"]["part"]
    assert status["SIMF04"]["status"] == "rejected" and status["SIMF04"]["details"] == "no protein has this name"
    assert status["other"]["structure"] == "" and status["other"]["status"] == "predicted"
    proteins = {row["id"]: row for row in rows_of(run["proteins"])}
    assert proteins["SIMF01"]["resolved"] == "44"


def test_long_proteins_go_in_windows_and_what_is_not_seen_is_said(fitted: dict[str, Path], tmp_path: Path) -> None:
    fasta = tmp_path / "p.fasta"
    letters = "".join(np.random.default_rng(4).choice(list("ACDEFGHIKLMNPQRSTVWY"), 300))
    fasta.write_text(f">long\n{letters}\n>short\n{letters[:40]}\n>bad\n123\n")
    run = made(
        tmp_path, "--input", fasta, "--window", "64", "--head", fitted["new-head"],
        model=DATA / "tiny_esm2_contacts.zip",
    )
    status = {row["id"]: row for row in rows_of(run["status"])}
    windows = windows_of(300, 64)
    assert status["long"]["windows"] == str(len(windows)) and int(status["long"]["unseen_pairs"]) > 0
    assert status["long"]["unseen_pairs"] == str(unseen_pairs(300, windows))
    assert "pairs that no window holds together have no answer" in status["long"]["details"]
    assert status["short"]["unseen_pairs"] == "0" and status["bad"]["status"] == "rejected"
    assert sum(row["id"] == "long" for row in rows_of(run["contacts"])) == 300
    assert "went in overlapping windows of 64 residues" in run["report"].read_text()


def parts_table(path: Path, **parts: str) -> Path:
    path.write_text("id\tsplit\n" + "".join(f"{name}\t{part}\n" for name, part in parts.items()))
    return path


def test_a_table_of_parts_is_followed_and_its_leaks_are_said(tmp_path: Path) -> None:
    given_parts = {f"SIMF{n:02d}": part for n, part in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 4, start=1)}
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as archive:
        text = archive.read("SIMF01.pdb")
    (tmp_path / "copy.pdb").write_bytes(text)
    table = parts_table(tmp_path / "parts.tsv", **given_parts, copy="test")
    run = made(
        tmp_path, "--structures", DATA / "simulated_structures.zip", tmp_path / "copy.pdb", "--parts", table,
        "--methods", "regression", "--train-proteins", "3",
    )
    status = {row["id"]: row for row in rows_of(run["status"])}
    assert [status[name]["part"] for name in given_parts].count("train") == 3
    assert [status[name]["part"] for name in given_parts].count("train, not used") == 1
    assert status["copy"]["duplicate_of"] == "SIMF01" and status["copy"]["part"] == "test"
    assert "the table of parts does not name it" in status["SIMF12"]["details"]
    assert "1 test protein has relatives among those that trained or chose" in run["report"].read_text()
    with pytest.raises(UserError, match=r"'prove' is no part"):
        made(tmp_path, "--structures", DATA / "simulated_structures.zip", "--parts",
             parts_table(tmp_path / "bad.tsv", SIMF01="prove"))
    with pytest.raises(UserError, match=r"No protein with known contacts is in the part test"):
        made(tmp_path, "--structures", DATA / "simulated_structures.zip", "--parts",
             parts_table(tmp_path / "bad.tsv", SIMF01="train", SIMF02="valid"))


def test_relatives_never_train_and_judge(tmp_path: Path) -> None:
    structures = tmp_path / "s.zip"
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as source, zipfile.ZipFile(structures, "w") as target:
        for name in source.namelist():
            for copy in ("a", "b"):
                target.writestr(f"{copy}{name}", source.read(name))
    run = made(tmp_path, "--structures", structures, "--methods", "regression")
    parts = {row["id"]: row["part"] for row in rows_of(run["status"])}
    assert all(parts[f"aSIMF{n:02d}"].split(",")[0] == parts[f"bSIMF{n:02d}"].split(",")[0] for n in range(1, 13))
    assert "8 proteins from 4 families" in run["report"].read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There are no proteins"),
        (["--input", "IN/simulated_folds.fasta"], "Nothing says how this model's attention tells of contacts"),
        (["--structures", "IN/simulated_structures.zip", "--pairs", "IN/simulated_contacts.tabular"], "not from both"),
        (["--structures", "IN/simulated_folds.fasta"], "None of 1 structure can be read"),
        (["--structures", "IN/simulated_structures.zip", "--methods", "published"], "Nothing says how"),
        (["--input", "IN/simulated_query.fasta", "--pairs", "IN/simulated_contacts.tabular"], "belongs to a protein"),
        (["--input", "IN/simulated_query.fasta", "--structures", "IN/simulated_structures.zip"],
         "No structure belongs to a protein"),
        (["--input", "IN/simulated_folds.fasta", "--pairs", "IN/simulated_folds.fasta"], "table of contacts needs the"),
        (["--input", "IN/simulated_folds.fasta", "--head", "IN/bundle_tiny_site.zip"], "not a head for contacts"),
        (["--input", "IN/simulated_folds.fasta", "--head", "IN/simulated_structures.zip"], "which no bundle may hold"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    flags = [word.replace("IN", str(DATA)) for word in words]
    with pytest.raises(UserError, match=said) as caught:
        plm_contacts.run([*flags, "--model", str(DATA / "models" / "tiny_esm2"), "--contacts", str(tmp_path / "c"),
                          *FIXED])
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [("SIMF01\t0\t9", r"'0' is no residue of its protein of 44"), ("SIMF01\t1\t45", "'45' is no residue"),
     ("SIMF01\tx\t9", "'x' is no residue")],
)
def test_a_wrong_position_names_its_line(row: str, said: str, tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text(f"id\ti\tj\nSIMF01\t1\t9\n{row}\n")
    with pytest.raises(UserError, match=said) as caught:
        made(tmp_path, "--input", DATA / "simulated_folds.fasta", "--pairs", table)
    assert "pairs.tsv, line 3" in str(caught.value)


def test_distances_in_the_table_decide(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = [f"{name}\t{i}\t{i + 9}\t{7.9 if i % 2 else 8.0}" for name in ("SIMF01", "SIMF02", "SIMF03", "SIMF04")
            for i in range(1, 20)]
    table.write_text("id\ti\tj\tdistance\n" + "\n".join(rows) + "\n")
    run = made(
        tmp_path, "--input", DATA / "simulated_folds.fasta", "--pairs", table, "--methods", "regression",
    )
    assert {row["contacts_6"] for row in rows_of(run["proteins"])} == {"10"}


def test_few_families_leave_the_models_own_regression_to_judge(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as archive:
        for name in ("SIMF01.pdb", "SIMF02.pdb"):
            (tmp_path / name).write_bytes(archive.read(name))
    structures = ("--structures", tmp_path / "SIMF01.pdb", tmp_path / "SIMF02.pdb")
    run = made(tmp_path, *structures, model=DATA / "tiny_esm2_contacts.zip")
    assert {row["part"] for row in rows_of(run["status"])} == {"test"}
    assert "Nothing was fitted: the model's own contact regression answers" in run["report"].read_text()
    with pytest.raises(UserError, match=r"only 2 families of proteins with known contacts"):
        made(tmp_path, *structures)


def test_a_damaged_head_is_refused(fitted: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "head.zip"
    with zipfile.ZipFile(fitted["new-head"]) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                content = json.loads(data)
                content["method"] = "regression" if content["method"] == "pair" else "pair"
                data = json.dumps(content).encode()
            target.writestr(name, data)
    with pytest.raises(UserError, match=r"does not fit its description"):
        made(tmp_path, "--input", DATA / "simulated_folds.fasta", "--head", bad, model=DATA / "tiny_esm2_contacts.zip")


@pytest.mark.slow
def test_a_planted_signal_is_learned(loaded: LoadedModel, tmp_path: Path) -> None:
    """Contacts that are what one attention head attends to are found again by the regression."""
    generator = np.random.default_rng(8)
    sequences = {f"p{n}": "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)) for n in range(14)}
    rows, columns = pairs_of(60, 60)
    lines = ["id\ti\tj"]
    for name, letters in sequences.items():
        seen: list[torch.Tensor] = []
        with torch.inference_mode():
            encoder.attention_maps(loaded, letters, lambda layer, maps, seen=seen: seen.append(maps[0].clone()))
        values = seen[0][rows, columns].numpy()
        lines += [f"{name}\t{rows[at] + 1}\t{columns[at] + 1}" for at in np.argsort(-values)[:60]]
    (tmp_path / "p.fasta").write_text("".join(f">{name}\n{letters}\n" for name, letters in sequences.items()))
    (tmp_path / "pairs.tsv").write_text("\n".join([*lines, ""]))
    run = made(
        tmp_path, "--input", tmp_path / "p.fasta", "--pairs", tmp_path / "pairs.tsv", "--methods", "regression",
        "--penalty", "0.01", model=DATA / "tiny_esm2_contacts.zip",
    )
    found_again = [float(row["precision_L_6"]) for row in rows_of(run["proteins"])
                   if row["part"] == "test" and row["method"] == "regression on attention maps"]
    chance = [float(row["precision_L_6"]) for row in rows_of(run["proteins"])
              if row["part"] == "test" and row["method"] == "random pairs"]
    assert np.mean(found_again) > 0.5 > 5 * np.mean(chance)


@pytest.mark.realdata
@pytest.mark.slow
def test_models_of_alphafold_are_read_and_judged(shared_data: Path, starter: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "structures").glob("*.pdb"))
    chains = list(read_structures(files))
    assert [len(each.letters) for each in chains if isinstance(each, Chain)] == [57, 62, 55, 56]
    assert all(isinstance(each, Chain) and each.resolved == len(each.letters) for each in chains)
    run = made(tmp_path, "--structures", *files, "--methods", "regression,pair", model=starter)
    status = {row["id"]: row for row in rows_of(run["status"])}
    assert "no known contact" in status["AF-P19407-F1"]["details"]
    assert sorted(row["part"] for row in status.values()) == ["", "test", "train", "valid"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_headline_is_tapes_measure() -> None:
    assert CELLS[contact_job.HEADLINE] == (12, "L/5")


@pytest.mark.slow
def test_bundled_structures_are_what_the_script_makes(tmp_path: Path) -> None:
    script = DATA.parent / "scripts" / "fixtures" / "make_test_structures"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    names = ("simulated_structures.zip", "simulated_contacts.tabular", "simulated_folds.fasta")
    assert all((tmp_path / name).read_bytes() == (DATA / name).read_bytes() for name in names)
    with zipfile.ZipFile(tmp_path / "contact_head_tiny_esm2.zip") as archive:
        assert sorted(archive.namelist()) == ["README.md", "head.safetensors", "manifest.json"]


def test_the_pair_head_that_is_kept_is_that_of_the_best_epoch(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = [each for each in read_structures([DATA / "simulated_structures.zip"]) if isinstance(each, Chain)]
    reader = ContactReader(loaded, capacity(loaded), LOG)
    train, valid = (
        fitting.gather(reader, [one.letters for one in some], [PlacedResidues(one.places) for one in some], 10**9, 1)
        for some in (chains[:4], chains[4:6])
    )
    monkeypatch.setattr(fitting, "_RATE", 0.05)  # so fast that it soon gets worse
    with caplog.at_level("INFO"):
        head, best = fitting.fit_pair_head(reader, train, valid, 1, LOG)
    told = float(caplog.text.rpartition("(loss ")[2].partition(")")[0])
    total, count = 0.0, 0.0
    with torch.inference_mode():
        for protein in valid:
            for window in protein.windows:
                everything = np.arange(len(window.numbers))
                loss, pairs = fitting._loss(head, window, protein, everything, torch.device("cpu"))
                total, count = total + float(loss), count + pairs
    assert total / count == pytest.approx(told, abs=2e-4) and 1 <= best < 40
