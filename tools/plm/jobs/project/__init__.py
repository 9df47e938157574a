"""Embeddings laid out on a plane: projection, figure, report."""
