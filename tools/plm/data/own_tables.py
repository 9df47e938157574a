"""The tables that the suite writes, known by their headers, so that one given in another's place is named.

A table is told by columns that no other table has together; what else a header holds does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from plm.errors import UserError


@dataclass(frozen=True, slots=True)
class OwnTable:
    """A table of the suite.

    Attributes:
        kind: What it can stand for, such as ``dataset`` or ``predictions``; tables that are only for people are
            ``told``.
        name: Name of the table in messages.
        tool: The stage that writes it, or several.
        columns: Columns by which the table is recognised: all of them are there.
        prefixed: Beginnings of column names of which each must begin at least one.
    """

    kind: str
    name: str
    tool: str
    columns: tuple[str, ...]
    prefixed: tuple[str, ...] = ()

    def fits(self, header: Collection[str]) -> bool:
        """Whether a header has all the columns."""
        return all(name in header for name in self.columns) and all(
            any(name.startswith(start) for name in header) for start in self.prefixed
        )


OWN_TABLES: tuple[OwnTable, ...] = (
    OwnTable("told", "status table", "plm_embed", ("id", "line", "length", "encoded", "windows", "duplicate_of",
             "status")),
    OwnTable("told", "status table", "plm_predict", ("id", "line", "length", "windows", "duplicate_of", "status",
             "details")),
    OwnTable("told", "status table", "plm_classify_sites", ("id", "line", "length", "candidates", "called", "status")),
    OwnTable("told", "table of substitutions", "plm_classify_sites or plm_predict", ("id", "mutated", "wild_type",
             "substitution", "score", "unmutated", "change")),
    OwnTable("told", "table of reasons", "plm_classify_sites or plm_predict", ("id", "speaks_for", "speaks_against",
             "why")),
    OwnTable("told", "status table", "plm_train_classifier", ("source", "file", "line", "id", "position", "label",
             "status")),
    OwnTable("told", "table of rejected and changed records", "plm_preprocess", ("id", "what", "reason")),
    OwnTable("told", "table of records not used", "plm_distill", ("id", "file", "line", "reason")),
    OwnTable("told", "leakage table", "plm_preprocess", ("id", "split", "nearest", "identity", "same_protein",
             "same_group", "leaks")),
    OwnTable("told", "table of log-probabilities", "plm_embed", ("id", "position", "residue", "entropy", "A",
             "Y")),
    OwnTable("told", "table of pseudo-perplexity", "plm_embed", ("id", "length", "scored", "pseudo_perplexity")),
    OwnTable("told", "table of contacts", "plm_contacts", ("id", "i", "j", "separation", "probability", "verdict")),
    OwnTable("told", "status table", "plm_contacts", ("id", "structure", "length", "unseen_pairs", "part", "status")),
    OwnTable("told", "precision of proteins", "plm_contacts", ("id", "part", "relatives", "method", "precision_L_6")),
    OwnTable("told", "mean precision of contacts", "plm_contacts", ("method", "part", "separation", "top", "precision",
             "families")),
    OwnTable("told", "table of contacts", "plm_embed", ("id", "i", "j", "probability")),
    OwnTable("told", "table of parts", "plm_split_fasta", ("part", "records", "residues", "longest", "first_id")),
    OwnTable("told", "table of scores", "plm_evaluate or plm_train_classifier", ("model", "split", "stratum", "metric",
             "class", "value")),
    OwnTable("told", "comparison with baselines", "plm_evaluate", ("first", "second", "metric", "difference",
             "p_value")),
    OwnTable("told", "training history", "plm_finetune", ("step", "epoch", "train_loss", "valid_loss",
             "learning_rate")),
    OwnTable("told", "training history", "plm_train_classifier", ("epoch", "train_loss", "kept", "seed", "fold")),
    OwnTable("told", "training history", "plm_pretrain or plm_distill", ("step", "epoch", "tokens", "train_loss")),
    OwnTable("told", "table of trials of a search", "plm_train_classifier", ("fold", "trial", "state", "value")),
    OwnTable("told", "table of scored variants", "plm_variants", ("scored_variant", "site_frequency", "status",
             "details")),
    OwnTable("told", "table of scored substitutions", "plm_variants", ("id", "position", "wild_type", "substitution",
             "variant", "score", "site_frequency")),
    OwnTable("told", "tolerance of positions", "plm_variants", ("id", "position", "residue", "substitutions",
             "tolerance")),
    OwnTable("told", "status table", "plm_variants", ("id", "line", "length", "variants", "scored", "status")),
    OwnTable("told", "scores of the map", "plm_project", ("space", "set", "measure", "part", "value", "expected")),
    OwnTable("told", "table of coordinates", "plm_project", ("id", "set", "label", "nearest_reference", "distance",
             "outside")),
    OwnTable("told", "table of coordinates", "plm_project", ("id", "set", "label"), ("pca_1",)),
    OwnTable("told", "table of coordinates", "plm_project", ("id", "set", "label"), ("umap_1",)),
    OwnTable("told", "table of coordinates", "plm_project", ("id", "set", "label"), ("tsne_1",)),
    OwnTable("told", "table of components", "plm_compare_embeddings", ("component", "mean", "sd", "minimum", "maximum",
             "constant")),
    OwnTable("told", "table of checks", "plm_compare_embeddings", ("set", "check", "part", "result", "value")),
    OwnTable("told", "table of proteins", "plm_compare_embeddings", ("id", "set", "label", "status", "norm",
             "norm_outlier")),
    OwnTable("told", "table of masked residues", "plm_compare_models", ("model", "kind", "domain", "measure", "value",
             "proteins")),
    OwnTable("told", "table of agreement", "plm_compare_models", ("model", "reference", "domain", "measure", "value")),
    OwnTable("told", "table of proteins", "plm_compare_models", ("id", "domain", "status", "model", "masked_residues",
             "perplexity")),
    OwnTable("told", "table of probes", "plm_compare_models", ("probe", "level", "target", "model", "retention")),
    OwnTable("told", "table of cost", "plm_compare_models", ("model", "parameters", "weights_mib",
             "residues_per_second")),
    OwnTable("told", "table of before and after", "plm_compress_classifier", ("form", "head_bytes", "file_bytes",
             "weights")),
    OwnTable("predictions of residues", "table of predicted residues", "plm_predict", ("id", "protein", "position",
             "residue", "label", "call", "model"), ("p_",)),
    OwnTable("residue strings", "table of predictions of a residue task", "plm_predict", ("id", "length", "prediction",
             "confidence", "model")),
    OwnTable("predictions", "predictions table",
             "plm_finetune, plm_train_classifier, plm_predict or plm_classify_sites", ("id", "call", "model"), ("p_",)),
    OwnTable("predictions", "predictions table",
             "plm_finetune, plm_train_classifier, plm_predict or plm_classify_sites", ("id", "value", "model")),
    OwnTable("dataset", "dataset table", "plm_preprocess", ("id", "sequence", "label", "split")),
    OwnTable("dataset", "dataset table", "plm_preprocess", ("id", "sequence", "label", "fold")),
    OwnTable("dataset", "dataset table", "plm_preprocess", ("id", "sequence", "protein", "group")),
    OwnTable("dataset", "table of proteins of test families", "plm_distill", ("id", "sequence", "taxon", "domain",
             "cluster")),
)
"""The first that fits is it, so those with more columns come first."""

WANTED = {
    "embeddings": "the embeddings file of plm_embed (its output Embeddings)",
    "dataset": "the dataset table of plm_preprocess (its output Data set)",
    "predictions": "the predictions table of plm_finetune, plm_train_classifier, plm_predict or plm_classify_sites",
    "proteins": "protein sequences: FASTA, or a table with the columns id and sequence",
    "labels": "a table with ids and labels",
    "variants": "a table with a column of variants, such as A23V or p.Ala23Val",
    "sites": "a list of sites: accession, 1-based position and perhaps a label",
}
"""What a stage wants, in words."""


def recognise(header: Sequence[str]) -> OwnTable | None:
    """The table of the suite that has this header, if one has."""
    names = {name.strip().lower() if name.strip().lower() in _LOWERED else name.strip() for name in header}
    return next((one for one in OWN_TABLES if one.fits(names)), None)


_LOWERED = frozenset({"id", "sequence", "label"})


def refuse_other(header: Sequence[str], name: str, wanted: str, kinds: Collection[str] = ()) -> None:
    """Refuses a table of the suite that stands where another is wanted.

    Args:
        header: Column names of the table.
        name: File name in messages.
        wanted: Key of :data:`WANTED`: the table that should stand here.
        kinds: Kinds of tables that are right there; a table that is none of the suite's always is.

    Raises:
        UserError: Names what was given, what is wanted, and where that comes from.
    """
    table = recognise(header)
    if table is None or table.kind in kinds:
        return
    raise UserError(
        f"This is the {table.name} of {table.tool}, not {WANTED[wanted].split(' (')[0]}", where=name,
        fix=f"Give {WANTED[wanted]}",
    )
