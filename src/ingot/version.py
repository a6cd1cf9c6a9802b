"""The version of ingot, in one place for code; ``pyproject.toml`` reads it from here."""

__version__ = "0.1.0"
