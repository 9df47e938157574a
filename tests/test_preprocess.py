"""plm_preprocess as its users run it, on the simulated data: labels, sites, splits, and counts that reconcile."""

from __future__ import annotations

import csv
import filecmp
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plm_preprocess
import pytest
from plm.data.fasta import read_fasta

Rows = list[dict[str, str]]
Preprocess = Callable[..., tuple[Rows, Rows, Rows, str]]


@pytest.fixture
def preprocess(run_stage: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Preprocess:
    """Runs the stage; gives dataset, journal, leakage table and report."""

    def run(*args: str | Path) -> tuple[Rows, Rows, Rows, str]:
        files = {name: tmp_path / name for name in ("dataset", "rejected", "leakage", "report")}
        done = run_stage(
            "plm_preprocess", *args, *(word for name, path in files.items() for word in (f"--{name}", path))
        )
        assert done.returncode == 0, done.stderr
        tables = []
        for name in ("dataset", "rejected", "leakage"):
            with files[name].open() as handle:
                tables.append(list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)))
        return tables[0], tables[1], tables[2], files["report"].read_text()

    return run


@pytest.fixture(scope="session")
def data(root: Path) -> Path:
    return root / "test-data"


def _no_straddling(rows: Rows, column: str) -> None:
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row[column], set()).add(row.get("split") or row["fold"])
    assert max(map(len, parts.values())) == 1


def test_windows_with_labels_are_split_by_protein_and_homology(preprocess: Preprocess, data: Path) -> None:
    rows, journal, leaks, report = preprocess("--input", data / "simulated_windows.fasta", "--task", "site")
    given = {record.id: record for record in read_fasta(data / "simulated_windows.fasta")}
    assert [row["id"] for row in rows] + [entry["id"] for entry in journal if entry["what"] != "changed"] == list(given)
    for row in rows:
        record = given[row["id"]]
        assert row["sequence"] == record.sequence
        assert record.header.endswith(f"LABEL={row['label']}")
        assert (row["position"], row["window"], row["sequence"][16]) == ("17", "33", "Y")
        assert row["protein"] == record.id.split("|")[1]
        assert row["protein_position"] == record.id.split("%")[2]
    for column in ("protein", "cluster", "group"):
        _no_straddling(rows, column)
    sizes = Counter(row["split"] for row in rows)
    assert abs(sizes["test"] - 0.25 * len(rows)) <= 6 and abs(sizes["valid"] - 0.15 * len(rows)) <= 6
    for split in sizes:
        positive = sum(row["label"] == "1" for row in rows if row["split"] == split)
        assert 0.4 < positive / sizes[split] < 0.6
    assert len(leaks) == sizes["test"] + sizes["valid"]
    assert {row["leaks"] for row in leaks} == {"no"}
    assert "No leakage found" in report.splitlines()[0]


def test_a_published_test_set_is_kept_and_found_leaking(preprocess: Preprocess, data: Path) -> None:
    rows, _, leaks, report = preprocess(
        "--input", data / "simulated_windows.fasta", "--test", data / "simulated_windows_test.fasta", "--task", "site"
    )
    published = [record.id for record in read_fasta(data / "simulated_windows_test.fasta")]
    assert [row["id"] for row in rows if row["split"] == "test"] == published
    test = [row for row in leaks if row["split"] == "test"]
    assert sum(row["same_protein"] == "yes" for row in test) == 20
    assert {row["leaks"] for row in leaks if row["split"] == "valid"} == {"no"}
    assert "LEAKAGE: 20 of 40 test records leak" in report.splitlines()[0]


