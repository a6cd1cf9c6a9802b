"""``gguf``: a Hugging Face folder as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from ingot.core.stage import Device, Done, Format, Given, Least, Measure, Metrics, Progress, Role, Source, Stage
from ingot.core.stage_values import Serving
from ingot.stages import _export
from ingot.stages._export import Benchmark, Parity
from ingot.stages._fields import absent
from ingot.stages._gguf_converter import Converter
from ingot.stages._gguf_types import NEEDY, PLAIN, FileType, Override, TensorType, bits

if TYPE_CHECKING:
    from ingot.kit.gguf.export import Product


class Gguf(Stage):
    """Writes ``model.gguf`` from one read of the weights, with the tokenizer and the chat template.

    The types and bytes of the tensors are those of llama.cpp's own quantizer on an unquantized file of the type in
    which the weights are stored. Rows that are no whole number of a type's blocks take the type that llama.cpp falls
    back to. A quantized checkpoint (compressed-tensors, bitsandbytes) is dequantized. The file's metadata says what it
    was made of (``ingot.*``: nothing that is not in the target's key). Quantized tensors that an earlier result holds,
    made of the same bytes in the same way, are copied from it. Before it ends, llama.cpp opens the file, gives the
    token ids of the Hugging Face tokenizer on probe texts, and generates. With the role ``data`` it also gives the
    logits that transformers gives on held-out rows, within limits that the type explains (``docs/parity.md``).
    """

    kind: ClassVar[str] = "gguf"
    revision: ClassVar[int] = 2
    produces: ClassVar[Format] = "gguf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "imatrix": Role(accepts=("any", "imatrix"), optional=True),
        "data": _export.DATA,
    }
    tools: ClassVar[tuple[str, ...]] = ("llama-cpp-python", "torch", "transformers")
    needs: ClassVar[tuple[str, ...]] = ("accelerate", "compressed-tensors", "gguf", "jinja2", "numpy", "safetensors")
    extra: ClassVar[str | None] = "gguf"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    streams: ClassVar[tuple[str, ...]] = ("model",)
    one_pass: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("bytes_read", "B"),
        Measure("bytes_written", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "1"),
        Measure("compression", "1"),
        Measure("fallback_tensors", "1"),
        Measure("probe_texts", "1"),
        Measure("load_s", "s"),
        Measure("tensors_TYPE", "1", "for each type of tensors in the file"),
        Measure("reused_tensors", "1", "where tensors were copied from earlier results"),
        Measure("reused_bytes", "B", "as reused_tensors"),
        Measure("saved_s", "s", "as reused_tensors"),
        *(it._replace(when="with the role `data`") for it in (*_export.PARITY_MEASURES, _export.TOKENIZER_MEASURE)),
        *(it._replace(when="with the role `data`, of quantized types") for it in _export.EXECUTION_MEASURES),
        *_export.RUNTIME_MEASURES,
    )

    type: FileType = Field(description="The file type in llama.cpp's naming")
    overrides: tuple[Override, ...] = Field(
        default=(), description="Types for single tensors, where the file type is a quantized one"
    )
    token_embedding_type: TensorType | None = Field(default=None, description="The type of the token embedding")
    output_tensor_type: TensorType | None = Field(
        default=None, description="The type of the output layer, or of the token embedding that stands for it"
    )
    imatrix: Source | None = Field(
        default=None, description="An importance matrix in one of llama.cpp's forms, {path: FILE}; or give the role"
    )
    split_bytes: int | None = Field(
        default=None, gt=0, description="Write parts of at most so many bytes of data (model-00001-of-0000N.gguf)"
    )
    strict: bool = Field(default=False, description="Refuse rows that are no whole number of the type's blocks")
    allow_nonfinite: bool = Field(
        default=False, description="Take weights that are NaN or infinite as they are; unquantized types only"
    )

    converter: Converter | None = Field(
        default=None, description="A converter for architectures that ingot does not know: {llama_cpp: PATH}"
    )
    parity: Parity | None = Field(
        default=None,
        exclude_if=absent,
        description="How llama.cpp is compared with transformers on held-out rows of the role 'data'; null: by default",
    )
    benchmark: Benchmark | None = Field(
        default=None, exclude_if=absent, description="How llama.cpp's speed and memory are measured; null: not at all"
    )

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """One importance matrix at most, and one where the type cannot be without."""
        if self.imatrix is not None and "imatrix" in roles:
            yield "imatrix", "the importance matrix is given twice: as a role and as a parameter"
        if self.imatrix is not None and self.imatrix.path is None:
            yield "imatrix", "an importance matrix is a file: give 'path'"
        if self.imatrix is None and "imatrix" not in roles and self.type in NEEDY and not self.overrides:
            yield "type", f"{self.type} needs an importance matrix: give the role 'imatrix', or 'imatrix: {{path: …}}'"
        if self.converter is not None:
            for name in ("overrides", "token_embedding_type", "output_tensor_type", "imatrix", "split_bytes", "strict"):
                if getattr(self, name) or name in roles:
                    yield name, "a file that another converter makes is quantized as llama.cpp does by itself"
        if self.parity is not None and "data" not in roles:
            yield "parity", "is measured on held-out rows: give the role 'data'"
        if self.allow_nonfinite and "data" in roles:
            yield "allow_nonfinite", "a model with weights that are not finite has no logits to compare"
        if self.allow_nonfinite and self.type not in PLAIN:
            yield "allow_nonfinite", f"{self.type} cannot hold weights that are not finite"

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """It is compared with its source on the role ``data`` alone; what is not quantized only as a whole."""
        proven, quantized = "data" in roles, self.type not in PLAIN
        return _export.measured_by(super().measured(roles), self.benchmark, proven=proven, quantized=quantized)

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The model in fp32, where it is timed as another runtime has it."""
        del device
        return 4 * inputs["model"].weights if self.benchmark is not None and self.benchmark.baselines else 0

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights in the smallest type that is asked for: the rules of a file type only ever take larger ones."""
        return Least() if self.converter is not None else inputs["model"].stored(bits(self.coarsest()))

    def serving(self, model: Least) -> Serving:
        """As llama.cpp runs it by default: keys and values in F16."""
        return Serving.of(model, bits(self.coarsest()) if self.converter is None else 0, cached=2)

    def coarsest(self) -> str:
        """Of the types that are asked for, the one with the fewest bits."""
        named = (self.type, *(it.type for it in self.overrides), self.token_embedding_type, self.output_tensor_type)
        return min((name for name in named if name is not None), key=bits)

    @property
    def words(self) -> Parity:
        """How it is compared, the defaults filled in."""
        return self.parity or Parity()

    def windowed(self) -> bool:
        """Blocks flow into the file; another converter holds what it likes."""
        return self.converter is None

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Write the file.

        RefusedInput: E-GGUF-*, E-IMATRIX, E-NONFINITE, E-DATASET-EMPTY, E-BENCHMARK-CONTEXT; StageFailed:
        E-GGUF-SELFCHECK, E-PARITY, E-BENCHMARK, E-LLAMA-CPP, E-GGML.
        """
        return cast("Done", self.run_many([self], given, [out], progress)[0])

    @classmethod
    def run_many(
        cls, stages: Sequence[Stage], given: Given, outs: Sequence[Path], progress: Progress
    ) -> Sequence[Metrics | Done]:
        """Every set of parameters from one read of the model; see ``run``."""
        import torch

        torch.set_num_threads(given.threads)
        asked = [cast("Gguf", stage) for stage in stages]
        groups: dict[bool, list[int]] = {}  # NaN is let through, or not, for a whole read
        done: dict[int, Done] = {}
        for index, stage in enumerate(asked):
            if stage.converter is not None:
                done[index] = _converted(stage, given, outs[index], progress)
                continue
            groups.setdefault(stage.allow_nonfinite, []).append(index)
        for group in groups.values():
            found = _reusing([asked[index] for index in group], given, [outs[index] for index in group], progress)
            done |= dict(zip(group, found, strict=True))
        return [done[index] for index in range(len(asked))]


def _reusing(stages: Sequence[Gguf], given: Given, outs: Sequence[Path], progress: Progress) -> list[Done]:
    """As ``_write``; where an earlier result is not what was recorded of it, once more without any."""
    from ingot.kit.gguf.reuse import Changed

    try:
        return _write(stages, given, outs, progress)
    except Changed as changed:
        progress.phase(f"once more, without earlier results: {changed}")
    for out in outs:
        for path in out.iterdir():
            path.unlink()
    found = _write(stages, replace(given, earlier=()), outs, progress)
    told = "an earlier result, or what was told of an input, was not as recorded; all was encoded"
    return [replace(done, notes={**done.notes, "reuse": told}) for done in found]


def _write(stages: Sequence[Gguf], given: Given, outs: Sequence[Path], progress: Progress) -> list[Done]:
    from ingot.core.digest import tree_digest
    from ingot.kit.gguf import figures
    from ingot.kit.gguf.export import Reuse, export
    from ingot.kit.gguf.hf_input import form_of
    from ingot.kit.gguf.reuse import through
    from ingot.kit.hf import load_tokenizer
    from ingot.kit.parity.gguf import Checks
    from ingot.kit.quant.plain import open_plain
    from ingot.kit.stream.chain import slots

    finite = not stages[0].allow_nonfinite
    given, flowed = _export.held([stage.benchmark for stage in stages], given, progress)
    weights, source = open_plain(given, progress, finite=finite)
    weights.passed |= flowed
    model_bytes = sum(slot.nbytes for slot in slots(weights))
    tokenizer = load_tokenizer(weights.folder)
    form = form_of(weights, tokenizer)
    checks = Checks.of(given, weights.folder, tokenizer, [stage.words for stage in stages], progress)
    products = [_product(stage, given, out, source) for stage, out in zip(stages, outs, strict=True)]
    progress.phase(f"write {', '.join(stage.type for stage in stages)}")

    passed: dict[str, Done] = {}

    def digest() -> str:
        passed.update({role: told() for role, told in weights.passed.items()})
        # What flowed by is what the file was made of, whatever was known of it before.
        return tree_digest(passed["model"].files) if "model" in passed else given.digests["model"][0]

    reuse = Reuse(given.earlier, through(given, "model"))
    written = export(weights, form, products, digest, reuse, threads=given.threads, watch=progress)
    found = []
    for stage, item in zip(stages, written, strict=True):
        checked, proof = checks.run(item.sink.paths()[0], stage.coarsest(), stage.words, finite=finite)
        notes = {**figures.notes_of(item, form.layout.limits()), **({"dequantized_from": source} if source else {})}
        metrics = figures.of_written(item, weights, model_bytes, checked) | proof.metrics
        found.append(Done(metrics, item.files(), item.sink.tensors, passed, notes | proof.notes, item.blocks))
    wanted = [(stage.benchmark, out, done) for stage, out, done in zip(stages, outs, found, strict=True)]
    return _export.with_speed(wanted, weights.folder, given, progress)


def _converted(stage: Gguf, given: Given, out: Path, progress: Progress) -> Done:
    """The file that a llama.cpp checkout makes; its input is verified and the file checked as our own is."""
    from ingot.kit.gguf import figures
    from ingot.kit.gguf.export import provenance
    from ingot.kit.gguf.foreign_converter import Conversion, Snapshots
    from ingot.kit.hf import load_tokenizer
    from ingot.kit.parity.gguf import Checks

    conversion = Conversion(given, Snapshots(*given.sources[-3:]), stage.type, finite=not stage.allow_nonfinite)
    conversion.run(progress)
    facts = _facts(stage, conversion.digest) | {"converter": f"llama.cpp {conversion.identity}"}
    progress.phase(f"write {stage.type}")
    conversion.finish(out / "model.gguf", provenance(facts))
    checks = Checks.of(given, conversion.model, load_tokenizer(conversion.model), [stage.words], progress)
    checked, proof = checks.run(out / "model.gguf", stage.coarsest(), stage.words, finite=not stage.allow_nonfinite)
    read, tensors = conversion.bytes_read, conversion.tensors
    size, parameters = (out / "model.gguf").stat().st_size, sum(info.elements for info in tensors)
    metrics = figures.of_file(figures.Sizes(size, read, read, parameters), [info.type for info in tensors], checked)
    done = Done(metrics | proof.metrics, passed=conversion.passed, notes=proof.notes)
    return _export.with_speed([(stage.benchmark, out, done)], conversion.model, given, progress)[0]


def _facts(stage: Gguf, digest: str | None) -> dict[str, str | int | Sequence[str]]:
    """What every file says of its making; ``digest`` is the model's, None where it is not known yet."""
    from ingot.core.plan import tool_version
    from ingot.kit.gguf.ggml import ggml

    return {
        "kind": f"{stage.kind} {stage.revision}",
        "model.digest": digest or "0" * 64,
        "tools": [f"{name}=={tool_version(name)}" for name in sorted(stage.tools_used())],
        "ggml.version": ggml().version,
    }


def _product(stage: Gguf, given: Given, out: Path, source: str | None) -> Product:
    from ingot.core.digest import hash_file
    from ingot.kit.gguf.export import Product, provenance
    from ingot.kit.gguf.imatrix import imatrix_file, read_imatrix
    from ingot.kit.gguf.mixture import Wish

    place = given.maybe("imatrix") or (given.sources[0] if stage.imatrix is not None else None)
    path = imatrix_file(place) if place is not None and place.is_dir() else place
    overrides = tuple((override.tensors, override.type) for override in stage.overrides)
    facts = _facts(stage, next(iter(given.digests.get("model", ())), None))
    facts |= {"model.dequantized_from": source} if source else {}
    facts |= {"overrides": [f"{pattern}={kind}" for pattern, kind in overrides]}
    facts |= {"imatrix.sha256": hash_file(path)[1]} if path else {}
    wish = Wish(stage.type, path is not None, overrides, stage.token_embedding_type, stage.output_tensor_type)
    return Product(
        path=out / "model.gguf",
        wish=wish,
        provenance=provenance(facts),
        imatrix=read_imatrix(path) if path else None,
        split_bytes=stage.split_bytes,
        strict=stage.strict,
        check=not stage.allow_nonfinite,
    )
