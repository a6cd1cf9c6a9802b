"""How a spec names modules and weights of a model where a kind takes patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

#: The rule, for messages.
RULE = "words of a name side by side (q_proj, layers.0, mlp.*_proj), or a pattern over a whole name (*.layers.0.*)"


def means(pattern: str, name: str) -> bool:
    """Whether a pattern means a name.

    It does when its words, between dots, stand side by side in the name, where * within a word stands for anything; or
    when it is a pattern of shells for the whole name or its end, where * stands for dots too.
    """
    words, wanted = name.split("."), pattern.split(".")
    side_by_side = any(
        all(map(fnmatchcase, words[at : at + len(wanted)], wanted)) for at in range(len(words) - len(wanted) + 1)
    )
    return side_by_side or fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
