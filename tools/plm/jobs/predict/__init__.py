"""Proteins or embeddings through a bundle: queries, answers, verdicts, tables, report."""
