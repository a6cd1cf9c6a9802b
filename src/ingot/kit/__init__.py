"""Helpers over torch, safetensors, gguf and others, used inside stages' run() only."""
