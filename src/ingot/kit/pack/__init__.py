"""Packed artifacts: each file one zstd frame, or stored as it is, and ``pack.json`` that says what comes back."""
