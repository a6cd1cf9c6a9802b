"""Small folders of lm-eval tasks with items of our own, in the forms of HellaSwag, MMLU, GSM8K and HumanEval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_ANIMALS = ("cat", "dog", "bird", "fox", "bear", "frog")
ENDINGS = [
    {
        "query": f"Once upon a time, there was a little {animal} named Tim. Tim liked to",
        "choices": [
            "play in the park with his friends.",
            "play.",
            "the of and in was to.",
            f"eat the big red {animal}",
        ],
        "label": number % 4,
    }
    for number, animal in enumerate(_ANIMALS)
]
LETTERS = [
    {"question": f"What is a {animal}?", "choices": ["a toy", "an animal", "a house", "a day"], "answer": number % 4}
    for number, animal in enumerate(_ANIMALS)
]
STORIES = [{"text": f"One day, a {animal} went to the park. The {animal} was very happy."} for animal in _ANIMALS]
#: Longer than the context of the small model, and than what is read in one go.
STORIES[-1] = {"text": " ".join(f"The {animal} saw the {other}." for animal in _ANIMALS for other in _ANIMALS * 2)}
SUMS = [
    {"question": f"Lily has {one} apples. Tim gives her {two}. How many?", "answer": f"{one}+{two}\n#### {one + two}"}
    for one, two in ((1, 2), (2, 2), (3, 1), (2, 5), (4, 4))
]

ENDING = """\
task: ending
tag: [small]
dataset_path: json
dataset_kwargs: {data_files: {validation: endings.jsonl}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{query}}"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
_LETTER = """\
dataset_path: json
dataset_kwargs: {data_files: {dev: letters.jsonl, test: letters.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: dev
fewshot_config: {sampler: first_n}
num_fewshot: 2
doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_SUM = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {train: sums.jsonl, test: sums.jsonl}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
num_fewshot: 1
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:", "."], do_sample: false, max_gen_toks: 12}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [",", "(?s).*#### "]
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\\\-?[0-9]+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "([a-z]+)"}, {function: take_first}]
"""
_STORY = """\
task: story
dataset_path: json
dataset_kwargs: {data_files: {test: stories.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
_GROUP = """\
group: letters
task: [letters_one, letters_two]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
CODE = """\
task: code
dataset_path: json
dataset_kwargs: {data_files: {test: code.jsonl}}
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{test}}\\ncheck({{entry_point}})"
generation_kwargs: {until: ["\\ndef"], do_sample: false, max_gen_toks: 4}
metric_list:
  - {metric: pass_at_k, k: [1], aggregation: mean, higher_is_better: true}
filter_list:
  - {name: program, filter: [{function: with_prompt, field: prompt}]}
"""
#: Heads that pass and fail whatever follows them, since it is a comment.
PROGRAMS = [
    {"prompt": f"def f(x):\n    return {body}\n# ", "entry_point": "f", "test": "def check(f):\n    assert f(2) == 4"}
    for body in ("x + x", "x * x", "x + 1", "1 / 0")
]


def write(folder: Path, files: Mapping[str, str | Iterable[Mapping[str, Any]]]) -> Path:
    """Write files: texts as they are, rows as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(dict(row)) + "\n" for row in content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def all_forms(folder: Path) -> Path:
    """One task of each form, a group, and a template that two tasks include."""
    return write(
        folder,
        {
            "ending.yaml": ENDING,
            "endings.jsonl": ENDINGS,
            "_letters": _LETTER,
            "one.yaml": "include: _letters\ntask: letters_one\n",
            "two.yaml": "include: _letters\ntask: letters_two\ntarget_delimiter: ' '\nnum_fewshot: 0\n",
            "letters.yaml": _GROUP,
            "letters.jsonl": LETTERS,
            "sums.yaml": _SUM,
            "sums.jsonl": SUMS,
            "story.yaml": _STORY,
            "stories.jsonl": STORIES,
        },
    )


def code_task(folder: Path) -> Path:
    """A task whose answers are programs."""
    return write(folder, {"code.yaml": CODE, "code.jsonl": PROGRAMS})
