"""Function calling: what a model is told, the calls that its answers make, and how those compare with right ones.

A question has messages, functions (a name, a description, the JSON schema of the parameters) and, for each call that
answers it, the values that are right. The form of the files and the lax comparison are those of the Berkeley Function
Calling Leaderboard (BFCL, https://gorilla.cs.berkeley.edu/leaderboard.html). No answer of a model is ever run.
"""
