"""Pages of reports: what a report measured joined with the log, as HTML, Markdown, JSON and a model card."""
