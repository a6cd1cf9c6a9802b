"""``onnx``: a Hugging Face folder as an ONNX model for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Given, Least, Measure, Metric, Progress, Role, Serving, Stage
from ingot.stages._export import (
    DATA,
    EXECUTION_MEASURES,
    PARITY_MEASURES,
    RUNTIME_MEASURES,
    TOKENIZER_MEASURE,
    Benchmark,
    Parity,
    measured_by,
    with_speed,
)

if TYPE_CHECKING:
    from ingot.kit.onnx_model.export import Facts, Wishes
    from ingot.kit.onnx_model.quantize import Plan
    from ingot.kit.parity.golden import Golden
    from ingot.kit.parity.prove import Proof
    from ingot.kit.parity.reference import Reference, SourceModel
    from ingot.kit.parity.trace import Traced

#: Bits of a weight, without scales; of one that is not quantized those of the precision.
_BITS = {"int4": 4, "int8": 8, "int8_dynamic": 8, "float16": 16, "float32": 32}


class Onnx(Stage):
    """Writes ``model.onnx``, its tokenizer and ``contract.json``; large weights lie in ``model.onnx.data``.

    torch's exporter writes down a module of our own; batch and length are free. With ``kv_cache`` one graph reads a
    prompt and each next token: ``past_key_values.N.key`` and ``.value`` come in, ``present.N.…`` go out. The saved
    model is checked, then run by ONNX Runtime on golden texts, whole and token by token, and compared with its source.
    Norms, the sum of all layers, angles of positions and logits are computed in fp32 whatever the precision.
    """

    kind: ClassVar[str] = "onnx"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "onnx"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(accepts=("hf",)), "data": DATA}
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")
    needs: ClassVar[tuple[str, ...]] = ("accelerate", "compressed-tensors", "numpy", "safetensors", "transformers")
    extra: ClassVar[str | None] = "onnx"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "1"),
        Measure("nodes", "1"),
        *PARITY_MEASURES,
        *EXECUTION_MEASURES,
        TOKENIZER_MEASURE,
        *RUNTIME_MEASURES,
        Measure("weight_bytes_TYPE", "B", "for each type of stored numbers"),
    )

    precision: Literal["float32", "float16"] = Field(
        default="float32", description="What matrices are stored and multiplied in, unless they are quantized"
    )
    quantization: Literal["none", "int8", "int8_dynamic", "int4"] = Field(
        default="none",
        description="How ONNX Runtime's tools store matrices: int8 or int4 with a scale and a zero point a block, or "
        "int8_dynamic with a scale a column, where inputs are quantized too, with one scale a call (fast, and coarse); "
        "the embedding is then stored in float16",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32, description="int8 and int4: inputs of a matrix that share a scale; must divide them"
    )
    products: Literal["int8", "float"] = Field(
        default="int8", description="int8 and int4: what CPUs multiply in, int8 (faster) or what the precision says"
    )
    kv_cache: bool = Field(default=True, description="Whether keys and values of earlier tokens come in and go out")
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens of the longest text, at most the model's context (null)"
    )
    opset: int = Field(default=21, ge=18, le=23, description="The version of ONNX's operators")
    optimization: Literal["none", "basic", "extended"] = Field(
        default="none",
        description="What ONNX Runtime rewrites once and for all; sessions optimize as they load in any case. extended "
        "uses operators of its own, which other runtimes do not have",
    )
    external_data_bytes: int = Field(
        default=100 << 20,
        ge=0,
        le=(1 << 31) - (1 << 24),  # a protobuf holds 2 GiB at the most
        description="Weights of more bytes together lie in model.onnx.data",
    )
    parity: Parity = Field(default=Parity(), description="How it is compared with its source")
    benchmark: Benchmark | None = Field(
        default=None, description="How its speed is measured, side by side with others; null: it is not"
    )

    @model_validator(mode="after")
    def _agree(self) -> Onnx:
        if self.quantization == "int8_dynamic" and self.precision == "float16":
            raise ValueError("quantization: int8_dynamic needs precision: float32 (its inputs are quantized from that)")
        return self

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """What its matrices compute is compared apart where they are quantized."""
        quantized = self.quantization != "none"
        return measured_by(super().measured(roles), self.benchmark, proven=True, quantized=quantized)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights in the bits that are asked for; they are in no file whose elements are counted."""
        return Least(inputs["model"].stored(self._bits()).bytes) if "model" in inputs else Least()

    def serving(self, model: Least) -> Serving:
        """Keys and values go in and out in the precision; see ``Stage``."""
        cached = _BITS[self.precision] // 8 if self.kv_cache else 0
        return Serving.of(model, self._bits(), cached=cached, context=self.max_length or 0)

    def _bits(self) -> int:
        return _BITS[self.precision if self.quantization == "none" else self.quantization]

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """RefusedInput and StageFailed as ``kit.onnx_model.export`` has them; StageFailed: E-PARITY, E-ONNX-RUNTIME."""
        import torch

        from ingot.kit.hf import load_tokenizer, read_config
        from ingot.kit.onnx_model.export import export
        from ingot.kit.parity.tokenizers import check_tokenizer
        from ingot.kit.quant.plain import quantization

        torch.set_num_threads(given.threads)
        model = given.one("model")
        texts, reference = self._golden(given, progress)
        facts = export(model, out, given.scratch, self._wishes(given), progress)
        progress.phase("compare with the source")
        proof = self._prove(out, texts, reference, given)
        tokenizer = check_tokenizer(out, load_tokenizer(model), texts)
        quantized = quantization(read_config(model))
        notes: dict[str, object] = {} if quantized is None else {"dequantized_from": quantized}
        notes["parity"] = proof.notes
        metrics = {**_metrics(facts), **proof.metrics, "tokenizer_texts": tokenizer}
        return with_speed([(self.benchmark, out, Done(metrics, notes=notes))], model, given, progress)[0]

    def _wishes(self, given: Given) -> Wishes:
        from ingot.kit.onnx_model.convert import Settings
        from ingot.kit.onnx_model.export import Wishes

        settings = Settings(self.precision, self.kv_cache, self.opset, self.external_data_bytes, self._plan())
        # what is in the target's key, and nothing else
        metadata = {
            "ingot.kind": self.kind,
            "ingot.revision": str(self.revision),
            "ingot.model": given.digests["model"][0],
            "ingot.precision": self.precision,
            "ingot.quantization": self.quantization,
        }
        return Wishes(settings, self.max_length, self.optimization, metadata)

    def _plan(self) -> Plan | None:
        from ingot.kit.onnx_model.quantize import Plan

        if self.quantization == "none":
            return None
        return Plan(self.quantization, self.opset, self.block_size, 4 if self.products == "int8" else 0)

    def _golden(self, given: Given, progress: Progress) -> tuple[Golden, Reference]:
        """Run the source first and let it go: the two are never in memory together."""
        from ingot.kit.decoder.shape import decoder_shape
        from ingot.kit.hf import read_config
        from ingot.kit.onnx_model.export import refuse

        shape = decoder_shape(read_config(given.one("model")), "E-ONNX-ARCH")
        refuse(shape, self.max_length, self._plan())
        return self.parity.of_source(given, self.max_length or shape.context, progress)

    def _prove(self, out: Path, texts: Golden, reference: Reference, given: Given) -> Proof:
        """Against the source; with quantized weights also against the source's modules with those that are stored."""
        from ingot.kit.backends.onnx import OnnxBackend
        from ingot.kit.parity.limits import LIMITS
        from ingot.kit.parity.prove import Proof, prove
        from ingot.kit.parity.reference import record

        own = self._stored(out, given)
        executed = None if own is None else record(own, texts, given.scratch / "execution")
        backend = OnnxBackend(out, threads=given.threads)
        runs: dict[str, Traced] = {"prefill": backend}
        if self.kv_cache:
            runs["decode"] = backend.stepped()
        metrics: dict[str, Metric] = {}
        notes: dict[str, object] = {}
        if executed is not None:
            # first: that the graph computes something else says more than that it is far from its source
            limits = LIMITS["llama.cpp" if self.products == "int8" else self.precision]
            found = prove(runs, texts, executed, limits, name="execution")
            metrics, notes = dict(found.metrics), {"execution": found.notes}
        stored = self.precision if self.quantization == "none" else self.quantization
        proof = prove(runs, texts, reference, self.parity.limits(stored))
        backend.close()
        return Proof({**proof.metrics, **metrics}, {"parity": proof.notes, **notes})

    def _stored(self, out: Path, given: Given) -> Callable[[], SourceModel] | None:
        """The source's modules with the weights that were saved; None where they are the source's own, or not alone."""
        if self.quantization not in {"int8", "int4"}:
            return None
        from ingot.kit.decoder.shape import decoder_shape
        from ingot.kit.hf import read_config
        from ingot.kit.onnx_model.stored import stored_weights
        from ingot.kit.parity.reference import SourceModel
        from ingot.kit.quant.plain import plain_weights

        model = given.one("model")
        names = [name for name in plain_weights(model) if not name.endswith("rotary_emb.inv_freq")]
        readers = stored_weights(out, names, decoder_shape(read_config(model), "E-ONNX-ARCH"))
        return None if readers is None else lambda: SourceModel(model, threads=given.threads, weights=readers)


def _metrics(facts: Facts) -> dict[str, Metric]:
    return {
        "bytes": Metric(facts.bytes, "B", "size of the model and of its weights' file"),
        "parameters": Metric(facts.parameters, "parameters", "weights of the model, tied ones counted once"),
        "bits_per_weight": Metric(8 * facts.bytes / facts.parameters, "1", "bits of bytes over the parameters"),
        "nodes": Metric(facts.nodes, "1", "nodes of the saved graph"),
        **{
            f"weight_bytes_{kind}": Metric(count, "B", f"stored numbers of type {kind}")
            for kind, count in facts.weight_bytes.items()
        },
    }
