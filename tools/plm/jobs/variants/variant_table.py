"""The user's table of variants: which columns say what, which protein each row means, and whether it can be scored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.identifiers import accession
from plm.data.own_tables import refuse_other
from plm.data.protein_store import ProteinStore
from plm.data.proteins import read_proteins
from plm.data.tables import column_place, find_column, stream_table
from plm.data.text_files import first_line, is_parquet, raw_lines
from plm.errors import UserError
from plm.jobs.variants.notation import Parsed, Substitution, parse

VARIANT_COLUMNS = (
    "variant", "variants", "mutation", "mutations", "mutant", "substitution", "substitutions", "hgvs_p", "hgvsp",
    "hgvs.p", "hgvsp_short", "protein_change", "protein_variant", "aa_change", "aachange", "aa_substitution",
    "amino_acid_change", "ann[*].hgvs_p", "ann[0].hgvs_p", "hgvs", "change",
)
PROTEIN_COLUMNS = (
    "protein", "protein_id", "accession", "uniprot", "uniprot_id", "uniprotkb", "swissprot", "ensp", "refseq",
    "refseq_protein", "gene", "gene_name", "gene_symbol", "symbol", "hugo_symbol", "locus_tag", "locus", "gene_id",
)
PERHAPS_PROTEIN = ("id", "name", "entry", "sequence_id", "header", "#chrom", "chrom", "feature")
"""Columns that may as well name the variants: they count where one of their values names a protein."""
POSITION_COLUMNS = ("position", "pos", "protein_position", "aa_position", "residue")
WILD_TYPE_COLUMNS = ("wild_type", "wildtype", "wt", "wt_aa", "ref", "reference", "ref_aa", "aa_ref")
MUTANT_COLUMNS = ("substitution", "mutant", "mut", "mut_aa", "mt", "alt", "alt_aa", "aa_alt")
ONLY = "none"
"""In place of a column: all rows are variants of the only protein."""
_HGVS = re.compile(r"(^|:)p\.[\[(]*[A-Za-z]")
_SAMPLED = 100
_VERSION = re.compile(r"\.[0-9]{1,4}$")
_GENE = ("gn", "gene")
_GENE_IN_HEADER = re.compile(r"(?<![^\s\[])(?:GN=|gene=|gene_symbol:|gene:|locus_tag=)([^\s\]]+)")
"""UniProt's GN=TP53, RefSeq's [gene=TP53] and [locus_tag=b0001], Ensembl's gene_symbol:TP53 and gene:ENSG0001.2."""


@dataclass(slots=True)
class VariantRow:
    """One row of the table.

    Attributes:
        line: 1-based line in the file.
        substitutions: What is substituted, ascending; empty if it could not be read.
        record: Number of the protein's record; -1 if none is meant.
        reason: Why the row is rejected; empty if it is scored.
        remark: What the user should know of a row that is scored.
    """

    line: int
    substitutions: tuple[Substitution, ...]
    record: int = -1
    reason: str = ""
    remark: str = ""

    @property
    def scored(self) -> bool:
        return not self.reason

    @property
    def places(self) -> tuple[int, ...]:
        """0-based positions in the protein."""
        return tuple(one.position - 1 for one in self.substitutions)


@dataclass(frozen=True)
class VariantColumns:
    """Which columns of a table say what; 0-based.

    Attributes:
        variant: The column with the notation, or None where three columns hold its parts.
        parts: Wild type, position and mutant in columns of their own.
        proteins: Columns that may name the protein, the surest first.
        sure: How many of them can mean nothing else.
    """

    variant: int | None
    parts: tuple[int, int, int] | None
    proteins: tuple[int, ...]
    sure: int

    def notation(self, fields: Sequence[str]) -> str:
        """The variant of a row in one word."""
        if self.variant is not None:
            return fields[self.variant]
        assert self.parts is not None
        return "".join(fields[place] for place in self.parts)


@dataclass
class VariantTable:
    """A table of variants, read once; its other columns are read again when they are written.

    Attributes:
        path: The file without lines of VCF's header.
        name: Its name in messages.
        header: Column names.
        rows: One a row of the file, in its order.
        measured: Column of the measured values, or None.
        values: Measured value of each row; NaN where there is none. Empty without such a column.
        told: How the columns were understood, for the log.
    """

    path: Path
    name: str
    header: tuple[str, ...]
    rows: list[VariantRow]
    measured: int | None = None
    values: list[float] = field(default_factory=list)
    told: str = ""

    def fields(self) -> Iterator[tuple[VariantRow, tuple[str, ...]]]:
        """Each row with what stands in the file."""
        for row, (_, fields) in zip(self.rows, stream_table(self.path)[1], strict=True):
            yield row, fields


