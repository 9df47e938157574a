"""Windows keep their centre and never invent residues."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.data.windows import is_clipped, window

PROTEINS = st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=120)


@given(protein=PROTEINS, half=st.integers(0, 40), data=st.data())
def test_windows_keep_the_site_and_its_neighbours(protein: str, half: int, data: st.DataObject) -> None:
    position0 = data.draw(st.integers(0, len(protein) - 1))
    width = 2 * half + 1
    cut, place0 = window(protein, position0, width)
    assert cut[place0] == protein[position0]
    assert protein[position0 - place0 : position0 - place0 + len(cut)] == cut
    assert place0 == min(half, position0)
    assert len(cut) <= width
    assert (len(cut) < width) == is_clipped(len(protein), position0, width)


@given(PROTEINS, st.data())
def test_width_zero_is_the_whole_protein(protein: str, data: st.DataObject) -> None:
    position0 = data.draw(st.integers(0, len(protein) - 1))
    assert window(protein, position0, 0) == (protein, position0)
    assert not is_clipped(len(protein), position0, 0)


@pytest.mark.parametrize(("position0", "width"), [(3, 3), (-1, 3), (0, 2), (0, -1)])
def test_impossible_windows(position0: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"outside|odd"):
        window("MKV", position0, width)
