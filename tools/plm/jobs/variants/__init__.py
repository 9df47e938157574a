"""plm_variants: what a masked language model says of substitutions that nobody measured."""
