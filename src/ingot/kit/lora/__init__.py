"""LoRA adapters: which layers get one, its two files, what its configuration means for a merge, and the merge.

Files and names are PEFT's. The law of a merge: ``W + s·B·A`` with ``s = alpha / r``, or ``alpha / sqrt(r)`` for
rank-stabilised LoRA (Hu et al. 2021; Kalajdzievski 2023), and for DoRA each output row of that sum scaled to the
learned magnitude (Liu et al. 2024). Computed in fp32, rounded once. docs/merge.md states the bounds.
"""
