"""The helper that gives tests llama.cpp's sources: it unpacks what is wanted and nothing that escapes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

import llamasource

_ROOT = f"llama_cpp_python-{llamasource.VERSION}/vendor/llama.cpp"


def _archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"ok"))
        link = tarfile.TarInfo(f"{_ROOT}/models/link.gguf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        tar.addfile(link)
    return path


def test_only_the_wanted_files_are_unpacked(tmp_path: Path) -> None:
    wanted = ["convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/constants.py", "models/templates/a.jinja"]
    others = ["src/llama.cpp", "gguf-py/setup.py", "ggml/CMakeLists.txt"]
    archive = _archive(tmp_path / "a.tar.gz", [f"{_ROOT}/{name}" for name in wanted + others] + ["elsewhere/models/x"])
    llamasource.unpack(archive, tmp_path / "tree")
    found = [str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(wanted)


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", [f"{_ROOT}/models/../../../out.gguf"])
    with pytest.raises(ValueError, match=r"out\.gguf"):
        llamasource.unpack(archive, tmp_path / "tree" / "deep")
    assert not list(tmp_path.rglob("out.gguf"))


@pytest.mark.parametrize(
    "body",
    [
        '<a href="../a-1.tar.gz#sha256=00" data-x="1">a</a>\n<a href="https://h/b.whl">b</a>',
        '{"files": [{"url": "../a-1.tar.gz"}, {"url": "https://h/b.whl"}]}',
    ],
    ids=["html", "json"],
)
def test_links_of_both_forms_of_a_page(body: str) -> None:
    assert list(llamasource.links_of(body)) == ["../a-1.tar.gz", "https://h/b.whl"]


def test_without_a_source_a_test_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INGOT_LLAMA_CPP_SOURCE", str(tmp_path))
    llamasource._find.cache_clear()
    try:
        with pytest.raises(pytest.skip.Exception, match=r"no vendor/llama\.cpp"):
            llamasource.llama_cpp_source()
    finally:
        llamasource._find.cache_clear()
