"""Checkpoints, families, packing, encoding, heads, bundles."""
