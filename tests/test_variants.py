"""plm_variants: scores of a plain transformers loop, every row accounted for, coordinates, baselines by hand."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plm_variants
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plm import stage
from plm.data.fasta import STANDARD_RESIDUES, read_fasta
from plm.data.own_tables import recognise
from plm.data.protein_store import store_proteins
from plm.errors import UserError
from plm.jobs.variants.agreement import agreement
from plm.jobs.variants.baselines import Baselines, background, blosum62, read_alignment
from plm.jobs.variants.figure import MOST_DRAWN, Drawn, proteins_figure
from plm.jobs.variants.marginals import METHODS, EffectScores, SequencePlan, WantedEffects, window_around
from plm.jobs.variants.notation import Substitution, parse
from plm.jobs.variants.questions import MarginalQuestion, MaskedReader
from plm.jobs.variants.report import kind_of
from plm.jobs.variants.tables import added_columns
from plm.model.capacity import capacity
from plm.model.checkpoint import load_model, resolve_model

Rows = list[dict[str, str]]
FIXED = ("--device", "cpu", "--precision", "fp32")
LETTERS = STANDARD_RESIDUES


@pytest.fixture(scope="module")
def query(root: Path) -> Path:
    return root / "test-data" / "simulated_query.fasta"


@pytest.fixture(scope="module")
def vcf_like(root: Path) -> Path:
    return root / "test-data" / "simulated_substitutions.tabular"


def rows_of(path: Path) -> Rows:
    with path.open() as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def scored(input_: Path, tmp_path: Path, model: Path, *more: str | Path) -> Rows:
    made = tmp_path / "scores.tsv"
    plm_variants.run(["--input", str(input_), "--model", str(model), "--scores", str(made), *FIXED, *map(str, more)])
    return rows_of(made)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def fasta(path: Path, **proteins: str) -> Path:
    return written(path, "".join(f">{name}\n{sequence}\n" for name, sequence in proteins.items()))


# --------------------------------------------------------------------------------------------------- an outsider's loop


class PlainLoop:
    """The definitions, through transformers as it is."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM

        tokens = (folder / "vocab.txt").read_text().split()
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()

    def each(self, letters: str, hidden: list[set[int]]) -> np.ndarray:
        """(copies, L, 20) among the twenty amino acids, of copies of a sequence with some residues masked."""
        rows = []
        for places in hidden:
            middle = [self.ids["<mask>"] if place in places else self.ids[x] for place, x in enumerate(letters)]
            rows.append([self.ids["<cls>"], *middle, self.ids["<eos>"]])
        ids = torch.tensor(rows)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 1:-1]
        chosen = logits[:, :, [self.ids[letter] for letter in LETTERS]].double()
        return np.asarray(chosen.log_softmax(-1).numpy())

    def log_probabilities(self, letters: str, hidden: set[int]) -> np.ndarray:
        """(L, 20) of one sequence with some residues masked."""
        return np.asarray(self.each(letters, [hidden])[0])

    def likelihood(self, letters: str) -> float:
        """Sum over the residues, each masked in turn."""
        places = [place for place, letter in enumerate(letters) if letter in LETTERS]
        values = self.each(letters, [{place} for place in places])
        return sum(
            float(values[row, place, LETTERS.index(letters[place])]) for row, place in enumerate(places)
        )

    def effect(self, letters: str, substitutions: list[tuple[str, int, str]], method: str) -> float:
        """Of substitutions (wild type, 0-based place, mutant)."""
        places = {place for _, place, _ in substitutions}
        if method == "pseudo-likelihood":
            mutant = list(letters)
            for _, place, letter in substitutions:
                mutant[place] = letter
            return self.likelihood("".join(mutant)) - self.likelihood(letters)
        values = self.log_probabilities(letters, places if method == "masked-marginal" else set())
        return sum(
            float(values[place, LETTERS.index(new)] - values[place, LETTERS.index(old)])
            for old, place, new in substitutions
        )


@pytest.fixture(scope="module")
def loop(tiny_esm2: Path) -> PlainLoop:
    return PlainLoop(tiny_esm2)


CASES = ["A3V", "W20Y", "A3V;K10R", "Q11E;W20A;M1L", "P40G"]
PROTEIN = "MKAYIAKQRKQISFVKSHFWRQLEXRLGLIEVQAPILSRPGDGTQ"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [0, 20])
def test_scores_are_those_of_a_plain_loop(
    method: str, window: int, loop: PlainLoop, tiny_esm2: Path, tmp_path: Path
) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN, P2=PROTEIN[::-1].replace("X", "A"))
    table = written(tmp_path / "v.tsv", "protein\tvariant\n" + "".join(f"P1\t{one}\n" for one in CASES))
    rows = scored(source, tmp_path, tiny_esm2, "--variants", table, "--method", method, "--window", str(window),
                  "--batch-tokens", "64")
    assert [row["status"] for row in rows] == ["scored"] * len(CASES)
    for row, case in zip(rows, CASES, strict=True):
        parts = sorted(((one[0], int(one[1:-1]) - 1, one[-1]) for one in case.split(";")), key=lambda one: one[1])
        if not window:
            expected = loop.effect(PROTEIN, parts, method)
            assert row["window"] == ""
        elif ";" in case and parts[-1][1] - parts[0][1] >= window:
            pytest.fail("no case is meant to be so wide")
        else:
            start, end = (int(one) for one in row["window"].split("-"))
            assert end - start + 1 == window
            seen = PROTEIN[start - 1 : end]
            expected = loop.effect(seen, [(old, place - start + 1, new) for old, place, new in parts], method)
        assert float(row["score"]) == pytest.approx(expected, rel=1e-4, abs=6e-5)  # the table has four decimals


