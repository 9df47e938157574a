"""The data side of distillation: nothing lost on disk, clusters apart, exact masks by content, rows of one taxon."""

from __future__ import annotations

import gzip
import random
import resource
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distillation_cases import LETTERS, VOCABULARY, Record, random_records, store_of, write_table
from hypothesis import given
from hypothesis import strategies as st
from plm.data import homology
from plm.errors import UserError
from plm.jobs.distill.batches import DistillationRows, plan
from plm.masked_lm.cluster_split import ClusterSplit, cluster_names, hold_out_clusters
from plm.masked_lm.corpus import IGNORED, Corpus
from plm.masked_lm.corpus_store import CorpusStore, load_corpus, open_corpus
from plm.masked_lm.masks import MaskPlan
from plm.model.families import FAMILIES

ESM2, PROTT5 = FAMILIES[0], FAMILIES[2]
T5_VOCABULARY = {f"▁{letter}": 3 + number for number, letter in enumerate("ALGVSREDTIPKFQNYMHWCX")} | {"</s>": 1}


def opened(path: Path | list[Path], tmp_path: Path, **more: str) -> CorpusStore:
    return open_corpus(path, tmp_path / "work", ESM2, VOCABULARY, **more)


def as_parquet(records: list[Record], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = dict(zip(("id", "taxon", "domain", "sequence"), map(list, zip(*records, strict=True)), strict=True))
    columns["taxon"] = [int(taxon) if taxon else None for taxon in columns["taxon"]]
    parquet.write_table(pa.table(columns), path, row_group_size=7)
    return path


def as_csv(records: list[Record], path: Path) -> Path:
    lines = ["sequence_id,taxon_id,domain,sequence", *(",".join(record) for record in records)]
    path.write_bytes(gzip.compress("\r\n".join(lines).encode(), mtime=0))
    return path


def as_fasta(records: list[Record], path: Path) -> Path:
    lines = [f">{i} OS=Some thing OX={taxon} domain={domain}\n{sequence}" for i, taxon, domain, sequence in records]
    path.write_text("\n".join(line.replace("OX= ", "") for line in lines))
    return path


@pytest.mark.parametrize("write", [write_table, as_parquet, as_csv, as_fasta], ids=lambda write: write.__name__)
def test_every_format_gives_the_same_corpus(write, tmp_path: Path) -> None:
    records = random_records(50, taxa=("9606", "83333", ""))
    store = opened(write(records, tmp_path / "corpus.dat"), tmp_path)
    assert len(store) == 50 and store.account == "50 records read: 50 distinct proteins"
    for index, (identity, taxon, domain, sequence) in enumerate(records):
        assert (store.identity(index), store.sequence(index)) == (identity, sequence)
        assert store.taxa[store.taxon[index]] == taxon
        assert store.domains[store.domain[index]] == (domain if write is not as_fasta or domain else "")
        assert store.residue_ids(index).tolist() == [VOCABULARY[letter] for letter in sequence]
    assert store.lengths(20).tolist() == [min(len(record[3]), 20) + 2 for record in records]
    assert list(store.sequences(np.array([3, 1]))) == [records[3][3], records[1][3]]


def test_a_store_is_the_corpus_in_memory(tmp_path: Path) -> None:
    records = random_records(40)
    store = store_of(records, tmp_path)
    memory = Corpus.build([record[3] for record in records], ESM2, VOCABULARY)
    assert np.allclose(store.frequencies(), memory.frequencies())
    some = np.array([5, 7, 30])
    assert np.allclose(
        store.frequencies(some), Corpus.build([records[i][3] for i in some], ESM2, VOCABULARY).frequencies()
    )
    for crop in (512, 10):
        one, asked = store.masked_row([1, 2, 3], crop=crop, rate=0.2, generator=np.random.default_rng(1))
        other, again = memory.masked_row([1, 2, 3], crop=crop, rate=0.2, generator=np.random.default_rng(1))
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(asked, again)


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    first, second = tmp_path / "a.fasta", tmp_path / "b.fasta"
    first.write_text(">a\nMKVU\n>b\nM*K\n>c OX=9606\nMKVX\n>dna\n" + "ACGT" * 10 + "\n>e\n\n")
    second.write_text(">a\nMKWL\n>a\nMKVX\n>a\nMKWY\n>z\nMLLL\n")
    store = opened([first, second], tmp_path)
    assert store.account == (
        "9 records read: 4 distinct proteins; 1 of them cleaned; 2 of them renamed because the id was used before; "
        "3 left out as unusable (first: b, 1 stop inside the sequence, the first at residue 2); "
        "2 left out as repetitions (first: c)"
    )
    assert [(store.identity(i), store.sequence(i)) for i in range(4)] == [
        ("a", "MKVX"), ("a_2", "MKWL"), ("a_3", "MKWY"), ("z", "MLLL"),
    ]
    assert store.rejected.read_text().splitlines() == [
        "id\tfile\tline\treason",
        "b\ta.fasta\t3\t1 stop inside the sequence, the first at residue 2",
        "c\ta.fasta\t5\tthe same sequence as a",
        "dna\ta.fasta\t7\tnucleotides (A, C, G, T, U, N and codes such as R and Y), not a protein: translate it",
        "e\ta.fasta\t9\tno residues",
        "a\tb.fasta\t3\tthe same sequence as a",
    ]


@given(st.lists(st.text("MKX", min_size=0, max_size=3), min_size=1, max_size=40))
def test_repetitions_anywhere_leave_the_first(tmp_path_factory: pytest.TempPathFactory, sequences: list[str]) -> None:
    folder = tmp_path_factory.mktemp("repetitions")
    records = [(f"p{number}", "1", "B", sequence) for number, sequence in enumerate(sequences)]
    expected = [record for n, record in enumerate(records) if record[3] and record[3] not in sequences[:n]]
    if not expected:
        with pytest.raises(UserError, match="no usable protein"):
            store_of(records, folder)
        return
    store = store_of(records, folder)
    found = [(store.identity(i), store.sequence(i)) for i in range(len(store))]
    assert found == [(identity, sequence) for identity, _, _, sequence in expected]
    assert len(store.rejected.read_text().splitlines()) == 1 + len(records) - len(expected)
    digests = {store.digests[i].tobytes() for i in range(len(store))}
    assert len(digests) == len(store)


def test_another_process_opens_the_same_store(tmp_path: Path) -> None:
    store = store_of(random_records(30), tmp_path)
    again = load_corpus(tmp_path, ESM2, VOCABULARY)
    assert again.digest() == store.digest() and again.account == store.account
    assert [again.identity(i) for i in range(30)] == [store.identity(i) for i in range(30)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,Species,taxon,sequence\na,mouse,1,MKV\nb,,2,MKL\n")
    store = opened(path, tmp_path, taxon_column="Species")
    assert [store.taxa[code] for code in store.taxon] == ["mouse", ""]
    with pytest.raises(UserError, match=r"There is no column 'genus' \(columns: id, Species, taxon, sequence\)"):
        opened(path, tmp_path, taxon_column="genus")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        (">a\nM*K\n", "no usable protein; the first: a, 1 stop inside"),
        (">dna\n" + "ACGT" * 30 + "\n", "All sequences are nucleotides"),
        ("id,peptides\na,MKV\n", "no '>'"),
        ("id\tsequence\na\tMKV\nb\n", "line 3"),
        ("id\tsequence\n\tMKV\n", "without an id"),
    ],
)
def test_bad_input_is_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        opened(path, tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """A limit on the size of files is the nearest to a full disk that every machine allows."""
    path = write_table(random_records(2000, longest=100), tmp_path / "corpus.tsv")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="cannot be laid out on disk: File too large"):
            opened(path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- clusters ---------------------------------------------------------------------------------------------------------


def relatives(families: int, members: int, domains: str = "BE") -> list[Record]:
    """Families of relatives (70 % identical)."""
    chance = random.Random(1)
    made = []
    for family in range(families):
        ancestor = chance.choices(LETTERS, k=chance.randint(80, 120))
        domain = domains[family % len(domains)]
        for member in range(members):
            sequence = "".join(chance.choice(LETTERS) if chance.random() < 0.3 else letter for letter in ancestor)
            made.append((f"f{family}m{member}", "1", domain, sequence))
    return made


def family_of(store: CorpusStore, indices: np.ndarray) -> set[str]:
    return {store.identity(index).split("m")[0] for index in indices.tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("many", [pytest.param(30_000, id="all against all"), 10])
def test_families_are_whole_and_nothing_held_out_has_a_relative(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homology, "MANY", many)
    store = store_of(relatives(20, 3), tmp_path)
    split = hold_out_clusters(store, share=0.3, identity=0.3, seed=1, threads=1, parts=2)
    valid, test = split.parts
    assert len(valid) and len(test) and not family_of(store, valid) & family_of(store, test)
    assert not family_of(store, split.held_out) & family_of(store, split.train)
    everyone = np.concatenate([split.train, split.held_out, split.set_aside])
    assert sorted(everyone.tolist()) == list(range(60))
    held, train = list(store.sequences(split.held_out)), list(store.sequences(split.train))
    assert not list(homology.mmseqs_search(held, train, 0.0, 0.5, 1))
    assert not list(homology.mmseqs_search(list(store.sequences(valid)), list(store.sequences(test)), 0.0, 0.5, 1))
    assert ("MMseqs2 linclust" in split.sentence) == (many == 10)
    split.save(tmp_path / "split.npz")
    again = ClusterSplit.load(tmp_path / "split.npz")
    assert again.sentence == split.sentence and np.array_equal(again.parts[1], test) and again.missing == ()


def with_clusters(records: list[Record], clusters: list[str], folder: Path) -> CorpusStore:
    path = folder / "clusters.tsv"
    rows = ["\t".join((*record, cluster)) for record, cluster in zip(records, clusters, strict=True)]
    path.write_text("\n".join(["id\ttaxon\tdomain\tsequence\tcluster", *rows]) + "\n")
    return open_corpus(path, folder, ESM2, VOCABULARY)


def test_every_domain_is_judged(tmp_path: Path) -> None:
    """A domain of 3 % of the clusters would often be left out by chance; one with a single cluster trains."""
    domains = ["B"] * 150 + ["E"] * 40 + ["A"] * 6 + ["V"]
    records = [
        (f"p{n}", "1", domain, sequence)
        for n, (domain, (_, _, _, sequence)) in enumerate(zip(domains, random_records(197, 3, 90), strict=True))
    ]
    clusters = [f"c{n // 2}" if domain != "V" else "virus" for n, domain in enumerate(domains)]
    store = with_clusters(records, clusters, tmp_path)
    assert store.cluster is not None
    for seed in range(4):
        split = hold_out_clusters(store, share=0.02, identity=0.3, seed=seed, threads=1, parts=2, exclude_related=False)
        for part in split.parts:
            assert {store.domains[store.domain[i]] for i in part} == {"A", "B", "E"}
            assert not {clusters[i] for i in part} & {clusters[i] for i in split.train}
        assert split.missing == () and split.clusters == (99, 6)
        names = cluster_names(store, split)
        assert [names[split.cluster[i]] for i in range(197)] == clusters


@pytest.mark.slow
def test_a_domain_whose_held_out_clusters_have_relatives_gives_further_ones(tmp_path: Path) -> None:
    """The cluster column parts every family, so most of what is held out has relatives and is set aside."""
    records = relatives(4, 8, "BBBE") + [(f"x{n}", "1", "E", record[3]) for n, record in enumerate(
        random_records(3, 9, 200)) if len(record[3]) > 60]
    store = with_clusters(records, [f"c{n}" for n in range(len(records))], tmp_path)
    split = hold_out_clusters(store, share=0.05, identity=0.3, seed=0, threads=1)
    held = {store.domains[store.domain[i]] for i in split.held_out}
    assert "E" in held and len(split.set_aside) > 0
    assert split.missing == ("B",) and "nothing could be held out of B" in split.sentence


def test_a_half_filled_cluster_column_is_not_believed(tmp_path: Path) -> None:
    records = random_records(6, longest=30)
    assert with_clusters(records, ["a", "a", "", "b", "b", "c"], tmp_path).cluster is None


def test_domains_count_only_if_asked(tmp_path: Path) -> None:
    """A split that the first version of plm_pretrain made: the order of clusters by name, shuffled by the seed."""
    records = random_records(20, longest=40)
    names = [f"c{number % 10}" for number in range(20)]
    store = with_clusters(records, names, tmp_path)
    split = hold_out_clusters(store, share=0.3, identity=0.3, seed=5, threads=1, exclude_related=False, by_domain=False)
    chosen = {sorted(set(names))[place] for place in np.random.default_rng(5).permutation(10)[:3]}
    assert {names[index] for index in split.held_out} == chosen


def test_a_subset_is_the_corpus_in_memory(tmp_path: Path) -> None:
    records = random_records(20)
    store = store_of(records, tmp_path)
    some = np.array([2, 3, 17])
    memory = Corpus.build([records[index][3] for index in some], ESM2, VOCABULARY)
    assert store.subset(some).digest() == memory.digest()
    assert np.array_equal(store.subset(some).letters, memory.letters)


@pytest.mark.slow
def test_one_family_alone_cannot_be_judged(tmp_path: Path) -> None:
    store = store_of(relatives(1, 5), tmp_path)
    with pytest.raises(UserError, match="relatives of each other"):
        hold_out_clusters(store, share=0.2, identity=0.3, seed=0, threads=1)
    two = store_of(relatives(2, 3), tmp_path / "two")
    with pytest.raises(UserError, match="only 2 families"):
        hold_out_clusters(two, share=0.2, identity=0.3, seed=0, threads=1, parts=2)


# --- masks ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.sampled_from([0.05, 0.15, 0.5]), st.integers(0, 3))
def test_masks_are_exact(tmp_path_factory: pytest.TempPathFactory, length: int, rate: float, number: int) -> None:
    sequence = "".join(random.Random(length).choices(LETTERS + "X", k=length))
    store = store_of([("a", "1", "B", sequence)], tmp_path_factory.mktemp("masks"))
    masks = MaskPlan(seed=1, sets=4, rate=rate, crop=50)
    ids, targets = masks.masked(store, 0, number)
    original = masks.intact(store, 0, number)
    assert len(ids) == len(targets) == len(original) == min(length, 50)
    assert "".join(map(str, original.tolist())) in "".join(map(str, store.residue_ids(0).tolist()))
    asked = targets != IGNORED
    known = int(np.isin(original, store.letters).sum())
    count = min(known, max(1, round(rate * len(original))))
    assert int(asked.sum()) == count
    assert np.array_equal(targets[asked], original[asked]) and np.array_equal(ids[~asked], original[~asked])
    hidden = int((ids == VOCABULARY["<mask>"]).sum())
    assert hidden == (round(0.8 * count) if count > 1 else count)
    assert np.isin(ids[asked & (ids != VOCABULARY["<mask>"])], store.letters).all()


def test_a_sequence_of_length_one(tmp_path: Path) -> None:
    store = store_of([("a", "1", "B", "M"), ("b", "1", "B", "K"), ("x", "1", "B", "X")], tmp_path)
    rows = DistillationRows(store, np.arange(3), 4, masks=MaskPlan(), budget=100)
    row = rows[0]
    assert sorted(row.members.tolist()) == [0, 1, 2]
    asked = (row.targets != IGNORED).sum()
    assert asked == 2, "an unknown residue is never predicted"
    one = next(n for n, member in enumerate(row.members.tolist()) if member == 0)
    ids = row.batch.input_ids.split(list(row.batch.lengths))[one].tolist()
    assert ids == [VOCABULARY[token] for token in ("<cls>", "<mask>", "<eos>")]


def test_masks_belong_to_the_content(tmp_path: Path) -> None:
    records = random_records(40, longest=120)
    store = store_of(records, tmp_path / "one")
    shuffled = store_of([("new", "7", "B", "MKVLAAW"), *reversed(records)], tmp_path / "other")
    masks = MaskPlan(seed=5, sets=3, crop=50)
    for index in range(40):
        other = 40 - index
        assert shuffled.sequence(other) == store.sequence(index)
        for number in range(3):
            for one, two in zip(masks.masked(store, index, number), masks.masked(shuffled, other, number), strict=True):
                assert np.array_equal(one, two)
    differing = [replace(masks, seed=6), replace(masks, rate=0.2), replace(masks, crop=49)]
    long = int(np.argmax(np.diff(store.offsets)))
    known = masks.masked(store, long, 0)[0].tolist()
    assert all(changed.masked(store, long, 0)[0].tolist() != known for changed in differing)
    assert masks.masked(store, long, 1)[0].tolist() != known
    assert replace(masks, sets=7).masked(store, long, 0)[0].tolist() == known


def test_another_family_hides_the_same_residues(tmp_path: Path) -> None:
    store = store_of(random_records(5, longest=80), tmp_path)
    t5 = store.for_family(PROTT5, T5_VOCABULARY)
    assert (t5.before, t5.after, t5.mask) == ((), (1,), -1) and np.array_equal(t5.digests, store.digests)
    masks = MaskPlan(crop=30)
    back = {T5_VOCABULARY[f"▁{letter}"]: VOCABULARY[letter] for letter in LETTERS + "X"}
    for index in range(5):
        assert [back[number] for number in masks.intact(t5, index, 0)] == masks.intact(store, index, 0).tolist()
        with pytest.raises(UserError, match="no mask token"):
            masks.masked(t5, index, 0)
    hideable = replace(t5, mask=99)
    ids, targets = masks.masked(hideable, 0, 0)
    expected, asked = masks.masked(store, 0, 0)
    assert np.array_equal(targets != IGNORED, asked != IGNORED)
    assert [back.get(number, VOCABULARY["<mask>"]) for number in ids.tolist()] == expected.tolist()


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.0}, {"sets": -1}, {"crop": 0}])
def test_a_senseless_mask_plan_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        MaskPlan(**wrong)  # type: ignore[arg-type]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["taxon", "none"])
@pytest.mark.parametrize("smallest", [None, 1, 20])
def test_an_epoch_takes_every_sequence_once(group, smallest: int | None, tmp_path: Path) -> None:
    store = store_of(random_records(300, taxa=("2", "4", "6", "7", "")), tmp_path)
    indices = np.arange(20, 290)
    sizes = store.lengths(40)
    orders = set()
    for epoch in range(3):
        rows = plan(store, indices, budget=250, crop=40, group=group, smallest=smallest, seed=1, epoch=epoch)
        assert sorted(int(i) for row in rows for i in row) == indices.tolist()
        assert all(sizes[row].sum() <= 250 or len(row) == 1 for row in rows)
        assert all((np.diff(sizes[row]) <= 0).all() for row in rows)
        if group == "taxon" and smallest != 1:
            assert all(len(set(store.taxon[row])) == 1 for row in rows)  # each taxon here fills rows
        assert sum(count for _, count in rows.pools.values()) == len(indices)
        orders.add(tuple(rows.members.tolist()))
    assert len(orders) == 3
    full = [sizes[row].sum() for row in rows]
    assert np.mean(full) > 0.75 * 250, "rows are full"
    spread = [sizes[row].max() - sizes[row].min() for row in rows]
    assert np.median(spread) <= 12, "rows hold similar lengths"


