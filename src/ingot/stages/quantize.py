"""``quantize``: weights in fewer bits, in a checkpoint that transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Frozen, Given, Least, Measure, Progress, Reproducibility, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.quant.choose import Wish
    from ingot.kit.quant.flow import Flow
    from ingot.kit.stream.vocabulary import Weights

Scheme = Literal["W8A16", "W4A16", "W8A8", "FP8", "NF4", "INT8", "FP16", "BF16"]
Size = Annotated[int, Field(ge=4)]

_PACKED, _BITSANDBYTES, _CASTS = ("W8A16", "W4A16"), ("NF4", "INT8"), ("FP16", "BF16")
#: The schemes that a method fits weights to.
_FITTED = {"gptq": ("W8A16", "W4A16", "W8A8"), "awq": ("W8A16", "W4A16")}


#: Bits of a weight, without scales.
_BITS = {"W4A16": 4, "NF4": 4, "W8A16": 8, "W8A8": 8, "FP8": 8, "INT8": 8, "FP16": 16, "BF16": 16}


class Override(Frozen):
    """Another scheme for some modules: linear layers or embeddings. The first of the list that fits counts."""

    modules: tuple[str, ...] = Field(
        min_length=1,
        description="words of names side by side (`q_proj`, `layers.0`), or patterns over whole names (`*.layers.0.*`)",
    )
    scheme: Literal["W8A16", "W4A16", "W8A8", "FP8", "FP16", "BF16"] = Field(description="their scheme")
    group_size: Size | None = Field(default=None, description="inputs that share a scale; unless given, a row does")
    symmetric: bool = Field(default=True, description="whether zero stands in the middle of the integers")


class Quantize(Stage):
    """Stores the linear layers in fewer bits; embeddings, norms and the output embedding stay unless ``overrides`` name
    them. docs/quantization.md says who loads which scheme and what that needs.

    ``rtn`` rounds to nearest and streams: each weight that was packed is decoded by the format's own library on the way
    and compared with the input. ``gptq`` and ``awq`` fit the weights to calibration documents first, with the model in
    memory. FP16 and BF16 round everything to that dtype. What was written is loaded again by transformers and compared.
    """

    kind: ClassVar[str] = "quantize"
    revision: ClassVar[int] = 3
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "bitsandbytes", "compressed-tensors", "llmcompressor", "tokenizers", "torch", "transformers",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = ("accelerate", "jinja2", "numpy", "safetensors")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed_tensors")
    streams: ClassVar[tuple[str, ...]] = ("model",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("weight_bytes", "B"),
        Measure("bits_per_weight", "bits"),
        Measure("compression", "1"),
        Measure("layers_SCHEME", "1", "one a scheme that some modules have"),
        Measure("quantized_layers", "1", "unless all is a cast"),
        Measure("quantized_parameters", "parameters", "as quantized_layers"),
        Measure("max_error_steps", "1", "where integers of compressed-tensors were rounded to nearest"),
        Measure("relative_error", "1", "where anything was rounded"),
        Measure("relative_error_SCHEME", "1", "with several schemes"),
        Measure("reload_difference", "1", "of a model of at most 1 GiB as float32, unless it stays virtual"),
        Measure("reloaded_weights", "1", "unless it stays virtual"),
        Measure("calibration_documents", "documents", "gptq, awq"),
        Measure("calibration_tokens", "tokens", "gptq, awq"),
        Measure("smoothing_difference", "1", "awq"),
    )

    scheme: Scheme = Field(default="W8A16", description="How the linear layers are stored")
    method: Literal["rtn", "gptq", "awq"] = Field(
        default="rtn", description="How weights are rounded: to nearest, or fitted to the calibration documents"
    )
    group_size: Size | None = Field(
        default=None, description="Inputs that share a scale; unless given, a whole output row does"
    )
    symmetric: bool = Field(default=True, description="Whether zero stands in the middle of the integers")
    ignore: tuple[str, ...] | None = Field(
        default=None, description="Modules that stay as they are; unless given, the output embedding (lm_head)"
    )
    overrides: tuple[Override, ...] = Field(default=(), description="Other schemes for some modules; above `ignore`")
    act_order: bool = Field(default=True, description="gptq: columns with large inputs first")
    damping: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01, description="gptq: share of the mean that is added to the diagonal of the Hessian"
    )
    documents: Annotated[int, Field(ge=1)] = Field(default=128, description="Calibration documents (gptq, awq)")
    max_length: Annotated[int, Field(ge=8)] = Field(
        default=512, description="Tokens at which a calibration document is cut"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where gptq and awq compute")
    allow_nonfinite: bool = Field(default=False, description="Take weights that are NaN or infinite as they are")

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Calibration is of the methods that are fitted."""
        absent = {"rtn": ("calibration_documents", "calibration_tokens", "smoothing_difference"),
                  "gptq": ("smoothing_difference",), "awq": ()}[self.method]  # fmt: skip
        return tuple(name for name in super().measured(roles) if name not in absent)

    @model_validator(mode="after")
    def _check(self) -> Quantize:
        own = (self.scheme, self.group_size, self.symmetric)
        for scheme, size, symmetric in (own, *((o.scheme, o.group_size, o.symmetric) for o in self.overrides)):
            if scheme not in _PACKED and (size is not None or not symmetric):
                raise ValueError(f"group_size and symmetric are about W8A16 and W4A16, not about {scheme}")
        return self

    def reproduces(self) -> Reproducibility:
        """Sums over calibration documents depend on the device that makes them."""
        return "deterministic" if self.method == "rtn" or self.device == "cpu" else "device_dependent"

    def tools_used(self) -> tuple[str, ...]:
        """A cast asks no library of a format; only methods that fit read text and run the model."""
        fitted = ("llmcompressor", "tokenizers") if self.method != "rtn" else ()
        if self.scheme in _BITSANDBYTES:
            return ("bitsandbytes", "torch", "transformers")
        cast = self.scheme in _CASTS and all(other.scheme in _CASTS for other in self.overrides)
        return (*(() if cast else ("compressed-tensors",)), *fitted, "torch", "transformers")

    def needs_used(self) -> tuple[str, ...]:
        """accelerate loads bitsandbytes' checkpoints, and runs models for llm-compressor."""
        plain = self.method == "rtn" and self.scheme not in _BITSANDBYTES
        return ("numpy", "safetensors") if plain else self.needs

    def device_wanted(self) -> Device | None:
        """Rounding to nearest uses the CPU."""
        return None if self.method == "rtn" else self.device

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The model, for methods that run it: awq in float32; a GPU is used for a layer at a time."""
        if self.method == "rtn" or device != "cpu":
            return 0
        return inputs["model"].weights * (4 if self.method == "awq" else 2)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights in the fewest bits that are asked for."""
        return inputs["model"].stored(min(_BITS[name] for name in (self.scheme, *(it.scheme for it in self.overrides))))

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Which methods, schemes and roles go together."""
        if self.method != "rtn":
            if self.scheme not in _FITTED[self.method]:
                fits = ", ".join(_FITTED[self.method])
                yield "method", f"'method: {self.method}' fits weights of {fits}; {self.scheme} goes with 'method: rtn'"
            elif self.method == "gptq" and self.scheme == "W8A16" and not self.symmetric:
                yield "symmetric", "'method: gptq' makes no asymmetric W8A16; leave symmetric out, or use 'method: rtn'"
            if "calibration" not in roles:
                yield (
                    "calibration",
                    f"the role 'calibration' is not filled, and 'method: {self.method}' needs its documents",
                )
        if self.scheme in _BITSANDBYTES and (mixed := [o.scheme for o in self.overrides if o.scheme not in _CASTS]):
            what = f"a checkpoint of bitsandbytes ({self.scheme}) holds no {mixed[0]}; use FP16 or BF16 there"
            yield "overrides", f"{what}, or W8A16 in place of {self.scheme}"

    def weightwise(self) -> bool:
        """Methods that fit must run the whole model first."""
        return self.method == "rtn"

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Quantize; see the class.

        RefusedInput: E-QUANTIZE-*, E-QUANTIZED, E-NONFINITE, E-DTYPE-RANGE, E-DATASET-EMPTY, E-DEVICE; StageFailed:
        E-QUANTIZE-VERIFY, E-QUANTIZE-RELOAD, E-QUANTIZE-AWQ, E-ONESHOT.
        """
        from ingot.kit.quant.flow import proved
        from ingot.kit.stream.inputs import write

        flow = self._flow(given, progress, whole=True)
        done = write(flow.weights, given, out, progress)
        return proved(flow, done, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The quantized checkpoint as a stream; the other files lie in the weights' folder."""
        return self._flow(given, progress, whole=False).weights

    def _flow(self, given: Given, progress: Progress, *, whole: bool) -> Flow:
        from ingot.kit.quant.calibrated import Fit
        from ingot.kit.quant.flow import Settings, flow

        fit = None if self.method == "rtn" else Fit(self.method, self.act_order, self.damping)
        settings = Settings(
            self._wish(), fit, self.documents, self.max_length, self.device, finite=not self.allow_nonfinite, keep=whole
        )
        return flow(settings, given, progress)

    def _wish(self) -> Wish:
        from ingot.kit.quant.choose import Wish
        from ingot.kit.quant.scheme import Scheme

        return Wish(
            Scheme(self.scheme, self.group_size, self.symmetric),
            self.ignore,
            tuple((other.modules, Scheme(other.scheme, other.group_size, other.symmetric)) for other in self.overrides),
        )
