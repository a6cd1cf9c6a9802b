"""ingot: make for language models."""