def read_variants(
    path: Path, proteins: ProteinStore, source: Path, scratch: Path, *, variant_column: str = "",
    protein_column: str = "", measured: str = "",
) -> VariantTable:
    """Reads a table of variants and finds the protein of each row.

    Args:
        path: Table with a header, plain or gzipped; lines of VCF's header (``##``) are passed over.
        proteins: Proteins of the input.
        source: Their file, whose headers may name genes (``GN=``).
        scratch: Folder for a copy without VCF's header.
        variant_column: Column of the variants by name or number; empty: the usual names.
        protein_column: Column of the proteins; empty: the usual names, or what stands before ``:p.``, or the only
            protein there is; :data:`ONLY`: the only protein, whatever the table calls it.
        measured: Column of measured values; empty: none.

    Raises:
        UserError: No column of variants, a column that is not there, no row that can be scored, or measured values of
            which none is a number.
    """
    only = protein_column == ONLY
    if only and len(proteins.ids) > 1:
        raise UserError(
            f"There are {len(proteins.ids)} proteins, so each row must name its own", where="--protein-column none",
            fix="Give the column that names the proteins",
        )
    table = _without_vcf_header(path, scratch)
    header, lines = stream_table(table)
    sample = [fields for _, fields in islice(stream_table(table)[1], _SAMPLED)]
    columns = _columns(header, sample, path.name, variant_column, "" if only else protein_column)
    if only:
        columns = replace(columns, proteins=(), sure=0)
    place = column_place(header, measured, "--measured", path.name) if measured else None
    parsed: list[Parsed] = []
    asked: list[tuple[str, ...]] = []
    made = VariantTable(table, path.name, header, [], place)
    for line, fields in lines:
        one = parse(columns.notation(fields))
        parsed.append(one)
        asked.append(tuple(fields[column] for column in columns.proteins))
        made.rows.append(VariantRow(line, one.substitutions, reason=one.reason, remark=one.remark))
        if place is not None:
            made.values.append(_number(fields[place]))
    if place is not None and not any(value == value for value in made.values):
        raise UserError(
            f"The column {header[place]!r} holds no number", where=f"{path.name}, --measured",
            fix="Name the column of the measured values",
        )
    called = {name for row in asked for name in row} | {name for one in parsed for name in one.names}
    names = ProteinNames(proteins, source, called)
    wanted = _naming_columns(columns, asked, names, bool(protein_column))
    for row, one, cells in zip(made.rows, parsed, asked, strict=True):
        given = [cells[number] for number in wanted if cells[number]]
        row.record, reason, remark = names.first([] if only else [*given, *one.names])
        row.reason = row.reason or reason or _disagreement(row, proteins)
        row.remark = "; ".join(filter(None, (row.remark, remark)))
    variant = "wild type, position and substitution" if columns.variant is None else repr(header[columns.variant])
    told = "their proteins in " + ", ".join(repr(header[columns.proteins[number]]) for number in wanted)
    if not wanted:
        before = not only and any(one.names for one in parsed)
        told = "their proteins before them" if before else "all of the only protein"
    made.told = f"variants stand in {variant}, {told}"
    if not any(row.scored for row in made.rows):
        raise UserError(
            f"None of {len(made.rows)} variants can be scored; the first: {made.rows[0].reason}",
            where=f"{path.name}, line {made.rows[0].line}",
            fix="Compare ids, letters and positions (from 1) with the proteins"
            + (" (--protein-column none: all rows mean the only protein)" if len(proteins.ids) == 1 else ""),
        )
    return made


class ProteinNames:
    """Finds the protein that a name means: by its id, accession, entry name, id without version, or gene.

    Args:
        proteins: Proteins of the input.
        source: Their file.
        asked: All names that will be looked for.
    """

    def __init__(self, proteins: ProteinStore, source: Path, asked: set[str]) -> None:
        self._proteins = proteins
        wanted = {form for name in asked for form in _forms(name)}
        self._exact: dict[str, int] = {}
        self._forms: dict[str, list[int]] = {}
        genes = _genes(source, wanted)
        for record in range(len(proteins.ids)):
            name = proteins.ids[record]
            if name in wanted:
                self._exact.setdefault(name, record)
            for form in dict.fromkeys([*_forms(name), *genes.get(record, ())]):
                if form in wanted:
                    self._forms.setdefault(form, []).append(record)

    def find(self, name: str) -> tuple[int, str]:
        """Record of a name, or -1 and why there is none."""
        if name in self._exact:
            return self._exact[name], ""
        for form in _forms(name):
            records = self._forms.get(form, [])
            sequences = {int(self._proteins.unique[record]) for record in records}
            if len(sequences) == 1:
                return records[0], ""
            if records:
                return -1, f"{_short(name)} names {len(records)} of the proteins"
        return -1, f"no protein is called {_short(name)}"

    def first(self, names: Sequence[str]) -> tuple[int, str, str]:
        """The first of several names that is a protein's; without names the only protein there is.

        Returns:
            Its record, or -1 and why there is none, and what the user should know of a name that fits.
        """
        if not names:
            if len(self._proteins.ids) == 1:
                return 0, "", ""
            return -1, "no protein is named, and there are several", ""
        reasons = []
        for name in names:
            record, reason = self.find(name)
            if record >= 0:
                return record, "", self._other_version(name, record)
            reasons.append(reason)
        return -1, reasons[0], ""

    def _other_version(self, name: str, record: int) -> str:
        """A remark where a name was found without its version, and the protein's is another one."""
        given, own = (_VERSION.search(accession(one)) for one in (name, self._proteins.ids[record]))
        if given is None or own is None or given[0] == own[0]:
            return ""
        return f"the table means version {given[0][1:]} of the protein, which is version {own[0][1:]}"


