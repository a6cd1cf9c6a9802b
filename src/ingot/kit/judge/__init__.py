"""Pairwise judgements: a candidate's answers against the reference's, each pair judged in both orders.

Laws. A pair is won by the answer that is the better one in both orders; if the two verdicts do not say the same of the
candidate, it is a tie. Answers that are the same text are a tie, and nobody is asked.

A judgement, whoever made it, is ``{"id", "first", "second", "verdict"}``: the prompt's id, the SHA-256 of the text of
the answer shown first and of the second, and ``first``, ``second`` or ``tie``.
"""
