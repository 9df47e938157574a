"""What plm_embed writes beside an embeddings file."""