def _forms(name: str) -> list[str]:
    """A name and what it may be shortened to, the surest first."""
    short = accession(name)
    parts = [part for part in name.split("|") if part][1:] if "|" in name else []
    return list(dict.fromkeys(filter(None, [name, short, *parts, _VERSION.sub("", short)])))


def _genes(source: Path, wanted: set[str]) -> Mapping[int, list[str]]:
    """What is asked for of the names of each record's gene."""
    genes: dict[int, list[str]] = {}
    for record, one in enumerate(read_proteins(source, wanted=(_GENE,))):
        called = [*_GENE_IN_HEADER.findall(one.header), one.columns.get(_GENE[0], "")]
        if mine := [form for gene in called for form in _forms(gene) if form in wanted]:
            genes[record] = mine
    return genes


def _without_vcf_header(path: Path, scratch: Path) -> Path:
    if is_parquet(path) or not first_line(path).startswith("##"):
        return path
    copy = scratch / path.name.removesuffix(".gz")
    with copy.open("w", encoding="latin-1", newline="\n") as handle:
        for _, line in raw_lines(path):
            handle.write("\n" if line.startswith("##") else line + "\n")  # lines keep their numbers
    return copy


def _columns(
    header: Sequence[str], sample: Sequence[Sequence[str]], name: str, variant: str, protein: str
) -> VariantColumns:
    place = column_place(header, variant, "--variant-column", name) if variant else None
    parts = None
    if place is None:
        place = _notation_column(header, sample)
    if place is None:
        places = [find_column(header, names) for names in (WILD_TYPE_COLUMNS, POSITION_COLUMNS, MUTANT_COLUMNS)]
        if None not in places:
            parts = (places[0] or 0, places[1] or 0, places[2] or 0)
        else:
            place = find_column(header, VARIANT_COLUMNS)
    if place is None and parts is None:
        refuse_other(header, name, "variants")
        raise UserError(
            f"No column of variants is there (columns: {', '.join(header[:12])})"[:300], where=name,
            fix="Name the column variant, or give its name with --variant-column",
        )
    if protein:
        return VariantColumns(place, parts, (column_place(header, protein, "--protein-column", name),), 1)
    lowered = [column.lower() for column in header]
    sure = [lowered.index(one) for one in PROTEIN_COLUMNS if one in lowered]
    perhaps = [lowered.index(one) for one in PERHAPS_PROTEIN if one in lowered]
    return VariantColumns(place, parts, (*sure, *perhaps), len(sure))


def _notation_column(header: Sequence[str], sample: Sequence[Sequence[str]]) -> int | None:
    """The column with the notation by its name, else the first with HGVS of proteins in half its first rows."""
    place = find_column(header, [one for one in VARIANT_COLUMNS if one not in MUTANT_COLUMNS])
    if place is not None:
        return place
    shares = [sum(_HGVS.search(row[column]) is not None for row in sample) for column in range(len(header))]
    return next((column for column, share in enumerate(shares) if 2 * share > len(sample)), None)


def _naming_columns(
    columns: VariantColumns, asked: Sequence[Sequence[str]], names: ProteinNames, given: bool
) -> list[int]:
    """Which of the columns that may name proteins do."""
    naming = []
    for number in range(len(columns.proteins)):
        cells = {row[number] for row in asked if row[number]}
        if given or number < columns.sure or any(names.find(cell)[0] >= 0 for cell in cells):
            naming.append(number)
    # A sure column none of whose values is known still stands for the protein where no other does.
    known = [n for n in naming if any(names.find(cell)[0] >= 0 for cell in {row[n] for row in asked if row[n]})]
    return known or naming[:1]


def _disagreement(row: VariantRow, proteins: ProteinStore) -> str:
    """Why the substitutions of a row do not fit its protein; empty if they do."""
    number = int(proteins.unique[row.record])
    if number < 0:
        return f"its protein cannot be used: {proteins.details.get(row.record, '')}"
    sequence = proteins.sequences[number]
    for one in row.substitutions:
        if one.position > len(sequence):
            return f"{one}: the protein ends at residue {len(sequence)}"
        letter = sequence[one.position - 1]
        if letter not in STANDARD_RESIDUES:
            return f"{one}: the protein has {letter} there, none of the twenty amino acids"
        if letter != one.wild_type:
            return f"{one}: the protein has {letter} at {one.position}, not {one.wild_type}"
    return ""


def _number(text: str) -> float:
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return float("nan")
    return value if abs(value) != float("inf") else float("nan")


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:39] + "…")
