"""Bundles: what a training hands on, as one zip that proves itself on loading."""
