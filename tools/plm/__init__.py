"""Protein language models in Galaxy: the library that the stage scripts share."""

from plm.received.offline import forbid_network

__version__ = "0.1.0"
forbid_network()
