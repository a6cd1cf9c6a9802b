"""One function for each operation of MIL, by its name; parameters have MIL's own names.

fp16 values are fp32 arrays of numbers that fp16 has. An operation that computes gives exact-as-fp32 results, and
whoever runs it rounds them once; one that only moves values gives back what fp16 has anyway.
"""

from __future__ import annotations

from ingot.kit.mil.ops import attention, elementwise, making, moving, reducing, states  # registers them
from ingot.kit.mil.ops.table import OPERATIONS, Call, Entry

__all__ = ["OPERATIONS", "Call", "Entry", "attention", "elementwise", "making", "moving", "reducing", "states"]
