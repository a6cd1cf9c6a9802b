"""Task folders that cannot be used: each fault has its place, and is found before a model is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harnesskit import CODE, ENDING, ENDINGS, LETTERS, PROGRAMS, all_forms, write
from ingot.errors import RefusedInput
from ingot.kit.harness.choosing import PASS_AT_K, Chosen, choose
from ingot.kit.harness.reading import Folder

METRICS = frozenset({"acc", "acc_norm", "bits_per_byte", "exact_match", "word_perplexity", PASS_AT_K})


def chosen(folder: Path, *names: str, may_run: bool = False) -> Chosen:
    return choose(Folder(folder.resolve(), "specs/tasks"), names, METRICS, may_run=may_run)


def refused(folder: Path, *names: str, may_run: bool = False) -> RefusedInput:
    with pytest.raises(RefusedInput) as caught:
        chosen(folder, *names, may_run=may_run)
    return caught.value


@pytest.fixture
def ending(tmp_path: Path) -> Callable[[str, str], Path]:
    """A folder with one task in which a piece is replaced."""

    def replaced(old: str, new: str) -> Path:
        assert old in ENDING
        return write(tmp_path / "tasks", {"ending.yaml": ENDING.replace(old, new), "endings.jsonl": ENDINGS})

    return replaced


def test_groups_and_tags_bring_their_tasks(tmp_path: Path) -> None:
    all_forms(tmp_path)
    assert set(chosen(tmp_path, "letters").configs) == {"letters", "letters_one", "letters_two"}
    assert set(chosen(tmp_path, "small", "story").configs) == {"ending", "story"}


def test_an_unknown_task_has_its_nearest_name(tmp_path: Path) -> None:
    error = refused(all_forms(tmp_path), "endng")
    assert (error.code, error.what) == ("E-HARNESS-TASK", "specs/tasks: no task is called 'endng'")
    assert error.hint is not None and "ending" in error.hint


def test_an_unknown_task_of_a_group_has_its_place(tmp_path: Path) -> None:
    all_forms(tmp_path)
    (tmp_path / "letters.yaml").write_text("group: letters\ntask:\n  - letters_one\n  - letters_tow\n")
    assert refused(tmp_path, "letters").what == "specs/tasks/letters.yaml:2: no task is called 'letters_tow'"


def test_a_folder_without_a_task(tmp_path: Path) -> None:
    write(tmp_path, {"readme.yaml": "a: 1\n"})
    assert "holds no task" in refused(tmp_path, "ending").what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("task: a\nmetric_list: [\n", "tasks/bad.yaml:3: is no YAML"),
        ("- task\n", "tasks/bad.yaml: is no mapping"),
        ("task: a\ninclude: nothing\n", "tasks/bad.yaml:2: includes 'nothing', which is no file of this folder"),
        ("task: a\ninclude: /etc/hostname\n", "tasks/bad.yaml:2: includes '/etc/hostname', which is no file"),
        ("task: a\ninclude: bad.yaml\n", "tasks/bad.yaml:2: includes 'bad.yaml', which includes this file"),
        ("x: 1\ntask: ending\n", "is also in specs/tasks/"),
    ],
)
def test_a_malformed_file_is_never_passed_over(text: str, what: str, tmp_path: Path) -> None:
    """The harness itself would: a task that was to be asked would not be there, and another might."""
    write(all_forms(tmp_path), {"bad.yaml": text})
    assert what in refused(tmp_path, "story").what


def test_data_of_a_hub_are_refused_with_the_place_and_what_to_write(ending: Callable[[str, str], Path]) -> None:
    error = refused(ending("dataset_path: json", "dataset_path: Rowan/hellaswag"), "ending")
    assert error.code == "E-HARNESS-HUB"
    assert error.what.startswith("specs/tasks/ending.yaml:3: its data set 'Rowan/hellaswag' would be fetched")
    assert error.hint is not None and "dataset_path: json" in error.hint


@pytest.mark.parametrize(
    ("old", "new", "code", "what"),
    [
        ("dataset_path: json\n", "", "E-HARNESS-HUB", "ending.yaml:1: names no data set"),
        ("{data_files: {validation: endings.jsonl}}", "{}", "E-HARNESS-DATA", "ending.yaml:4: 'dataset_kwargs' has no"),
        ("endings.jsonl}", "other.jsonl}", "E-HARNESS-DATA", "ending.yaml:4: the data file 'other.jsonl' is not in"),
        ("endings.jsonl}", "../x.jsonl}", "E-HARNESS-DATA", "ending.yaml:4: the data file '../x.jsonl' is not in"),
        ("endings.jsonl}", "'https://x.org/a.jsonl'}", "E-HARNESS-DATA", "is not in this folder"),
        ("endings.jsonl}", "ending.yaml}", "E-HARNESS-DATA", "the data file 'ending.yaml' is no JSON"),
        ("{data_files:", "{data_dir: /data, data_files:", "E-HARNESS-DATA", "cannot have 'data_dir' here"),
        ("metric: acc,", "metric: accuracy,", "E-HARNESS-METRIC", "ending.yaml:10: there is no metric 'accuracy'"),
        ("metric: acc,", "mtric: acc,", "E-HARNESS-TASK", "ending.yaml:10: an entry of 'metric_list' has no"),
        ("metric: acc,", "metric: acc, hf_evaluate: true,", "E-HARNESS-HUB", "would be fetched from the hub"),
        ("doc_to_target: label", "doc_to_target: !function os.getcwd", "E-HARNESS-CODE", ":8: !function os."),
        ("tag: [small]", "unsafe_code: true", "E-HARNESS-CODE", "ending.yaml:2: it runs what a model writes"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_here(
    old: str, new: str, code: str, what: str, ending: Callable[[str, str], Path]
) -> None:
    error = refused(ending(old, new), "ending", may_run=True)
    assert error.code == code
    assert what in error.what


@pytest.mark.parametrize(
    ("text", "line"), [('{"query": 1}\n{"query": \n', 2), ('{"query": 1}\n[1]\n', 2), ("query\n", 1)]
)
def test_a_line_that_is_no_item_has_its_number(text: str, line: int, tmp_path: Path) -> None:
    write(tmp_path, {"ending.yaml": ENDING, "endings.jsonl": text})
    error = refused(tmp_path, "ending")
    assert error.code == "E-HARNESS-DATA"
    assert error.what.startswith(f"specs/tasks/endings.jsonl:{line}: is no JSON")


def test_items_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, {"ending.yaml": ENDING, "endings.jsonl": ""})
    assert refused(tmp_path, "ending").what == "specs/tasks/endings.jsonl: holds no item"


def test_what_is_not_asked_is_not_looked_at(tmp_path: Path) -> None:
    """A folder may hold tasks that need more than is here, as long as nobody asks for them."""
    write(all_forms(tmp_path), {"far.yaml": "task: far\ndataset_path: some/where\n"})
    assert set(chosen(tmp_path, "story").configs) == {"story"}


@pytest.mark.parametrize("key", ["dataset_path: far", "unsafe_code: true", "metric_list: []"])
def test_a_group_cannot_change_what_was_checked(key: str, tmp_path: Path) -> None:
    all_forms(tmp_path)
    (tmp_path / "letters.yaml").write_text(f"group: letters\ntask: [letters_one]\n{key}\n")
    assert f"a group cannot say '{key.partition(':')[0]}'" in refused(tmp_path, "letters").what
    (tmp_path / "letters.yaml").write_text(f"group: letters\ntask: [{{task: letters_one, {key}}}]\n")
    assert f"a group cannot say '{key.partition(':')[0]}'" in refused(tmp_path, "letters").what


def test_programs_run_only_where_the_spec_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path, {"code.yaml": CODE, "code.jsonl": PROGRAMS})
    error = refused(tmp_path, "code")
    assert error.code == "E-HARNESS-CODE"
    assert error.hint is not None and "run_code" in error.hint
    assert chosen(tmp_path, "code", may_run=True).programs
    write(tmp_path, {"code.yaml": CODE.replace("unsafe_code: true\n", "")})
    assert refused(tmp_path, "code").code == "E-HARNESS-CODE", "the metric alone tells"


def test_the_metric_of_the_hub_has_ours_as_its_hint(tmp_path: Path) -> None:
    write(tmp_path, {"code.yaml": CODE.replace("pass_at_k", "code_eval"), "code.jsonl": PROGRAMS})
    error = refused(tmp_path, "code", may_run=True)
    assert error.hint is not None and "metric: pass_at_k" in error.hint


def test_functions_beside_the_task_are_its_own_code(tmp_path: Path) -> None:
    text = ENDING.replace("doc_to_target: label", "doc_to_target: !function helpers.right")
    write(
        tmp_path, {"ending.yaml": text, "endings.jsonl": ENDINGS, "helpers.py": "def right(doc): return doc['label']\n"}
    )
    assert set(chosen(tmp_path, "ending").configs) == {"ending"}


def test_the_harness_reads_data_where_they_lie(tmp_path: Path) -> None:
    """Paths of data are relative to the file that names them, an included one too."""
    folder = tmp_path / "tasks"
    all_forms(folder)
    write(folder / "deep", {"_base": "dataset_path: json\ndataset_kwargs: {data_files: {test: here.jsonl}}\n",
                            "here.jsonl": LETTERS})  # fmt: skip
    write(folder, {"deep.yaml": "task: deep\ninclude: deep/_base\n"})
    chosen(folder, "deep").prepare(tmp_path / "prepared", tmp_path / "cache")
    written = (tmp_path / "prepared" / "0000.yaml").read_text()
    assert str((folder / "deep" / "here.jsonl").resolve()) in written