def test_leakage_can_be_made_fatal(
    run_stage: Callable[..., subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    done = run_stage(
        "plm_preprocess", "--input", data / "simulated_windows.fasta", "--test", data / "simulated_windows_test.fasta",
        "--task", "site", "--fail-on-leakage", "--dataset", tmp_path / "d", "--rejected", tmp_path / "r",
        "--leakage", tmp_path / "l", "--report", tmp_path / "p",
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Leakage: 20 of" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_marks_and_list_give_the_same_sites(preprocess: Preprocess, data: Path) -> None:
    common = ("--task", "site", "--window", "33", "--split", "protein")
    marked, journal, _, _ = preprocess("--input", data / "simulated_marked.fasta", "--labels", "hash", *common)
    listed, _, _, _ = preprocess(
        "--input", data / "simulated_proteins.fasta", "--sites", data / "simulated_sites.tabular", *common
    )
    proteins = {record.id.split("|")[1]: record.sequence for record in read_fasta(data / "simulated_proteins.fasta")}
    positive = {row["id"]: row["sequence"] for row in marked if row["label"] == "1"}
    assert positive == {row["id"]: row["sequence"] for row in listed if row["label"] == "1"}
    # Every tyrosine of every protein is a row, or is listed with the reason why not.
    left_out = {entry["id"] for entry in journal if entry["what"] == "left out"}
    every = {f"{name}_Y{index + 1}" for name, text in proteins.items() for index, one in enumerate(text) if one == "Y"}
    assert {row["id"] for row in marked} | left_out == every
    assert len(marked) + len(left_out) == len(every)
    for row in marked:
        place, whole = int(row["protein_position"]) - 1, proteins[row["protein"]]
        start = max(0, place - 16)
        assert row["sequence"] == whole[start : place + 17]
        assert int(row["position"]) - 1 == place - start
    clipped = {entry["id"] for entry in journal if "clipped" in entry["reason"]} - left_out
    assert clipped == {row["id"] for row in marked if len(row["sequence"]) < 33}
    _no_straddling(marked, "protein")


def test_ratio_cap_and_whole_proteins(preprocess: Preprocess, data: Path) -> None:
    rows, journal, _, _ = preprocess(
        "--input", data / "simulated_marked.fasta", "--labels", "hash", "--task", "site", "--window", "0",
        "--ratio", "1", "--cap", "50", "--split", "none",
    )
    assert Counter(row["label"] for row in rows) == {"0": 50, "1": 50}
    assert all(row["window"] == "0" and len(row["sequence"]) > 100 for row in rows)
    assert all(row["sequence"][int(row["position"]) - 1] == "Y" for row in rows)
    assert all(row["position"] == row["protein_position"] for row in rows)
    assert any("at most 50 records of class 1" in entry["reason"] for entry in journal)
    assert any("negative not drawn: 1 for each positive" in entry["reason"] for entry in journal)


def test_a_table_of_windows_keeps_its_columns(preprocess: Preprocess, data: Path) -> None:
    rows, _, _, _ = preprocess(
        "--input", data / "simulated_windows.tabular", "--labels", "column:class", "--protein", "column:accession",
        "--task", "site", "--window", "21", "--split", "group", "--group", "column:accession",
    )
    assert {row["label"] for row in rows} == {"site", "other"}
    assert {(row["window"], row["position"], len(row["sequence"])) for row in rows} == {("21", "11", 21)}
    assert all(row["protein"] == row["group"] == row["accession"] for row in rows)
    _no_straddling(rows, "accession")


def test_classes_from_header_fields_in_homology_folds(preprocess: Preprocess, data: Path) -> None:
    rows, _, leaks, report = preprocess(
        "--input", data / "simulated_classes.fasta", "--labels", "field:-1", "--folds", "4"
    )
    assert {row["label"] for row in rows} == {"amber", "blue", "coral"}
    assert {row["fold"] for row in rows} == {"1", "2", "3", "4"} and "split" not in rows[0]
    families: dict[str, set[str]] = {}
    for row in rows:
        families.setdefault(row["id"].split("|")[2], set()).add(row["fold"])
    assert max(map(len, families.values())) == 1
    assert len(leaks) == len(rows)
    assert "fold 1" in report


def test_capped_classes_are_drawn_by_the_seed_and_the_rest_is_listed(
    preprocess: Preprocess, data: Path, tmp_path: Path
) -> None:
    """Labels in a field between other signs give the same as between bars; every record is a row or is listed."""
    text = (data / "simulated_classes.fasta").read_text()
    (tmp_path / "other.fasta").write_text(text.replace("|", ";"))
    common = ("--cap", "25", "--split", "none")
    rows, journal, _, _ = preprocess("--input", tmp_path / "other.fasta", "--labels", "field:4:;", *common)
    assert Counter(row["label"] for row in rows) == {"amber": 25, "blue": 25, "coral": 20}
    listed = {entry["id"]: entry for entry in journal}
    headers = [line[1:] for line in text.replace("|", ";").splitlines() if line.startswith(">")]
    assert {row["id"] for row in rows} | set(listed) == set(headers) and len(rows) + len(listed) == len(headers)
    for name, entry in listed.items():
        label = name.rsplit(";")[-1]
        reason = f"left out by the cap: at most 25 records of class {label} (--cap)"
        assert (entry["what"], entry["reason"]) == ("left out", reason)

    bars, _, _, _ = preprocess("--input", data / "simulated_classes.fasta", "--labels", "field:-1", *common)
    assert [row["sequence"] for row in bars] == [row["sequence"] for row in rows]
    again, _, _, _ = preprocess("--input", tmp_path / "other.fasta", "--labels", "field:4:;", *common, "--seed", "1")
    assert {row["id"] for row in again} != {row["id"] for row in rows}


def test_numbers_and_residue_labels(preprocess: Preprocess, data: Path) -> None:
    rows, journal, _, report = preprocess(
        "--input", data / "simulated_variants.tabular", "--labels", "column:activity", "--split", "random"
    )
    assert len(rows) + sum(entry["what"] == "left out" for entry in journal) == 181
    assert "LEAKAGE" in report.splitlines()[0]  # variants of one protein, at random
    rows, _, _, _ = preprocess(
        "--input", data / "simulated_structure.tabular", "--labels", "column:structure", "--task", "residue",
        "--split", "protein",
    )
    assert all(len(row["label"]) == len(row["sequence"]) and set(row["label"]) <= set("HEC") for row in rows)


def test_residue_labels_follow_the_cleaning(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("id\tsequence\tss\na\tM-KV*\tH-CC.\nb\tMKVA\tHHCE\nc\tMKVA\tHH\n")
    rows, journal, _, _ = preprocess(
        "--input", tmp_path / "t", "--labels", "column:ss", "--task", "residue", "--split", "none"
    )
    assert [(row["id"], row["sequence"], row["label"]) for row in rows] == [("a", "MKV", "HCC"), ("b", "MKVA", "HHCE")]
    assert [entry["what"] for entry in journal] == ["changed", "rejected"]


def test_unlabelled_corpus_and_given_split(preprocess: Preprocess, data: Path, tmp_path: Path) -> None:
    rows, _, _, _ = preprocess("--input", data / "simulated_corpus.fasta", "--labels", "none", "--split", "none")
    assert len(rows) == 100 and "label" not in rows[0] and "split" not in rows[0]
    assert {row["taxon"] for row in rows} <= {"9606", "10090", "559292"}
    (tmp_path / "t").write_text("id\tsequence\tlabel\tset\na\tMKVA\t1\ttraining\nb\tMWWA\t0\tdev\nc\tMCCA\t0\ttest\n")
    rows, _, _, _ = preprocess(
        "--input", tmp_path / "t", "--labels", "column:label", "--split", "given", "--split-from", "column:set"
    )
    assert [row["split"] for row in rows] == ["train", "valid", "test"]


def test_positives_and_negatives_in_two_padded_files(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(">a|P1|x%-1%2\n--MKAVL\n>b|P2|x%5%8\nGGGKAVL\n>c|P2|x%5%8\nGGG-AVL\n")
    (tmp_path / "n").write_text(">d|P3|-%5%8\nGWGKAVU\n>e|P4|-%5%8\nGWGRAVL\n")
    rows, journal, _, _ = preprocess(
        "--input", tmp_path / "p", "--negatives-file", tmp_path / "n", "--labels", "file", "--task", "site",
        "--site-residues", "K", "--split", "none", "--protein", r"regex:\|(\w+)\|",
    )
    assert [(row["id"][0], row["sequence"], row["position"], row["label"]) for row in rows] == [
        ("a", "MKAVL", "2", "1"),
        ("b", "GGGKAVL", "4", "1"),
        ("d", "GWGKAVX", "4", "0"),
    ]
    reasons = {entry["id"][0]: entry["reason"] for entry in journal if entry["what"] == "rejected"}
    assert reasons == {"c": "the centre of the window is a gap or stop", "e": "the centre is R, not K"}


def test_policies_for_duplicates_conflicts_and_others(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "t.fasta").write_text(
        ">a LABEL=1\nMKVA\n>b LABEL=1\nMKVA\n>c LABEL=0\nMWWA\n>d LABEL=1\nMWWA\n>e\nMCCA\n>e\nMCGA\n>f LABEL=1\nMU\n"
    )
    rows, journal, _, _ = preprocess(
        "--input", tmp_path / "t.fasta", "--duplicate-ids", "rename", "--otherwise", "0", "--min-length", "3",
        "--split", "none",
    )
    assert [(row["id"], row["label"]) for row in rows] == [("a", "1"), ("e", "0"), ("e_2", "0")]
    told = {(entry["id"], entry["what"]): entry["reason"] for entry in journal}
    assert told["b", "left out"] == "the same sequence and label as a"
    assert "conflicts with d" in told["c", "left out"] and "conflicts with c" in told["d", "left out"]
    assert "renamed" in told["e_2", "changed"]
    assert told["f", "rejected"] == "2 residues, fewer than --min-length 3"


def test_equal_seeds_give_equal_outputs(preprocess: Preprocess, data: Path) -> None:
    args = ("--input", data / "simulated_windows.fasta", "--task", "site", "--cap", "100")
    first = preprocess(*args, "--seed", "1")
    assert preprocess(*args, "--seed", "1") == first
    assert preprocess(*args, "--seed", "2")[0] != first[0]


def test_bundled_data_are_what_the_script_makes(root: Path, data: Path, tmp_path: Path) -> None:
    script = root / "scripts" / "fixtures" / "make_test_data"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True)
    made = sorted(path.name for path in tmp_path.iterdir())
    bundled = {path.name for path in data.glob("simulated_*")}
    others = {name for name in bundled if "embeddings" in name}  # have scripts of their own, as these
    others |= {"simulated_odd.fasta", "simulated_held_out.tabular", "simulated_classes.h5"}
    others |= {"simulated_structures.zip", "simulated_contacts.tabular", "simulated_folds.fasta"}
    assert set(made) == bundled - others
    assert filecmp.cmpfiles(tmp_path, data, made, shallow=False)[0] == made
    assert all((tmp_path / name).stat().st_size < 200_000 for name in made)


def test_composition_does_not_give_the_bundled_sites_away(data: Path) -> None:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    records = list(read_fasta(data / "simulated_windows.fasta"))
    labels = np.array([record.header.endswith("1") for record in records])
    families = [record.id.split("|")[2].split("_")[0] for record in records]
    letters = "ACDEFGHIKLMNPQRSTVWY"
    one_hot = np.array([[letter == one for letter in record.sequence for one in letters] for record in records], float)
    composition = np.array([[record.sequence.count(one) for one in letters] for record in records], float)

    def auroc(features: np.ndarray) -> float:
        model = LogisticRegression(C=0.1, max_iter=1000)
        scores = cross_val_predict(model, features, labels, groups=families, cv=GroupKFold(5), method="predict_proba")[
            :, 1
        ]
        return float(roc_auc_score(labels, scores))

    assert auroc(composition) < 0.62
    assert auroc(one_hot) > 0.85


def test_a_table_with_positions_in_whole_proteins(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("id\tsequence\tlabel\tpos\na\tMKAYVALW\t1\tY4\nb\tGWY-VKL\t0\t5\nc\tGWYVKL\t0\t9\n")
    rows, journal, _, _ = preprocess(
        "--input", tmp_path / "t", "--labels", "column:label", "--task", "site", "--site", "column:pos",
        "--window", "3", "--split", "none",
    )
    assert [(row["id"], row["sequence"], row["position"], row["window"]) for row in rows] == [
        ("a", "AYV", "2", "3"),
        ("b", "YVK", "2", "3"),
    ]
    assert [row["protein_position"] for row in rows] == ["4", "5"]  # as given: the gap counts
    assert [entry["reason"] for entry in journal if entry["what"] == "rejected"] == [
        "position 9 lies outside the sequence of 6 residues"
    ]


def test_a_position_in_a_window_is_none_in_the_protein(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("id\tsequence\tlabel\tpos\na\tMKYVA\t1\t3\nb\tGWYVK\t0\t3\n")
    rows, _, _, _ = preprocess(
        "--input", tmp_path / "t", "--labels", "column:label", "--task", "site", "--site", "column:pos",
        "--window", "3", "--split", "none",
    )
    assert [(row["sequence"], row["position"], "protein_position" in row) for row in rows] == [
        ("KYV", "2", False),
        ("WYV", "2", False),
    ]


def test_policies_tell_sites_of_two_records_of_one_accession_apart(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(">sp|P1|N\nMKY#VAYLYYAAYCCYDDY\n>sp|P1|M\nAAY#VAYLYYGGYCCYDDYW\n")
    rows, journal, _, _ = preprocess(
        "--input", tmp_path / "f", "--labels", "hash", "--task", "site", "--window", "5", "--split", "none",
        "--ratio", "2", "--duplicate-sequences", "keep",
    )
    assert Counter(row["label"] for row in rows) == {"1": 2, "0": 4}
    left_out = {entry["id"] for entry in journal if entry["what"] == "left out"}
    assert len(left_out) == 8 and left_out.isdisjoint(row["id"] for row in rows)


def test_records_without_a_group_are_listed(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(
        "".join(f">p{n} LABEL={n % 2} {f'FAM=f{n % 3}' if n else ''}\nMKV{'W' * (n + 1)}\n" for n in range(9))
    )
    rows, journal, _, _ = preprocess("--input", tmp_path / "f", "--split", "group", "--group", "FAM=")
    assert [row["group"] for row in rows] == ["p0", *(f"f{n % 3}" for n in range(1, 9))]
    assert [(entry["id"], entry["what"]) for entry in journal] == [("p0", "changed")]


@pytest.mark.slow
def test_the_report_names_the_fast_search_that_made_the_clusters(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plm_preprocess
    from plm.data import homology

    monkeypatch.setattr(homology, "MANY", 20)
    told = []
    for split in ("homology", "protein"):
        outputs = [
            word
            for name in ("dataset", "rejected", "leakage", "report")
            for word in (f"--{name}", str(tmp_path / name))
        ]
        plm_preprocess.run(
            ["--input", str(data / "simulated_classes.fasta"), "--labels", "field:-1", "--split", split, *outputs]
        )
        told.append((tmp_path / "report").read_text())
    assert "How relatives were told: MMseqs2, cascaded clustering;" in told[0]
    assert "How relatives were told: MMseqs2, all against all;" in told[1]


def test_of_many_classes_the_commonest_are_counted_and_the_others_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    rows = ["id\tsequence\tkind\tpart"]
    for number in range(240):
        kind = f"c{number % 40:02d}" if number < 200 else "c07"
        letters = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 40))
        rows.append(f"p{number}\t{letters}\t{kind}\t{('train', 'valid', 'test')[number % 3]}")
    (tmp_path / "in.tsv").write_text("\n".join(rows) + "\n")
    outputs = {name: tmp_path / name for name in ("dataset", "rejected", "leakage", "report", "figure")}
    flags = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
    plm_preprocess.run([
        "--input", str(tmp_path / "in.tsv"), "--labels", "column:kind", "--id-column", "id", "--split", "given",
        "--split-from", "column:part", *flags,
    ])
    report = outputs["report"].read_text()
    header, _, *lines = [line for line in report.splitlines() if line.startswith("|")][:5]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    assert names[:3] == ["split", "sequences", "groups"] and names[-1] == "29 others" and "class c07" in names
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1].startswith("80 (") and sum(map(int, cells[3:])) == 80
