"""What a run looks like: text layout, a live and a plain screen, the closing page.

Only ``live`` and ``draw`` use rich, and only they are imported late; everything else is text.
"""
