"""Proteins, labels, sites, splits, tables and embeddings files: what goes into a model and how it is kept apart."""
