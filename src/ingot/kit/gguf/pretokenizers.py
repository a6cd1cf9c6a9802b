"""How byte-level BPE splits text before it merges: llama.cpp's names of the rules, and their steps in tokenizer.json.

A GGUF names the rule (``tokenizer.ggml.pre``); a tokenizer.json spells it out as steps. The rules are those of
``llm_tokenizer_bpe`` and the flags those of ``llama_vocab::impl::load``
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp); the patterns are the ones in the models' own
tokenizer.json files. Several names stand for one rule: the first of them is the one that is written.

A step is a pattern (text is cut before and after each match), or one of the words below.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Every digit by itself; runs of digits; runs of punctuation; the pattern that a ByteLevel step itself applies.
DIGITS, RUNS, PUNCTUATION, GPT2 = "digits", "runs of digits", "punctuation", "gpt2"

_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _END
QWEN2 = _WORDS + r"|\p{N}" + _END
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = _WORDS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+%s|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*%s"
_CASES_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = _CASES % ("", "") + r"|\p{N}" + _CASES_END
_GPT4O = _CASES % ((r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",) * 2) + r"|\p{N}{1,3}" + _CASES_END

# letters of the scripts that have cases, as the pattern of DeepSeek lists them
_CASED = (
    "A-Za-z\u00b5À-ÖØ-öø-ƺƼ-ƿ\u01c4-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-\u03f5Ϸ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗ"
    "ὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124"
    "\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149ⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ\ufb00"
    "-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_ASIAN = "[一-龥ࠀ-一가-\ud7ff]+"
_LINE = r"[\r\n]"
_DEEPSEEK_LLM = (_LINE, rf"\s?[{_CASED}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e‘-‟\u3000-。]+", r"\s+$", _ASIAN)
_DEEPSEEK_CODER = (_LINE, r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, DIGITS)
_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    _DEEPSEEK3_WORDS,
)


@dataclass(frozen=True)
class Rule:
    """One way to split: its steps as tokenizer.json has them.

    ``ignore_merges``: a word that is a token is taken whole, without merging. ``spellings``: other steps of
    tokenizer.json that say the same. ``add_bos``: llama.cpp puts a begin token before a text where the GGUF does not
    say. ``apart``: Unicode categories of characters outside ASCII around which llama.cpp's own form of the pattern
    splits otherwise than the model's: its regular expressions know no marks in words and no capitals but A to Z.
    """

    names: tuple[str, ...]
    steps: tuple[str, ...]
    ignore_merges: bool = False
    spellings: tuple[tuple[str, ...], ...] = ()
    add_bos: bool = False
    apart: frozenset[str] = frozenset()

    def agrees_on(self, text: str) -> bool:
        """Whether llama.cpp splits this text as the steps do."""
        return not any(ord(char) > 127 and unicodedata.category(char) in self.apart for char in text)


_MARKS_AND_CAPITALS = frozenset({"Mn", "Mc", "Me", "Lu", "Lt"})
_SEPARATORS = frozenset({"Zs", "Zl", "Zp"})


RULES: tuple[Rule, ...] = (
    Rule(
        (
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de",
            "a.x-4.0", "mellum", "modern-bert", "exaone4", "trillion", "granite-docling",
        ),
        (GPT2,),
    ),
    Rule(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (DIGITS, GPT2),
    ),
    Rule(
        (
            "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        ),
        (LLAMA3,),
        ignore_merges=True,
        add_bos=True,
    ),
    Rule(("glm4", "glm5"), (LLAMA3,), ignore_merges=True),
    Rule(("dbrx", "smaug-bpe", "chatglm-bpe"), (LLAMA3,)),
    Rule(
        (
            "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
        ),
        (QWEN2,),
    ),
    Rule(("qwen35",), (_QWEN35,)),
    Rule(("tekken",), (TEKKEN,), ignore_merges=True, add_bos=True, apart=_MARKS_AND_CAPITALS),
    Rule(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,), apart=_MARKS_AND_CAPITALS),
    Rule(
        ("deepseek-llm",),
        (*_DEEPSEEK_LLM, RUNS),
        spellings=((*_DEEPSEEK_LLM, r"\p{N}+"), (*_DEEPSEEK_LLM, DIGITS)),
        apart=_SEPARATORS,
    ),
    Rule(("deepseek-coder",), _DEEPSEEK_CODER, spellings=((*_DEEPSEEK_CODER[:-1], r"\p{N}"),), apart=_SEPARATORS),
    Rule(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    Rule(
        ("falcon",),
        (PUNCTUATION, GPT2, "[0-9][0-9][0-9]"),
        spellings=((PUNCTUATION, GPT2, RUNS, "[0-9][0-9][0-9]"),),
    ),
    Rule(("seed-coder",), (_SEED,)),
)  # fmt: skip


def rule_named(name: str) -> Rule | None:
    """The rule that ``tokenizer.ggml.pre`` names; None for a name that ingot does not know."""
    return next((rule for rule in RULES if name in rule.names), None)


def rules_of(steps: tuple[str, ...]) -> Iterator[Rule]:
    """The rules that split by these steps; they differ in what they do with whole words."""
    plain = tuple(_escaped(step) for step in steps)
    for rule in RULES:
        if plain == rule.steps or plain in rule.spellings:
            yield rule


def known_names() -> str:
    """Every name, for messages."""
    return ", ".join(name for rule in RULES for name in rule.names)


def _escaped(step: str) -> str:
    return step.replace("\r", r"\r").replace("\n", r"\n")


def byte_level_steps(step: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The steps of a ``pre_tokenizer`` of tokenizer.json; None when no step of it is ByteLevel.

    A ByteLevel step that adds a space before a text is spelled out, and so in no rule.
    """
    steps = (step or {}).get("pretokenizers", [step]) if step else []
    if not any(item.get("type") == "ByteLevel" for item in steps):
        return None
    found = []
    for place, item in enumerate(steps, 1):
        # bytes are letters afterwards, so what follows without a pattern of its own would see others
        found += list(_byte_level(item, last=place == len(steps))) if item["type"] == "ByteLevel" else [_step(item)]
    return tuple(found)


def _byte_level(item: Mapping[str, Any], *, last: bool) -> Iterator[str]:
    if item.get("add_prefix_space"):
        yield "ByteLevel that adds a space before a text"
    elif item.get("use_regex", True):
        yield GPT2
    elif not last:
        yield "ByteLevel before other steps"


def _step(item: Mapping[str, Any]) -> str:
    kind, behavior = item.get("type"), str(item.get("behavior")).lower()
    if kind == "Digits":
        return DIGITS if item.get("individual_digits") else RUNS
    if kind == "Punctuation" and behavior == "contiguous":
        return PUNCTUATION
    pattern = item.get("pattern", {}).get("Regex")
    # keeping the matches alone is the same where a pattern matches everything, as these do
    if kind == "Split" and pattern and (behavior, bool(item.get("invert"))) in {("isolated", False), ("removed", True)}:
        return str(pattern)
    return f"{kind} {item.get('pattern', '')}".strip()
