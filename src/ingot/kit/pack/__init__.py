"""Packed artifacts: each file one zstd frame, or stored as it is, and ``pack.json`` that says what comes back."""

#: What helps where a packed artifact is not what it was.
AGAIN = "fetch or build the packed artifact again"
