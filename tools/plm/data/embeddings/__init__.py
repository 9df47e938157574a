"""Embeddings files: one interface, a file for each format."""
