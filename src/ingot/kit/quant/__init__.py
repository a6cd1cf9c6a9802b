"""Weights in fewer bits: schemes, what is chosen, how it is written, and the way back to plain numbers."""
