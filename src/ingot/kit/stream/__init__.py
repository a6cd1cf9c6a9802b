"""Weights as a stream: sources give tensors block by block, transforms map them, sinks take them.

A *block* is a run of rows of one tensor. Blocks come in the order of the bytes of the source, so that every byte is
read once and hashed as it passes; no step holds a model, nor a large tensor, unless a transform must see it whole.
"""