@pytest.mark.parametrize("method", ["wt-marginal", "masked-marginal"])
def test_all_substitutions_are_those_of_a_plain_loop(
    method: str, loop: PlainLoop, tiny_esm2: Path, tmp_path: Path
) -> None:
    worst = 0.0
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    reader = MaskedReader(loaded, capacity(loaded), 128, stage.log("test"))
    answers: list[np.ndarray] = []
    hidden = [()] if method == "wt-marginal" else [(place,) for place in range(len(PROTEIN))]
    for places in hidden:
        read = places or tuple(range(len(PROTEIN)))
        reader.ask([MarginalQuestion(PROTEIN, places, read, lambda values: answers.append(values.copy()))])
    ours = np.concatenate(answers)
    seen = loop.log_probabilities(PROTEIN, set())
    for place, letter in enumerate(PROTEIN):
        theirs = seen[place] if method == "wt-marginal" else loop.log_probabilities(PROTEIN, {place})[place]
        if letter in LETTERS:
            own = LETTERS.index(letter)
            difference = np.abs((ours[place] - ours[place, own]) - (theirs - theirs[own])).max()
            worst = max(worst, float(difference / np.abs(theirs - theirs[own]).max()))
    print(f"largest relative error of {method}: {worst:.1e}")
    assert worst <= 1e-4
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN, P2=PROTEIN)
    rows = scored(source, tmp_path, tiny_esm2, "--all", "--method", method)
    assert len(rows) == 2 * 19 * (len(PROTEIN) - 1)  # nothing is put in the place of X
    table = {(row["id"], row["variant"]): float(row["score"]) for row in rows}
    assert all(table["P1", name] == value for (protein, name), value in table.items() if protein == "P2")
    own = LETTERS.index("Y")
    assert table["P1", "Y4W"] == pytest.approx(float(ours[3, LETTERS.index("W")] - ours[3, own]), abs=6e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [0, 20])
def test_scores_before_they_are_rounded(
    method: str, window: int, loop: PlainLoop, tiny_esm2: Path, tmp_path: Path
) -> None:
    proteins = store_proteins(fasta(tmp_path / "p.fasta", P1=PROTEIN), tmp_path / "store")
    scores = EffectScores(proteins, tmp_path)
    variants = [parse(case).substitutions for case in CASES]
    singles = {one[0].position - 1 for one in variants if len(one) == 1 and method != "pseudo-likelihood"}
    wanted = WantedEffects(singles, dict.fromkeys(one for one in variants if one[0].position - 1 not in singles))
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    plan = SequencePlan(0, PROTEIN, wanted, method, window)
    MaskedReader(loaded, capacity(loaded), 100, stage.log("test")).ask(plan.questions(scores))
    errors, sizes = [], []
    for one in variants:
        start, end = window_around(len(PROTEIN), [part.position - 1 for part in one], window) or (0, 0)
        parts = [(part.wild_type, part.position - 1 - start, part.mutant) for part in one]
        expected = loop.effect(PROTEIN[start:end], parts, method)
        errors.append(abs(scores.variant(0, one) - expected))
        sizes.append(abs(expected))
    print(f"{method}, window {window}: largest error {max(errors) / max(sizes):.1e} of the largest score")
    assert max(errors) <= 1e-4 * max(sizes)


def test_equal_sets_of_positions_are_asked_once(
    tiny_esm2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN)
    names = [f"A3{letter}" for letter in LETTERS if letter != "A"]
    names += [f"A3{letter}:K10R" for letter in "CDEF"]
    table = written(tmp_path / "v.tsv", "variant\n" + "".join(f"{name}\n" for name in names))
    scored(source, tmp_path, tiny_esm2, "--variants", table)
    told = "23 variants in 1 different sequence, masked marginal: 2 sequences or windows to read"
    assert told in capfd.readouterr().out


