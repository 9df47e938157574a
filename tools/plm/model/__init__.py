"""Checkpoints, families, packing, encoding, adapters, heads."""
