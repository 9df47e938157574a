"""plm_contacts: which residues of a protein touch, from what a language model attends to."""