def test_small_taxa_are_pooled_by_the_stated_rule(tmp_path: Path) -> None:
    """Taxon 2: large. 4 and 6 (E): small, together enough. 8 (A) and 9 (no domain): too few, pooled with all the
    rest."""
    sizes = {("2", "E"): 40, ("4", "E"): 6, ("6", "E"): 6, ("8", "A"): 3, ("9", ""): 2, ("", ""): 4}
    chance = random.Random(0)
    records = [
        (f"t{taxon}n{number}", taxon, domain, "".join(chance.choices(LETTERS, k=18)))
        for (taxon, domain), count in sizes.items()
        for number in range(count)
    ]
    store = store_of(records, tmp_path)
    rows = plan(store, np.arange(len(store)), budget=100, crop=512, smallest=10)
    together: Counter[str] = Counter()
    for row in rows:
        together[" ".join(sorted({store.taxa[code] for code in store.taxon[row]}))] += len(row)
    assert sum(together.pop(names, 0) for names in ("4", "6", "4 6")) == 12
    assert together == {"2": 40, "": 4, "8 9": 5}
    assert rows.pools == {"taxon": (8, 40), "domain": (3, 12), "rest": (1, 5), "unknown": (1, 4)}
    by_tokens = plan(store, np.arange(len(store)), budget=121, crop=512)  # a row holds six of 20 tokens
    assert by_tokens.pools["taxon"][1] == 40 and by_tokens.pools["domain"] == (2, 12)
    alone = plan(store, np.arange(len(store)), budget=100, crop=512, smallest=1)
    assert set(alone.pools) == {"taxon", "unknown"}


