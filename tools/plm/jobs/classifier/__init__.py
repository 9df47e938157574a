"""Classifiers on embeddings: material, search, training, report, compression, export."""
