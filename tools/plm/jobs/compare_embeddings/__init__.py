"""Embeddings held against a reference: quality, drift, report."""
