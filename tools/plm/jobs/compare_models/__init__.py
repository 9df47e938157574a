"""The same questions put to several language models: masked residues, probes, likeness, cost."""
