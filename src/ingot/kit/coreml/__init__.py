"""Core ML packages: the module that is traced, the conversion, the canonical form, what is checked of it."""
