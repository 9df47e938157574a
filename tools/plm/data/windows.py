"""Windows around sites: cut at the protein's ends, never padded, with the site's true position kept."""

from __future__ import annotations


def window(sequence: str, position0: int, width: int) -> tuple[str, int]:
    """Cuts the residues around one site.

    Args:
        sequence: Residues of the protein (or of a wider window).
        position0: 0-based index of the site in ``sequence``.
        width: Residues of a whole window, odd, so that the site is its centre; 0 returns the sequence as it
            is.

    Returns:
        The residues from ``position0 - width // 2`` to ``position0 + width // 2``, clipped at the ends, and the site's
        0-based index in them.

    Raises:
        ValueError: Even or negative width, or a position outside the sequence.
    """
    if not 0 <= position0 < len(sequence):
        raise ValueError(f"position {position0} lies outside a sequence of {len(sequence)} residues")
    if width == 0:
        return sequence, position0
    check_width(width)
    start = max(0, position0 - width // 2)
    return sequence[start : position0 + width // 2 + 1], position0 - start


def check_width(width: int) -> None:
    """Raises ValueError unless ``width`` is 0 (whole protein) or a positive odd number of residues."""
    if width < 0 or (width and width % 2 == 0):
        raise ValueError(f"a window has an odd number of residues (or 0 for the whole protein), not {width}")


def is_clipped(length: int, position0: int, width: int) -> bool:
    """True if a window of ``width`` around ``position0`` reaches past an end of a sequence of ``length``
    residues."""
    return bool(width) and (position0 < width // 2 or position0 + width // 2 >= length)
