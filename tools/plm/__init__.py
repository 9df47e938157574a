"""Protein language models in Galaxy: the library that the stage scripts share."""

__version__ = "0.1.0"
