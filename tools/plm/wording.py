"""Figures, counts and names of metrics as every table and report writes them."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, what: str, many: str = "") -> str:
    """``1 row``, ``2 rows``, ``1,000 classes`` (with ``many`` given)."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def number(value: float, digits: int = 3) -> str:
    """A figure as the reports write it: fixed digits, "undefined" for NaN."""
    return "undefined" if value != value else f"{value:.{digits}f}"


def several_called(classes: Sequence[str], threshold: float | tuple[float, ...]) -> str:
    """How classes are called where there are more than two; empty of two, which one threshold parts.

    Args:
        classes: Names of the classes, as they are to be shown.
        threshold: One for each class, or a number where the likeliest is called.
    """
    if len(classes) < 3:
        return ""
    if not isinstance(threshold, tuple) or len(set(threshold)) == 1:
        return "The class called is the likeliest"
    ranked = sorted(zip(threshold, classes, strict=True))
    (low, rarest), (high, commonest) = ranked[0], ranked[-1]
    return (
        "The class called is not always the likeliest, so that rare classes are called, too: each class has a "
        f"threshold, from {low:.3g} ({rarest}) to {high:.3g} ({commonest}), chosen on rows that were not learned "
        "from, and called is the class whose probability is the largest multiple of its threshold"
    )


METRIC_NAMES = {
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "top10_accuracy": "Top-10 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "rmse": "RMSE",
    "mae": "Mean absolute error",
    "r2": "R²",
    "train_loss": "Training loss",
    "valid_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "perplexity": "Perplexity",
    "logit_mse": "Logit difference (MSE)",
    "kl": "KL divergence",
    "kernel": "Kernel alignment (MSE)",
    "hidden": "Hidden-state cosine distance",
    "mlm": "Masked language modelling",
}


def metric_name(key: str) -> str:
    """A metric's name as people write it; ``valid_`` in front becomes words."""
    if key in METRIC_NAMES:
        return METRIC_NAMES[key]
    if key.startswith("valid_"):
        return f"{metric_name(key[6:])} (validation)"
    if key.startswith("macro_"):
        name = metric_name(key[6:])
        return f"Macro {name if name[1:2].isupper() or name[1:2].isdigit() else name.lower()}"
    return key.replace("_", " ").capitalize()
