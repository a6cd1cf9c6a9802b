"""Pruning: what each module is to lose, which weights those are, and what training keeps zero afterwards."""
