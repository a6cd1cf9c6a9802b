"""Texts on which tokenizers differ and models can be run: ingot's own, for everything that compares two of either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ingot.kit.chat import Template

#: Case, contractions, digits, spaces, line breaks, code, scripts, emoji, controls.
PROBES = (
    "Once upon a time there was a little girl.",
    "",
    " ",
    "  two  spaces   three    four \t tab\t\ttabs",
    "line\nline\n\nparagraph\r\nwindows\n   indented\n\n\n",
    "I've you'll HE'S We'Ve don't 'quoted' \"double\" `code` ``x``",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2026-11-21 ½ ² Ⅷ ٣",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment\n\nclass A(B, metaclass=C): ...\n',
    "Grüße, naïve café – „Zitat“ … Ελληνικά Русский עברית العربية हिन्दी ไทย ភាសាខ្មែរ",
    "日本語のテキスト。中文文本，한국어 텍스트",
    "🚀 😶‍🌫️ 👩🏽‍🚀 🇺🇳 ✅🦙🦙 a\u0301 e\u0301\u0327",
    "!!!??? ... -- --- ====== <<>> [](){} \\ / | ~ ^ @ # $ % & * _ + = ; :",
    "https://example.org/a?b=c&d=%20#e  user@example.org  C:\\path\\file.txt",
    "\u00a0nbsp\u2003em\u200bzero\ufeffbom \x07 bell \x7f",
    "ALLCAPS mixedCase snake_case kebab-case x" * 2,
)
TURNS = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4.\n"},
    {"role": "user", "content": "Danke – and in  Python?\n```\nprint(2+2)\n```"},
)


def special_texts(tokenizer: Any) -> Iterator[str]:
    """Texts made of a tokenizer's special tokens and of its chat template, where it has one."""
    for token in sorted(tokenizer.all_special_tokens):
        yield f"before{token}after"
    template = Template.of(tokenizer)
    if template.source is not None:
        yield template.apply(TURNS, add_generation_prompt=True)
