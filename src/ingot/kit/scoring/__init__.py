"""Scoring text: what is scored, by whom, against what, and what comes of it.

``units`` chooses documents or windows, ``widths`` counts the bytes that their tokens stand for, ``match`` compares what
a candidate and a reference read, ``run`` lets models say how likely it is, ``codec`` and ``stored`` keep what a
reference says, ``quality`` makes metrics of the sums.
"""