def test_a_missing_taxon_everywhere_is_one_pool(tmp_path: Path) -> None:
    store = store_of(random_records(30, taxa=("",)), tmp_path)
    rows = plan(store, np.arange(30), budget=200, crop=60)
    assert set(rows.pools) == {"unknown"} and sorted(rows.members.tolist()) == list(range(30))


def same(one, other) -> bool:
    return (
        torch.equal(one.batch.input_ids, other.batch.input_ids)
        and torch.equal(one.targets, other.targets)
        and one.members.tolist() == other.members.tolist()
        and one.set_number == other.set_number
    )


def test_rows_cycle_through_the_sets_of_masks(tmp_path: Path) -> None:
    store = store_of(random_records(25), tmp_path)

    def sets(count: int) -> list[int]:
        rows = DistillationRows(store, np.arange(25), 60, masks=MaskPlan(sets=count), budget=300)
        return [rows[n].set_number for n in range(60)], [rows.epoch_of(n)[0] for n in range(60)]

    one, epochs = sets(1)
    assert set(one) == {0} and max(epochs) > 3
    two, epochs = sets(2)
    assert two == [epoch % 2 for epoch in epochs]
    fresh, epochs = sets(0)
    assert fresh == epochs


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_same_rows_for_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    store = store_of(random_records(60, longest=100), tmp_path)

    def rows() -> DistillationRows:
        return DistillationRows(store, np.arange(5, 60), 40, masks=MaskPlan(sets=2, crop=50), budget=200, seed=3)

    known = rows()
    loader = torch.utils.data.DataLoader(rows(), batch_size=None, num_workers=workers, shuffle=False)
    found = list(loader)
    assert len(found) == 40 and all(same(one, known[number]) for number, one in enumerate(found))
    assert same(rows()[33], known[33]), "a resumed run asks for a later row first"
    ranks = [[rows()[step * 2 + rank] for step in range(5)] for rank in range(2)]
    merged = [ranks[number % 2][number // 2] for number in range(10)]
    assert all(same(one, known[number]) for number, one in enumerate(merged))


def test_the_intact_row_follows_from_the_targets(tmp_path: Path) -> None:
    store = store_of(random_records(30, longest=90), tmp_path)
    masks = MaskPlan(sets=2, crop=40)
    row = DistillationRows(store, np.arange(30), 5, masks=masks, budget=300)[3]
    intact = masks.intact_row(store, row.members.tolist(), row.set_number)
    ids = torch.where(row.targets == IGNORED, row.batch.input_ids, row.targets)
    assert torch.equal(ids, intact.input_ids) and intact.layout == row.batch.layout
    assert torch.equal(intact.position_ids, row.batch.position_ids)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    store = store_of(random_records(3), tmp_path)
    with pytest.raises(UserError, match="no sequence to train on"):
        DistillationRows(store, np.zeros(0, np.int64), 5, masks=MaskPlan(), budget=300)


def simulated_store(count: int, taxa: int, folder: Path) -> CorpusStore:
    """A store of which only what planning reads is there."""
    chance = np.random.default_rng(0)
    base = store_of(random_records(3), folder)
    lengths = np.minimum(chance.gamma(2.0, 165.0, count).astype(np.int64) + 20, 2000)
    taxon = np.minimum(chance.zipf(1.3, count), taxa).astype(np.int32)
    return replace(
        base, offsets=np.concatenate([[0], np.cumsum(lengths)]), taxon=taxon, taxa=tuple(map(str, range(taxa + 1))),
        domain=(taxon % 4).astype(np.int32), domains=("", "A", "B", "E"),
    )


@pytest.mark.slow
def test_a_million_rows_with_many_small_taxa(tmp_path: Path) -> None:
    store = simulated_store(1_000_000, 50_000, tmp_path)
    started = time.process_time()
    rows = plan(store, np.arange(1_000_000), budget=8192, crop=512)
    took = time.process_time() - started
    assert np.array_equal(np.sort(rows.members), np.arange(1_000_000))
    sizes = store.lengths(512)
    full = np.add.reduceat(sizes[rows.members], np.sort(rows._starts))
    assert full.max() <= 8192 and full.mean() > 0.95 * 8192
    assert took < 60, "seconds are expected; a minute means a loop over sequences"
    assert rows.pools["domain"][1] > 50_000 and rows.pools["taxon"][1] > 500_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_memory_hardly_grows_with_the_corpus(kind: str, tmp_path: Path) -> None:
    """100,000 proteins of 48 million residues, which as Python strings would take some 60 MiB each with their ids.

    ``scripts/benchmarks/bench_corpus`` measures a million.
    """
    from benchmarks.corpus_command import in_a_process, write

    path = write(100_000, kind, tmp_path / f"simulated.{kind}")
    found = in_a_process(path, tmp_path)
    assert found["proteins"] == 98_000
    allowed = 180 if kind == "parquet" else 100  # with the library that reads it
    assert found["MiB after plan"] - found["MiB at the start"] < allowed
    mapped = found["residues"] / 2**20
    assert found["MiB after count"] - found["MiB at the start"] < allowed + mapped + 60


@pytest.mark.realdata
def test_a_real_corpus_with_its_taxa(shared_data: Path, tmp_path: Path) -> None:
    store = opened(shared_data / "corpus" / "corpus.csv.gz", tmp_path)
    counts = np.bincount(store.taxon)
    assert len(store) == 95_720 and len(store.taxa) == 16 and counts[0] == 17_320
    assert 43e6 < store.residues < 45e6 and counts[1:].min() >= 800
    rows = plan(store, np.arange(len(store)), budget=4096, crop=256)
    assert sum(count for _, count in rows.pools.values()) == 95_720
    assert rows.pools["unknown"][1] == 17_320 and set(rows.pools) == {"taxon", "unknown"}
