"""Figures, counts and names of metrics as every table and report writes them."""

from __future__ import annotations


def counted(count: int, what: str, many: str = "") -> str:
    """``1 row``, ``2 rows``, ``1,000 classes`` (with ``many`` given)."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def number(value: float, digits: int = 3) -> str:
    """A figure as the reports write it: fixed digits, "undefined" for NaN."""
    return "undefined" if value != value else f"{value:.{digits}f}"

METRIC_NAMES = {
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
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
