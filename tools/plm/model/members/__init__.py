"""Sequence members: predictors that need no language model, and stand beside one in a bundle.

Composition, dipeptides, the residues around a site, the nearest relatives. :mod:`kinds` fits them, :mod:`fitted` is
what a bundle stores and answers with.
"""
