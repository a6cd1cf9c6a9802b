"""The shipped example on a small model: every field of what it records, against the files and this test's own clock."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import xxhash
from tiny_llama import make_llama

from ingot import registry
from ingot.core.key import key_of
from ingot.core.project import Project
from ingot.kit.parity.probes import PROBES
from ingot.version import __version__
from projectkit import REPO, Sandbox
from recordkit import append, audited, copied, object_of
from tinymodels import peft_adapter, state

EXAMPLE = "milton-llama-3.1-8b"
BASE, ADAPTER, MERGED, GGUF = (f"{EXAMPLE}:{name}" for name in ("base", "adapter", "merged", "gguf"))
ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
#: llama.cpp's ``llama_ftype`` of files that are mostly Q4_0.
MOSTLY_Q4_0 = 2
#: What every receipt of the example has; each is compared with something by a test below.
COMMON = {
    "type", "target", "spec", "spec_digest", "kind", "revision", "reproducibility", "key", "key_parts", "digest",
    "inputs", "files", "metrics", "environment", "timings", "built_at", "git", "origin", "index", "present",
    "tensors_evidence",
}  # fmt: skip


def spec_text() -> str:
    """The example as it is shipped; only the two fetches take their files from the project."""
    text = (REPO / "specs" / "examples" / f"{EXAMPLE}.yaml").read_text()
    fetch = r"(?m)^  (base|adapter):\n    kind: fetch\n    hf: .*\n    revision: .*\n    files: .*\n"
    text, count = re.subn(fetch, r"  \1:\n    kind: fetch\n    path: small/\1\n", text)
    assert count == 2
    assert "virtual: true" in text
    return text


def make_parts(folder: Path) -> None:
    """A random Llama in the shape of Llama 3.1, and an adapter on all its linear layers."""
    from transformers import AutoModelForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    make_llama(folder / "base", rope_parameters=ROPE, tie_word_embeddings=False, **sizes)
    peft_adapter(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
    config = folder / "adapter" / "adapter_config.json"
    named = {"base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    (folder / "adapter" / "README.md").unlink()


@dataclass(frozen=True)
class Milton:
    """The example, built once and then materialized, with the receipts of before."""

    sandbox: Sandbox
    receipts: Mapping[str, Mapping[str, Any]]
    seconds: float
    materialized: Any

    @property
    def parts(self) -> Path:
        """The folder of what was fetched."""
        return self.sandbox.root / "specs" / "small"

    @property
    def file(self) -> Path:
        """The GGUF."""
        return self.sandbox.root / "cache" / "latest" / EXAMPLE / "gguf" / "model.gguf"


@pytest.fixture(scope="module")
def milton(tmp_path_factory: pytest.TempPathFactory) -> Milton:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("milton"))
    make_parts(sandbox.root / "specs" / "small")
    sandbox.spec(spec_text(), EXAMPLE)
    start = time.monotonic()
    sandbox.ok()
    seconds = time.monotonic() - start
    found = {name: registry.latest(name, sandbox.root) for name in (BASE, ADAPTER, MERGED, GGUF)}
    return Milton(sandbox, found, seconds, sandbox.json("materialize", MERGED))


def values(receipt: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metric["value"] for name, metric in receipt["metrics"].items()}


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


def of_stranger(folder: Path) -> str:
    """The digest as docs/formats.md says that anybody can compute it."""
    pipeline = r"find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0r sha256sum"
    done = subprocess.run(pipeline, shell=True, cwd=folder, capture_output=True, check=True)
    return hashlib.sha256(done.stdout).hexdigest()


def evidence(milton: Milton, digest: str) -> Any:
    (path,) = milton.sandbox.root.glob(f"registry/*/evidence/{digest}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return json.loads(path.read_bytes())


def test_no_field_is_left_out(milton: Milton) -> None:
    assert milton.receipts[GGUF].keys() == COMMON | {"blocks_evidence", "streamed"}
    assert milton.receipts[MERGED].keys() == COMMON | {"stored", "shared_with"}


def test_what_was_built_how_and_from_what(milton: Milton) -> None:
    made, merged = milton.receipts[GGUF], milton.receipts[MERGED]
    for name, receipt in milton.receipts.items():
        assert (receipt["type"], receipt["target"], receipt["spec"]) == ("build", name, EXAMPLE)
        assert receipt["spec_digest"] == Project.open(milton.sandbox.root).spec_digest(EXAMPLE)
        assert receipt["key"] == key_of(receipt["key_parts"])
        assert (receipt["kind"], receipt["revision"]) == tuple(receipt["key_parts"][it] for it in ("kind", "revision"))
        assert receipt["reproducibility"] == "deterministic"
        assert receipt["present"] is (name != MERGED)
    assert (made["kind"], merged["kind"]) == ("gguf", "merge")
    assert made["key_parts"]["params"]["type"] == "Q4_0"
    assert merged["key_parts"]["params"]["dtype"] == "base"
    assert merged["inputs"] == {
        "model": {"target": BASE, "digest": of_stranger(milton.parts / "base")},
        "adapter": {"target": ADAPTER, "digest": of_stranger(milton.parts / "adapter")},
    }
    assert made["inputs"] == {"model": {"target": MERGED, "digest": merged["digest"]}}
    for receipt in (made, merged):
        stated = {role: f"sha256:{value['digest']}" for role, value in receipt["inputs"].items()}
        assert receipt["key_parts"]["inputs"] == stated
    assert made["streamed"] == {"model": merged["key"]}
    assert (merged["stored"], merged["shared_with"]) == (False, [GGUF])


def test_digest_and_files_are_those_on_the_disk(milton: Milton) -> None:
    """Those of the merged model were told before it was written: it is written now."""
    for receipt in milton.receipts.values():
        folder = object_of(milton.sandbox, receipt["target"])
        assert receipt["digest"] == of_stranger(folder)
        found = [
            {
                "path": path.name,
                "size": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes()),
            }
            for path in sorted(folder.iterdir())
        ]
        assert receipt["files"] == found
    (told,) = milton.materialized["targets"]
    assert (told["target"], told["agrees"], told["digest"]) == (MERGED, True, milton.receipts[MERGED]["digest"])


def test_the_figures_of_the_gguf(milton: Milton) -> None:
    base, size = state(milton.parts / "base"), milton.file.stat().st_size
    parameters = sum(tensor.numel() for tensor in base.values())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in base.values())
    reader = gguf.GGUFReader(milton.file)
    types = Counter(f"tensors_{tensor.tensor_type.name.lower()}" for tensor in reader.tensors)
    assert types == {"tensors_q4_0": 15, "tensors_q6_k": 1, "tensors_f32": 6}
    assert parameters == sum(tensor.n_elements for tensor in reader.tensors if tensor.name != "rope_freqs.weight")
    found = values(milton.receipts[GGUF])
    seconds, texts = found.pop("load_s"), found.pop("probe_texts")
    assert 0 < seconds < milton.receipts[GGUF]["timings"]["wall_s"]
    assert texts >= len(PROBES)
    assert found == {
        "parameters": parameters,
        "bytes": size,
        "bytes_written": size,
        "bytes_read": stored,
        "bits_per_weight": 8 * size / parameters,
        "compression": stored / size,
        "fallback_tensors": 0,
        **types,
    }


def test_the_figures_of_the_merged_model(milton: Milton) -> None:
    base, adapter = state(milton.parts / "base"), state(milton.parts / "adapter")
    merged = state(object_of(milton.sandbox, MERGED))
    pairs = {name: (adapter[name.replace("lora_B", "lora_A")], rows) for name, rows in adapter.items() if "_B" in name}
    change = math.sqrt(sum((2.0 * (b.double() @ a.double())).square().sum().item() for a, b in pairs.values()))
    names = [name.removeprefix("base_model.model.").replace(".lora_B", "") for name in pairs]
    before = math.sqrt(sum(base[name].double().square().sum().item() for name in names))
    assert sorted(names) == sorted(name for name in base if not torch.equal(base[name], merged[name]))
    assert values(milton.receipts[MERGED]) == {
        "merged_tensors": len(names),
        "parameters": sum(tensor.numel() for tensor in merged.values()),
        "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in merged.values()),
        "change_norm": pytest.approx(change, rel=1e-5),
        "relative_change": pytest.approx(change / before, rel=1e-5),
    }


def test_seconds_and_memory_are_those_of_the_run(milton: Milton) -> None:
    for receipt in milton.receipts.values():
        timings = receipt["timings"]
        started, finished = (datetime.fromisoformat(timings[name]) for name in ("started", "finished"))
        assert timings["wall_s"] == pytest.approx((finished - started).total_seconds(), abs=0.01)
        assert 0 < timings["wall_s"] < milton.seconds
        assert 0 < timings["cpu_s"] < milton.seconds * (os.cpu_count() or 1)
        assert 0 < timings["peak_anon_bytes"] < timings["peak_rss_bytes"] < 1 << 30
        assert receipt["built_at"] == timings["finished"]
    alone = [receipt["timings"] for name, receipt in milton.receipts.items() if name != MERGED]
    assert sum(timings["wall_s"] for timings in alone) < milton.seconds
    fetched = {name: milton.receipts[name]["timings"]["source_bytes"] for name in (BASE, ADAPTER)}
    assert fetched == {name: values(milton.receipts[name])["bytes"] for name in (BASE, ADAPTER)}
    timings = milton.receipts[GGUF]["timings"]
    assert milton.receipts[MERGED]["timings"] == timings  # one pass
    assert timings["source_bytes"] == 0
    # beside the artifact there are the merged model's side files, and never its weights
    side = sum(file["size"] for file in milton.receipts[MERGED]["files"] if file["path"] != "model.safetensors")
    assert 0 <= timings["peak_scratch_bytes"] <= side


def test_where_it_ran_and_where_it_is_written(milton: Milton) -> None:
    (log,) = milton.sandbox.root.glob("registry/*/log.jsonl")
    statements = [json.loads(line) for line in log.read_text().splitlines()]
    for receipt in milton.receipts.values():
        environment = dict(receipt["environment"])
        network = environment.pop("network")
        assert network == "allowed" if receipt["kind"] == "fetch" else network in {"isolated", "not isolated"}
        assert 1 <= environment.pop("threads") <= environment["cpus"]
        assert environment == {
            "ingot": __version__, "python": platform.python_version(), "system": platform.system(),
            "machine": platform.machine(), "cpus": os.cpu_count(),
        }  # fmt: skip
        assert receipt["git"] == {"commit": None, "clean": None}
        assert receipt["origin"] == f"ingot.local/{log.parent.name}"
        subject, *files = statements[receipt["index"]]["subject"]
        assert subject == {"name": receipt["target"], "digest": {"dirHash1": receipt["digest"]}}
        assert [file["name"] for file in files] == [file["path"] for file in receipt["files"]]
        metadata = statements[receipt["index"]]["predicate"]["runDetails"]["metadata"]
        call = f"{receipt['key']} {metadata['startedOn']} {metadata['finishedOn']}"
        assert metadata["invocationId"] == hashlib.sha256(call.encode()).hexdigest()[:32]


def test_the_tensors_in_the_evidence_are_those_of_the_files(milton: Milton) -> None:
    made, merged = milton.receipts[GGUF], milton.receipts[MERGED]
    written = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(milton.file).tensors}
    hashes = {name: xxhash.xxh3_128_hexdigest(data) for name, data in written.items()}
    assert evidence(milton, made["tensors_evidence"]) == hashes
    tensors = state(object_of(milton.sandbox, MERGED))
    hashes = {name: xxhash.xxh3_128_hexdigest(raw(tensor)) for name, tensor in tensors.items()}
    assert evidence(milton, merged["tensors_evidence"]) == hashes
    blocks, base = evidence(milton, made["blocks_evidence"]), state(milton.parts / "base")
    assert blocks["source"] == milton.receipts[BASE]["digest"]
    assert len(blocks["tensors"]) == 16
    for name, block in blocks["tensors"].items():
        with (milton.file.parent / block["file"]).open("rb") as file:
            file.seek(block["at"])
            assert file.read(len(written[name])) == written[name]
        assert block["source_xxh3_128"] == xxhash.xxh3_128_hexdigest(raw(base[block["source_name"]]))
        assert block["encode_ns"] > 0


def test_the_file_says_what_the_record_says(milton: Milton) -> None:
    made = milton.receipts[GGUF]
    said = {name: field.contents() for name, field in gguf.GGUFReader(milton.file).fields.items()}
    assert (said["general.file_type"], said["general.architecture"]) == (MOSTLY_Q4_0, "llama")
    assert said["ingot.kind"] == f"{made['kind']} {made['revision']}"
    assert said["ingot.model.digest"] == milton.receipts[MERGED]["digest"]
    assert said["ingot.tools"] == [f"{name}=={it}" for name, it in sorted(made["key_parts"]["tools"].items())]
    assert {name for name in said if name.startswith("ingot.")} == {
        "ingot.kind", "ingot.model.digest", "ingot.tools", "ingot.ggml.version",
    }  # fmt: skip
    assert str(milton.sandbox.root).encode() not in milton.file.read_bytes()


def test_audit_believes_it_and_would_find_another_ratio(milton: Milton) -> None:
    """The merged model is there now, so that the ratio follows from files."""
    assert audited(milton.sandbox).problems == []
    sandbox = copied(milton.sandbox, milton.sandbox.root.parent / "lied-to")
    metrics = json.loads(json.dumps(milton.receipts[GGUF]["metrics"]))
    metrics["compression"]["value"] *= 1.001
    append(sandbox, GGUF, metrics=metrics)
    (problem,) = audited(sandbox).problems
    assert problem.code == "metric_differs"
    assert "compression is recorded as" in problem.detail
