"""Figures are PNGs of the size promised, whatever the data look like."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from plm import wording
from plm.telling import figures, residue_groups
from plm.telling.figures import Curve


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def history(seeds: int = 1, folds: int = 1) -> pd.DataFrame:
    epoch = np.arange(1, 11)
    runs = [
        pd.DataFrame(
            {
                "step": epoch * 20, "epoch": epoch, "train_loss": np.exp(-epoch / 5), "valid_loss": np.exp(-epoch / 7),
                "valid_mcc": 1 - np.exp(-epoch / 4), "learning_rate": 1e-3, "seed": seed, "fold": fold,
            }
        )
        for seed in range(seeds)
        for fold in range(folds)
    ]
    return pd.concat(runs)


@pytest.mark.parametrize(("seeds", "folds"), [(1, 1), (3, 1), (2, 5)])
def test_history(tmp_path: Path, seeds: int, folds: int) -> None:
    figures.history_figure(history(seeds, folds), tmp_path / "h.png")
    width, height = size(tmp_path / "h.png")
    assert width == 1380 and height == 540  # a panel of losses and one of MCC, 150 dpi


def test_history_of_strings_with_gaps(tmp_path: Path) -> None:
    table = pd.DataFrame({"step": ["1", "2", "3"], "train_loss": ["2.0", "1.5", "1.2"], "valid_loss": ["", "", "1.9"]})
    figures.history_figure(table, tmp_path / "h.png")
    assert size(tmp_path / "h.png")[0] == 900


def test_history_without_content_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        figures.history_figure(history().iloc[:0], tmp_path / "h.png")
    with pytest.raises(ValueError, match="no losses"):
        figures.history_figure(history()[["step", "learning_rate"]], tmp_path / "h.png")


def test_lines_of_the_history_belong_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[figures.Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    figures.history_figure(history(seeds=3), tmp_path / "h.png")
    loss, mcc = kept[0].axes
    assert len(loss.lines) == 6 and len(mcc.lines) == 3
    assert [text.get_text() for text in mcc.get_legend().get_texts()] == ["seed 0", "seed 1", "seed 2"]
    assert len({line.get_color() for line in mcc.lines}) == 3


def test_curves(tmp_path: Path) -> None:
    line = np.linspace(0, 1, 5)
    curves = [Curve(f"model {i}", line, np.sqrt(line), faint=i > 0) for i in range(9)]
    figures.roc_figure(curves, tmp_path / "roc.png")
    figures.precision_recall_figure(curves, 0.3, tmp_path / "pr.png")
    figures.precision_recall_figure(curves, None, tmp_path / "pr2.png")
    assert size(tmp_path / "roc.png") == size(tmp_path / "pr.png") == (900, 840)


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_confusion(tmp_path: Path, classes: int) -> None:
    table = np.arange(classes * classes).reshape(classes, classes)
    table[0] = 0  # a class without rows
    names = [f"a class with a long name {i}" for i in range(classes)]
    figures.confusion_figure(
        [("model", table), ("other", table)][: 2 if classes <= 4 else 1], names, tmp_path / "c.png"
    )
    assert size(tmp_path / "c.png")[0] > 600


def test_calibration_scores_and_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    figures.calibration_figure(
        [("m", np.array([0.2, 0.9]), np.array([0.1, 1.0]), np.array([5, 7]))], tmp_path / "a.png"
    )
    figures.scores_figure([("m", [("0", rng.random(20)), ("1", np.array([]))])] * 3, tmp_path / "b.png", binary=False)
    figures.scatter_figure([("m", rng.random(20), rng.random(20))] * 3, tmp_path / "c.png")
    figures.residuals_figure([("m", rng.random(20), rng.random(20))], tmp_path / "d.png")
    for name in "abcd":
        assert size(tmp_path / f"{name}.png")[0] >= 900


def test_names_and_colours() -> None:
    assert wording.metric_name("valid_auroc") == "AUROC (validation)"
    assert wording.metric_name("macro_f1") == "Macro F1" and wording.metric_name("macro_precision") == "Macro precision"
    assert wording.metric_name("my_score") == "My score"
    assert len({(figures.colour(i), figures.line_style(i)) for i in range(28)}) == 28
    assert figures.shortened("abcdef", 4) == "abc…"


# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3).tolist(),
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def seen(colour: str, deficiency: str) -> np.ndarray:
    """(3,) CIE L*a*b* of a colour as somebody with a colour-vision deficiency sees it."""
    shown = np.array(to_rgb(colour))
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def too_alike(colours: Iterable[str], deficiency: str, least: float = 15.0) -> list[tuple[str, str]]:
    """Pairs of colours nearer than ``least`` in CIE L*a*b*, where 2 can just be told apart side by side."""
    return [
        pair for pair in combinations(dict.fromkeys(colours), 2)
        if np.linalg.norm(seen(pair[0], deficiency) - seen(pair[1], deficiency)) < least
    ]


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_one_figure_can_be_told_apart(deficiency: str) -> None:
    for palette in (figures.COLOURS, figures.METHODS.values(), [colour for _, _, colour in residue_groups.GROUPS]):
        assert too_alike(palette, deficiency) == []


def test_colours_that_cannot_be_told_apart_are_seen() -> None:
    olive, brown = "#637939", "#8C6D31"  # two methods had these
    assert too_alike([olive, brown], "none") == []
    assert too_alike([olive, brown], "protanopia") == [(olive, brown)] == too_alike([olive, brown], "deuteranopia")


def test_confusion_of_many_classes_shows_the_commonest_and_the_others_together() -> None:
    generator = np.random.default_rng(0)
    table = generator.integers(0, 3, (90, 90))
    table[70] += 10
    ((title, small),), names = figures.commonest_classes([("m", table)], [f"c{k}" for k in range(90)], 12)
    assert title == "m" and small.shape == (12, 12) and small.sum() == table.sum()
    assert names[0] == "c70" and names[-1] == "79 others" and small[0, 0] == table[70, 70]
    kept = [int(name[1:]) for name in names[:-1]]
    assert small[-1, 0] == table[[k for k in range(90) if k not in kept], 70].sum()