def test_a_row_that_does_not_fit_is_halved_and_nothing_is_lost(tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    reader = MaskedReader(loaded, capacity(loaded), 512, stage.log("test"))
    plain = reader._read
    read: list[int] = []

    def small(batch: Any, row: list[MarginalQuestion]) -> Any:
        if batch.tokens > 200:
            raise MemoryError
        return plain(batch, row)

    reader._read = small  # type: ignore[method-assign]
    reader.ask(MarginalQuestion(PROTEIN, (n,), (n,), partial(lambda n, values: read.append(n), n)) for n in range(40))
    assert read == list(range(40)) and reader.tokens == 128


# --------------------------------------------------------------------------------------------------------- notations

NOTATIONS: dict[str, list[str]] = {
    "A23V": ["A23V"], "p.Ala23Val": ["A23V"], "p.(Ala23Val)": ["A23V"], "p.A23V": ["A23V"], "ala23val": ["A23V"],
    "ALA23VAL": ["A23V"], '"A23V"': ["A23V"], "NP_000537.3:p.Arg175His": ["R175H"], "TP53:p.R175H": ["R175H"],
    "TP53:R175H": ["R175H"], "NP_000537.3(TP53):p.(Arg175His)": ["R175H"], "A23V:G45D": ["A23V", "G45D"],
    "G45D;A23V": ["A23V", "G45D"], "A23V+G45D": ["A23V", "G45D"], "A23V,G45D": ["A23V", "G45D"],
    "A23V/G45D": ["A23V", "G45D"], "A23V G45D": ["A23V", "G45D"], "A23V_G45D": ["A23V", "G45D"],
    "p.[Ala23Val;Gly45Asp]": ["A23V", "G45D"], "NP_1.2:p.[(Ala23Val);(Gly45Asp)]": ["A23V", "G45D"],
    "P1:p.A2V;P1:p.G4D": ["A2V", "G4D"], "A23A:G45D": ["G45D"],
}
REJECTED = {
    "": "no variant is given", "NA": "no variant is given", ".": "no variant is given", "WT": "the wild type",
    "A23A": "synonymous", "p.Ala23=": "synonymous", "p.(Ala23=)": "synonymous", "p.Ala23%3D": "synonymous",
    "p.=": "synonymous", "p.Arg23Ter": "a stop", "R23*": "a stop", "p.Ter23Arg": "the stop is substituted",
    "p.Ala23fs": "a frameshift", "p.Ala23ProfsTer10": "a frameshift", "p.Lys23_Val25del": "a deletion:",
    "p.Lys23_Val25delinsTrp": "a deletion with an insertion", "A23-": "a deletion", "p.Ala3_Ser5dup": "a duplication",
    "p.Lys2_Gly3insGln": "an insertion", "p.Ter394GlnextTer?": "an extension", "c.524G>A": "notation of coding DNA",
    "NM_1:c.524G>A": "notation of coding DNA", "g.1A>T": "notation of DNA", "p.?": "unknown", "p.0": "no protein",
    "p.Met1?": "the new residue is unknown", "23V": "the residue before the position is missing",
    "hello": "cannot be read", "A0V": "count from 1", "U48C": "none of the twenty", "A23X": "none of the twenty",
    "Foo23Val": "three letters of no amino acid", "A23V:A23G": "substituted twice", "p.[A2V];[G4D]": "two alleles",
    "p.[A2V(;)G4D]": "one allele is unknown", "P1:p.A2V,P2:p.G4D": "substitutions in P1 and P2",
    "A" * 30_000: "longer than",
}


@pytest.mark.parametrize("cell", NOTATIONS)
def test_notations(cell: str) -> None:
    parsed = parse(cell)
    assert [str(one) for one in parsed.substitutions] == NOTATIONS[cell] and not parsed.reason
    assert bool(parsed.remark) == (cell == "A23A:G45D")


@pytest.mark.parametrize("cell", REJECTED, ids=lambda cell: cell[:20] or "empty")
def test_what_is_no_substitution_is_named(cell: str) -> None:
    parsed = parse(cell)
    assert not parsed.substitutions and REJECTED[cell] in parsed.reason


def test_names_before_the_notation() -> None:
    assert parse("NP_000537.3(TP53):p.(Arg175His)").names == ("NP_000537.3", "TP53")
    assert parse("P12345:A23V").names == ("P12345",)
    assert parse("A23V:G45D").names == ()


@given(st.text(max_size=60))
def test_every_cell_is_either_read_or_rejected(cell: str) -> None:
    parsed = parse(cell)
    assert bool(parsed.substitutions) != bool(parsed.reason)
    assert all(one.position >= 1 and one.mutant in LETTERS for one in parsed.substitutions)


SUBSTITUTION = st.tuples(
    st.sampled_from(LETTERS), st.integers(1, 99_999), st.sampled_from(LETTERS)
).filter(lambda one: one[0] != one[2])


@given(st.lists(SUBSTITUTION, min_size=1, max_size=5, unique_by=lambda one: one[1]), st.sampled_from(":;,+ "))
def test_what_is_written_is_read_back(made: list[tuple[str, int, str]], between: str) -> None:
    parsed = parse(between.join(f"{old}{position}{new}" for old, position, new in made))
    assert [(one.wild_type, one.position, one.mutant) for one in parsed.substitutions] == sorted(
        made, key=lambda one: one[1]
    )


# --------------------------------------------------------------------------------------------------- rows, names, order


def test_every_row_is_accounted_for(query: Path, vcf_like: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    given_rows = rows_of(vcf_like)
    rows = scored(
        query, tmp_path, tiny_esm2, "--variants", vcf_like, "--ranked", tmp_path / "r", "--status", tmp_path / "s",
        "--report", tmp_path / "report.md",
    )
    assert [{name: row[name] for name in given_rows[0]} for row in rows] == given_rows  # untouched, in order
    assert [row["status"] for row in rows].count("scored") == 30
    reasons = {kind_of(row["details"]) for row in rows if row["status"] == "rejected"}
    assert reasons == {
        "another residue in the protein than the variant says", "beyond the end of the protein", "a stop",
        "no protein of that name", "synonymous: no residue is substituted", "not written as a substitution",
        "insertion, deletion, frameshift or the like",
    }
    assert all((row["score"] == "") == (row["status"] == "rejected") for row in rows)
    sequences = {record.id.split("|")[1]: record.sequence for record in read_fasta(query)}
    for row in rows:
        if row["status"] == "scored":
            for one in row["scored_variant"].split(";"):
                assert sequences[row["gene"]][int(one[1:-1]) - 1] == one[0]
    ranked = rows_of(tmp_path / "r")
    values = [float(row["score"]) for row in ranked]
    assert values == sorted(values) and [row["rank"] for row in ranked] == [str(n + 1) for n in range(30)]
    status = rows_of(tmp_path / "s")
    assert sum(int(row["variants"]) for row in status) == 36 and sum(int(row["scored"]) for row in status) == 30
    assert status[-1]["status"] == "not asked"
    first = (tmp_path / "report.md").read_text().splitlines()[0]
    least = min(rows, key=lambda row: float(row["score"] or "inf"))
    assert first.startswith("**30 of 37 variants are scored; the least tolerated is ")
    assert least["scored_variant"] in first


NAMES = (
    ">sp|P00001|ONE_TEST First GN=oneA PE=1\nMKAYIAKQRK\n>NP_000002.1 two\nMSEQNNTEMT\n>P3\nMSEQNNTEMT\n"
    ">P4 GN=dup\nMK\n>P5 GN=dup\nMR\n"
)
@pytest.fixture
def named(tmp_path: Path) -> Path:
    return written(tmp_path / "p.fasta", NAMES)


BY_NAME = {
    "oneA": "sp|P00001|ONE_TEST", "P00001": "sp|P00001|ONE_TEST", "ONE_TEST": "sp|P00001|ONE_TEST",
    "sp|P00001|ONE_TEST": "sp|P00001|ONE_TEST", "NP_000002.1": "NP_000002.1", "NP_000002": "NP_000002.1", "P3": "P3",
}


@pytest.mark.parametrize(("name", "how"), [
    (name, how) for name in BY_NAME for how in ("gene", "protein", "prefix") if how != "prefix" or "|" not in name
])
def test_proteins_are_found_by_their_names(name: str, how: str, named: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    cell = "p.Met1Leu"
    text = f"variant\tn\n{name}:{cell}\t1\n" if how == "prefix" else f"{how}\tvariant\n{name}\t{cell}\n"
    (row,) = scored(named, tmp_path, tiny_esm2, "--variants", written(tmp_path / "v.tsv", text))
    assert row["scored_protein"] == BY_NAME[name] and row["status"] == "scored"


HEADERS = {
    "thrA": "NP_414543.1 [gene=thrA] [locus_tag=b0002] [protein=x]",
    "b0002": "NP_414543.1 [gene=thrA] [locus_tag=b0002]",
    "TP53": "ENSP00000269305.4 pep chromosome:GRCh38:17:1:2:-1 gene:ENSG00000141510.18 gene_symbol:TP53 description:x",
    "ENSG00000141510": "ENSP00000269305.4 pep gene:ENSG00000141510.18 transcript:ENST00000269305.9",
    "pseudogene=9": "P9 pseudogene=9",
}


@pytest.mark.parametrize("name", HEADERS)
def test_genes_stand_in_headers_of_all_houses(name: str, tiny_esm2: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "p.fasta", f">{HEADERS[name]}\nMKAYIAKQRK\n>other\nMKKK\n")
    table = written(tmp_path / "v.tsv", f"gene\tvariant\n{name.partition('=')[0]}\tA3V\nother\tK2R\n")
    row = scored(source, tmp_path, tiny_esm2, "--variants", table)[0]
    assert (row["status"] == "scored") == ("=" not in name)


def test_another_version_of_a_protein_is_said(named: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    table = written(tmp_path / "v.tsv", "variant\nNP_000002.7:p.Met1Leu\nNP_000002.1:p.Met1Leu\n")
    other, same = scored(named, tmp_path, tiny_esm2, "--variants", table)
    assert other["status"] == same["status"] == "scored" and not same["details"]
    assert other["details"] == "the table means version 7 of the protein, which is version 1"


def test_the_only_protein_may_be_called_otherwise(named: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    table = written(tmp_path / "v.tsv", "gene\tvariant\nTP53\tNP_1.1:p.A3V\n")
    source = fasta(tmp_path / "one.fasta", P1=PROTEIN)
    (row,) = scored(source, tmp_path, tiny_esm2, "--variants", table, "--protein-column", "none")
    assert row["scored_protein"] == "P1" and row["status"] == "scored"
    with pytest.raises(UserError, match="There are 5 proteins"):
        scored(named, tmp_path, tiny_esm2, "--variants", table, "--protein-column", "none")


def test_names_that_fit_nothing_or_several(named: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    table = written(tmp_path / "v.tsv", "gene\tvariant\noneA\tM1L\ndup\tM1L\nnone\tM1L\n\tM1L\nnone\tP3:p.M1L\n")
    rows = scored(named, tmp_path, tiny_esm2, "--variants", table)
    assert [row["details"] for row in rows] == [
        "", "'dup' names 2 of the proteins", "no protein is called 'none'",
        "no protein is named, and there are several", "",
    ]


@pytest.mark.parametrize(("header", "first"), [
    ("variant\tscore", "A3V\t7"), ("mutant\tid", "A3V\tmutant_1"), ("wt\tpos\tmt", "A\t3\tV"),
    ("#CHROM\tPOS\tREF\tALT", "P1\t3\tA\tV"),
    ("CHROM\tPOS\tREF\tALT\tEffect (VEP)", "1\t9\tG\tC\tP1:p.Ala3Val"),
    ("Protein_Change;n", "A3V;1"), ("HGVSp,x", "P1:p.Ala3Val,1"),
], ids=lambda text: text[:12])
def test_columns_are_found_and_kept(header: str, first: str, tiny_esm2: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN)
    table = written(tmp_path / "v.txt", f"##meta=1\n##more\n{header}\n{first}\n")
    (row,) = scored(source, tmp_path, tiny_esm2, "--variants", table)
    separator = next(mark for mark in "\t;," if mark in header)
    names = header.split(separator)
    assert [row[name] for name in names] == first.split(separator) and row["scored_variant"] == "A3V"
    assert list(row)[len(names) :] == added_columns(names)
    if "score" in names:
        assert row["score"] == "7" and math.isfinite(float(row["plm_score"]))


def test_gzipped_input_and_a_named_column(tiny_esm2: Path, tmp_path: Path) -> None:
    source = tmp_path / "p.fasta.gz"
    source.write_bytes(gzip.compress(f">P1\n{PROTEIN}\n>P2\nMMMM\n".encode()))
    table = written(tmp_path / "v.tsv", "what\twhere\tvariant\nA3V\tP1\tM1L\n")
    named = ("--variant-column", "what", "--protein-column", "2")
    (row,) = scored(source, tmp_path, tiny_esm2, "--variants", table, *named)
    assert row["scored_variant"] == "A3V" and row["scored_protein"] == "P1"


def test_rare_residues_are_no_places_for_substitutions(tiny_esm2: Path, root: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1="MKAUIAKQRKQISXVKSHF")
    table = written(tmp_path / "v.tsv", "variant\nU4C\nC4A\nX14A\nA3V\n")
    for model in (tiny_esm2, root / "test-data" / "models" / "tiny_bert"):
        rows = scored(source, tmp_path, model, "--variants", table)
        assert [row["status"] for row in rows] == ["rejected"] * 3 + ["scored"]
        assert "none of the twenty" in rows[1]["details"]
        assert {row["position"] for row in scored(source, tmp_path, model, "--all")} == {
            str(n) for n in range(1, 20) if n not in (4, 14)
        }


def test_positions_counted_from_another_start_are_noticed(tiny_esm2: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1="MKKLLA" + PROTEIN)
    places = [place for place in range(2, 40, 5) if PROTEIN[place] != ("MKKLLA" + PROTEIN)[place]]
    mature = [f"{PROTEIN[place]}{place + 1}{'G' if PROTEIN[place] != 'G' else 'A'}" for place in places]
    table = written(tmp_path / "v.tsv", "variant\nM1L\n" + "\n".join(mature) + "\n")
    scored(source, tmp_path, tiny_esm2, "--variants", table, "--report", tmp_path / "r.md")
    told = (tmp_path / "r.md").read_text()
    assert len(places) > 5 and "X" not in {PROTEIN[place] for place in places}
    assert f"{len(places)} of {len(places)} rejected residues would agree if positions were 6 higher" in told


# ------------------------------------------------------------------------------------------------------------ windows


@given(st.integers(1, 400), st.integers(16, 200), st.data())
def test_windows_hold_their_places_in_their_middle(length: int, width: int, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=3)))
    span = window_around(length, places, width)
    if length <= width:
        assert span == (0, length)
    elif places[-1] - places[0] >= width:
        assert span is None
    else:
        assert span is not None and span[1] - span[0] == width
        assert 0 <= span[0] <= places[0] <= places[-1] < span[1] <= length
        middle = (places[0] + places[-1]) / 2
        if len(places) == 1 and span[0] > 0 and span[1] < length:
            assert abs(middle - (span[0] + span[1]) / 2) <= max(1, width // 32)


def test_what_lies_too_far_apart_for_a_window_is_added_up(tiny_esm2: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN)
    table = written(tmp_path / "v.tsv", "variant\nA3V:P40G\nA3V\nP40G\n")
    for method in METHODS:
        both, first, second = scored(
            source, tmp_path, tiny_esm2, "--variants", table, "--window", "20", "--method", method
        )
        assert float(both["score"]) == pytest.approx(float(first["score"]) + float(second["score"]), abs=2e-4)
        assert "further apart than the window of 20 residues" in both["details"]
        assert both["window"] == f"{first['window']};{second['window']}"


def test_a_model_with_few_positions_sees_long_proteins_through_windows(root: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN * 40)
    table = written(tmp_path / "v.tsv", f"variant\nA3V\nA{3 + 20 * len(PROTEIN)}V\n")
    rows = scored(source, tmp_path, root / "test-data" / "models" / "tiny_esm1b", "--variants", table,
                  "--report", tmp_path / "r.md")
    assert all(row["status"] == "scored" and row["window"] for row in rows)
    assert "longer than the window of" in (tmp_path / "r.md").read_text()


# ---------------------------------------------------------------------------------------------------- tables and tracks


def test_positions_and_tracks_count_as_their_formats_do(tiny_esm2: Path, tmp_path: Path) -> None:
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN)
    all_ = ("--all", "--positions", tmp_path / "pos", "--track", tmp_path / "t")
    rows = scored(source, tmp_path, tiny_esm2, *all_, "--track-format", "bed")
    bed = [line.split("\t") for line in (tmp_path / "t").read_text().splitlines()]
    scored(source, tmp_path, tiny_esm2, *all_)
    gff = [line.split("\t") for line in (tmp_path / "t").read_text().splitlines() if not line.startswith("#")]
    positions = rows_of(tmp_path / "pos")
    assert len(bed) == len(gff) == len(positions) == len(PROTEIN) - 1
    for one, two, three in zip(bed, gff, positions, strict=True):
        number = int(three["position"])
        assert PROTEIN[number - 1] == three["residue"]
        assert (int(one[1]), int(one[2])) == (number - 1, number) and one[3] == f"{three['residue']}{number}"
        assert two[3] == two[4] == str(number) and float(two[5]) == pytest.approx(float(three["tolerance"]), abs=1e-4)
        mine = {row["substitution"]: float(row["score"]) for row in rows if row["position"] == str(number)}
        assert len(mine) == 19 == int(three["substitutions"])
        assert float(three["tolerance"]) == pytest.approx(np.mean(list(mine.values())), abs=2e-4)
        assert mine[three["most_tolerated"]] == max(mine.values())
        assert mine[three["least_tolerated"]] == min(mine.values())
        assert 0 <= float(three["entropy"]) <= math.log(20) + 1e-6
    shares = [int(one[4]) for one in bed]
    assert (min(shares), max(shares)) == (0, 1000)
    assert shares[int(np.argmax([float(one["tolerance"]) for one in positions]))] == 1000
    assert (tmp_path / "t").read_text().startswith(f"##gff-version 3\n##sequence-region P1 1 {len(PROTEIN)}\n")


@pytest.mark.parametrize("most", [25, 0])
def test_the_ranking_of_all_holds_the_lowest(most: int, tiny_esm2: Path, query: Path, tmp_path: Path) -> None:
    rows = scored(query, tmp_path, tiny_esm2, "--all", "--method", "wt-marginal", "--ranked", tmp_path / "r",
                  "--ranked-rows", str(most))
    ranked = rows_of(tmp_path / "r")
    lowest = sorted(float(row["score"]) for row in rows)[: most or None]
    assert [float(row["score"]) for row in ranked] == lowest
    known = {(row["id"], row["variant"]): row for row in rows}
    assert all(known[row["id"], row["variant"]]["score"] == row["score"] for row in ranked)


def test_own_tables_are_recognised(tiny_esm2: Path, query: Path, vcf_like: Path, tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in ("scores", "ranked", "positions", "status")}
    outputs = [word for name, path in made.items() for word in (f"--{name}", str(path))]
    for what in (["--variants", str(vcf_like)], ["--all", "--method", "wt-marginal"]):
        plm_variants.run(["--input", str(query), "--model", str(tiny_esm2), *FIXED, *outputs, *what])
        for path in made.values():
            table = recognise(path.read_text().splitlines()[0].split("\t"))
            assert table is not None and table.tool == "plm_variants"


@pytest.mark.slow
def test_long_proteins_and_many_are_drawn_as_far_as_a_page_goes(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for lengths, expected in (((90, 80), Drawn(2, 2)), ((30,) * 20, Drawn(12, 20)), ((500,), Drawn(1, 1)),
                              ((2500, 30), Drawn(1, 2, MOST_DRAWN))):
        folder = tmp_path / str(len(lengths) * sum(lengths))
        folder.mkdir()
        drawn = {f"P{n}": "".join(generator.choice(list(LETTERS), length)) for n, length in enumerate(lengths)}
        proteins = store_proteins(fasta(folder / "p.fasta", **drawn), folder / "store")
        scores = EffectScores(proteins, folder)
        for number in range(len(proteins.lengths)):
            scores.of(number)[0][:] = generator.normal(size=(int(proteins.lengths[number]), 20))
        assert proteins_figure(proteins, scores, folder / "f.png") == expected
        width, height = png_size(folder / "f.png")
        assert width == 1350 and height <= 7500


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


# ---------------------------------------------------------------------------------------------------------- baselines


def test_baselines_by_hand(tmp_path: Path) -> None:
    store = store_proteins(fasta(tmp_path / "p.fasta", P1="MKAA", P2="MKAA", P3="AAW"), tmp_path / "store")
    frequencies = background(store)
    counts = dict.fromkeys(LETTERS, 1)
    for letter in "MKAA" + "AAW":  # equal sequences once
        counts[letter] += 1
    assert frequencies.tolist() == pytest.approx([counts[letter] / 27 for letter in LETTERS])
    matrix = blosum62()
    assert matrix[LETTERS.index("W"), LETTERS.index("W")] == 11 and matrix[LETTERS.index("A"), LETTERS.index("R")] == -1
    plain = Baselines(matrix, frequencies)
    both = (Substitution("K", 2, "R"), Substitution("A", 3, "W"))
    assert plain.blosum62(both) == 2 - 3
    assert plain.site_frequency(0, both) == pytest.approx(math.log(1 / 2) + math.log(2 / 5))
    aligned = read_alignment(
        written(tmp_path / "a.fasta", ">P1\nM-KAA\n>r1\nMGRAa\n>r2\nM-RWA\n"), store, frequencies
    )
    assert aligned.records == 3 and aligned.sequence == 0
    pseudo = math.sqrt(3)

    def share(count: int, letter: str) -> float:
        return (count + pseudo * counts[letter] / 27) / (3 + pseudo)

    expected = math.log(share(2, "R") / share(1, "K")) + math.log(share(1, "W") / share(2, "A"))
    better = Baselines(matrix, frequencies, aligned)
    assert better.site_frequency(0, both) == pytest.approx(expected)
    assert better.site_frequency(1, both) == plain.site_frequency(1, both)  # another protein


def test_an_alignment_with_insertions_in_lower_case(tmp_path: Path) -> None:
    store = store_proteins(fasta(tmp_path / "p.fasta", P1="MKAA"), tmp_path / "store")
    a3m = written(tmp_path / "a.a3m", ">P1\nMKAA\n>r1\nMRggA-\n>r2\nM--A\n")
    aligned = read_alignment(a3m, store, background(store))
    assert aligned.records == 3 and aligned.frequencies.shape == (4, 20)
    assert aligned.frequencies.sum(1).tolist() == pytest.approx([1.0] * 4)


def test_agreement_is_spearmans_and_pairs_are_compared() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(size=300)
    scores = {
        "language model": truth + generator.normal(size=300) * 0.5, "BLOSUM62": truth + generator.normal(size=300) * 3,
        "site frequencies": generator.normal(size=300),
    }
    groups = [str(number // 3) for number in range(300)]
    made = agreement(truth, scores, groups, lower_is_better=False, resamples=500, seed=1)
    assert made is not None and made.rows == 300 and made.unit.startswith("100 ")
    from scipy.stats import spearmanr

    for one in made.correlations:
        assert one.value == pytest.approx(spearmanr(truth, scores[one.name]).statistic)
        assert one.low < one.value < one.high
    assert made.comparison is not None and made.comparison.verdict == "beats" and made.comparison.second == "BLOSUM62"
    other = agreement(-truth, scores, groups, lower_is_better=True, resamples=500, seed=1)
    assert other == made
    truth[:297] = np.nan
    few = agreement(truth, scores, groups, lower_is_better=False, resamples=500, seed=1)
    assert few is not None and few.rows == 3 and math.isnan(few.correlations[0].low)
    truth[:] = np.nan
    assert agreement(truth, scores, groups, lower_is_better=False, resamples=500, seed=1) is None


# ------------------------------------------------------------------------------------------------------------ refusals

WRONG: dict[str, tuple[list[str], str]] = {
    "neither": ([], "Nothing says what to score"),
    "both": (["--variants", "V", "--all"], "Give either a table of variants or --all"),
    "a column without a table": (["--all", "--measured", "x"], "This is a column of the table of variants"),
    "no column": (["--variants", "NOCOLUMN"], "No column of variants is there"),
    "no such column": (["--variants", "V", "--variant-column", "absent"], "there is no column 'absent'"),
    "no such measured column": (["--variants", "V", "--measured", "absent"], "there is no column 'absent'"),
    "nothing fits": (["--variants", "UNFIT"], "None of 2 variants can be scored; the first: G3V: the protein"),
    "an own table": (["--variants", "OWN"], "This is the table of contacts of plm_embed"),
    "no alignment": (["--all", "--alignment", "UNALIGNED"], "they are not aligned"),
    "another's alignment": (["--all", "--alignment", "FOREIGN"], "is none of the proteins"),
    "no numbers": (["--variants", "V", "--measured", "variant"], "The column 'variant' holds no number"),
    "another name": (["--variants", "NAMED"], "--protein-column none"),
    "nothing to substitute": (["--all", "--input", "UNKNOWN"], "No residue of the proteins is one of the twenty"),
    "no head": (["--all", "--model", "T5"], "ProtT5 has no masked language model here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(case: str, tiny_esm2: Path, tiny_t5: Path, tmp_path: Path) -> None:
    files = {
        "V": written(tmp_path / "v.tsv", "variant\nA3V\n"), "NOCOLUMN": written(tmp_path / "n.tsv", "a\tb\n1\t2\n"),
        "UNFIT": written(tmp_path / "u.tsv", "variant\nG3V\nG4V\n"),
        "OWN": written(tmp_path / "o.tsv", "id\ti\tj\tprobability\nP1\t1\t9\t0.5\n"),
        "UNALIGNED": written(tmp_path / "a.fasta", f">P1\n{PROTEIN}\n>r\nMK\n"),
        "FOREIGN": written(tmp_path / "f.fasta", ">P9\nMKKK\n"), "T5": tiny_t5,
        "NAMED": written(tmp_path / "m.tsv", "gene\tvariant\nTP53\tNP_1.1:p.A3V\n"),
        "UNKNOWN": written(tmp_path / "x.fasta", ">P1\nXXXX\n"),
    }
    words, message = WRONG[case]
    source = fasta(tmp_path / "p.fasta", P1=PROTEIN)
    with pytest.raises(UserError) as caught:
        scored(source, tmp_path, tiny_esm2, *(files.get(word, word) for word in words))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "scores.tsv").exists()


def test_it_runs_as_galaxy_runs_it(
    run_stage: Callable[..., Any], query: Path, vcf_like: Path, tiny_esm2: Path, tmp_path: Path
) -> None:
    names = ("scores", "ranked", "positions", "track", "status", "figure", "report")
    outputs = [word for name in names for word in (f"--{name}", tmp_path / name)]
    done = run_stage(
        "plm_variants", "--input", query, "--model", tiny_esm2, "--variants", vcf_like, "--measured", "fitness", *FIXED,
        *outputs,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure").read_bytes()[:4] == b"\x89PNG"
    assert "about" in done.stdout and "30 of 37 variants are scored" in done.stdout
    before = {name: (tmp_path / name).read_bytes() for name in names}
    again = ["--input", query, "--model", tiny_esm2, "--variants", vcf_like, "--measured", "fitness", *FIXED, *outputs]
    plm_variants.run([*map(str, again), "--batch-tokens", "300"])
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    wrong = ("--input", query, "--all", "--scores", tmp_path / "x", "--model", tmp_path / "absent")
    failed = run_stage("plm_variants", *wrong)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("plm_variants: error: ")


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.realdata
def test_real_logits_give_the_same_marginals(shared_data: Path) -> None:
    """The logits of the published ESM-2 8M, read as a model's answer, against the definition on all 33 tokens."""
    from safetensors.numpy import load_file

    held = load_file(shared_data / "esm2_goldens" / "esm2_8m.safetensors")
    tokens = (shared_data / "esm2_goldens" / "tokenizer" / "vocab.txt").read_text().split()
    order = [tokens.index(letter) for letter in LETTERS]
    compared = 0
    for ids, logits in zip(held["input__input_ids"], held["output__logits"].astype(np.float64), strict=True):
        places = [place for place, token in enumerate(ids) if tokens[token] in LETTERS]
        if not places:
            continue
        letters = "".join(tokens[ids[place]] for place in places)
        among_all = logits[places] - np.log(np.exp(logits[places]).sum(1, keepdims=True))
        chosen = logits[places][:, order]
        answer = (chosen - np.log(np.exp(chosen).sum(1, keepdims=True))).astype(np.float32)
        profile, entropy = np.full((len(letters), 20), np.nan, np.float32), np.zeros(len(letters), np.float32)
        scores: Any = SimpleNamespace(of=partial(lambda kept, number: kept, (profile, entropy)), several={})
        (question,) = SequencePlan(0, letters, WantedEffects(None), "wt-marginal", 0).questions(scores)
        question.take(answer)
        for place, letter in enumerate(letters):
            expected = among_all[place, order] - among_all[place, tokens.index(letter)]
            mine = profile[place]
            kept = np.isfinite(mine)
            assert kept.sum() == 19
            assert np.allclose(mine[kept], expected[kept], atol=1e-4)
            compared += 19
    print(f"{compared} marginals of the published ESM-2 8M")
    assert compared > 1000


@pytest.mark.slow
@pytest.mark.realdata
def test_gb1_beside_baselines(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_stage: Callable[..., Any]
) -> None:
    """GB1's four positions (Wu et al. 2016), 8,732 variants: everything is scored and set beside the baselines."""
    with gzip.open(shared_data / "gb1_esm2_8m" / "gb1_three_vs_rest.csv.gz", "rt") as handle:
        table = list(csv.DictReader(handle))
    wild = table[0]["sequence"]
    lines = ["variant,target"]
    for row in table:
        pairs = enumerate(zip(wild, row["sequence"], strict=True), start=1)
        changes = [f"{old}{place}{new}" for place, (old, new) in pairs if old != new]
        lines.append(f"{':'.join(changes) or 'WT'},{row['target']}")
    variants = written(tmp_path / "gb1.csv", "\n".join(lines) + "\n")
    source = fasta(tmp_path / "gb1.fasta", GB1=wild)
    for method in ("wt-marginal", "masked-marginal"):
        rows = scored(source, tmp_path, Path("starter"), "--variants", variants, "--measured", "target", "--method",
                      method, "--report", tmp_path / "report.md", "--resamples", "200")
        assert [row["status"] for row in rows].count("scored") == len(table) - 1
        assert rows[0]["details"].startswith("the wild type")
        report = (tmp_path / "report.md").read_text()
        with capsys.disabled():
            print(f"\n{method}: " + "; ".join(line for line in report.splitlines() if line.startswith((
                "| language", "| BLOSUM62 |", "| site"))))
        assert "Spearman correlation of" in report.splitlines()[0] and "| site frequencies |" in report
