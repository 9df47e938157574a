"""Embeddings of many proteins: representations, the plan of the work, shards."""
