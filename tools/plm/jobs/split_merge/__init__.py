"""One FASTA file into parts, and the embeddings of the parts into one file again."""
