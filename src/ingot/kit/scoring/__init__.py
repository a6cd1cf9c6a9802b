"""Scoring text: what is scored, by whom, against what, and what comes of it.

``units`` chooses documents or windows, ``run`` lets models say how likely they are, ``codec`` and ``stored`` keep what
a reference says, ``quality`` makes metrics of the sums.
"""
