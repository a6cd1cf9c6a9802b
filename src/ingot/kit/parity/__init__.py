"""Proof that an export computes what its source computes: golden texts through both, compared layer by layer."""
