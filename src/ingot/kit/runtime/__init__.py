"""How fast models answer and in what memory, each in its own process, side by side: timing, baselines, figures."""
