"""From a checkpoint to a package: trace, convert with empty matrices, put functions together, fill the matrices in."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch

from ingot.core.stage import Progress
from ingot.kit.coreml import package, program
from ingot.kit.coreml.blobs import append_missing
from ingot.kit.coreml.cached import Cached
from ingot.kit.coreml.checkpoint import Checkpoint, stand_in
from ingot.kit.coreml.filling import constant_name, fill
from ingot.kit.coreml.prefill import Prefill
from ingot.kit.coreml.settings import INPUT, KEYS, MAIN, OUTPUT, POSITION, VALUES, Lengths, Settings
from ingot.kit.coreml.storing import pipeline
from ingot.kit.coreml.traced import refuse_wide_integers
from ingot.kit.decoder.shape import DecoderShape


@dataclass(frozen=True)
class Model:
    """What is converted."""

    shape: DecoderShape
    checkpoint: Checkpoint
    settings: Settings

    @property
    def constants(self) -> frozenset[str]:
        """The names that a program gives the matrices."""
        return frozenset(constant_name(name) for name in self.checkpoint.matrices())


def convert(model: Model, target: Path, scratch: Path, facts: Mapping[str, str], progress: Progress) -> Any:
    """Write the package in canonical form; ``facts`` go into its metadata. Returns its protobuf.

    RefusedInput (E-COREML-TENSOR, E-COREML-RANGE), StageFailed (E-COREML-INT64, E-COREML-SELFCHECK).
    """
    made = {}
    for name, lengths in model.settings.functions.items():
        progress.phase(f"convert {name}" if name != MAIN else "convert")
        made[name] = scratch / f"{name}.mlpackage"
        _convert(model, lengths).save(str(made[name]))
        gc.collect()
    spec = program.load(made[next(iter(made))])
    if model.settings.context:
        spec = _together(made)
    progress.phase("write weights")
    package.write(next(iter(made.values())), spec, target, facts)
    fill(target, spec, model.checkpoint, model.settings, progress)
    package.seal(target)
    return spec


def _convert(model: Model, lengths: Lengths) -> Any:
    """One function as a coremltools model (an ML program) whose matrices hold nothing yet."""
    settings = model.settings
    with torch.no_grad():
        traced = _traced(model, lengths)
    refuse_wide_integers(traced)
    number = np.dtype(settings.precision).type
    inputs = [ct.TensorType(name=INPUT, shape=_shape(lengths), dtype=np.int32)]
    states = None
    if settings.context:
        inputs.append(ct.TensorType(name=POSITION, shape=(1,), dtype=np.int32))
        sizes = (model.shape.layers, model.shape.kv_heads, settings.context, model.shape.head_dim)
        wrapped = ct.TensorType(shape=sizes, dtype=np.float16)
        states = [ct.StateType(wrapped_type=wrapped, name=name) for name in (KEYS, VALUES)]
    return ct.convert(
        traced,
        source="pytorch",
        convert_to="mlprogram",
        inputs=inputs,
        outputs=[ct.TensorType(name=OUTPUT, dtype=number)],
        states=states,
        minimum_deployment_target=getattr(ct.target, settings.target),
        compute_precision=getattr(ct.precision, settings.precision.upper()),
        pass_pipeline=pipeline(settings, model.constants),
        skip_model_load=True,
    )


def _traced(model: Model, lengths: Lengths) -> Any:
    decoder = stand_in(model.shape, model.checkpoint, model.settings.precision)
    kind = torch.float16 if model.settings.precision == "float16" else torch.float32
    # what is not fixed is traced on two tokens: numbers matter to nobody, and fp16 is slow here
    example = torch.zeros((1, lengths.most if lengths.fixed else 2), dtype=torch.int32)
    if not model.settings.context:
        module = Prefill(decoder, lengths.most).to(kind).eval()
        module.whole = lengths.fixed
        return torch.jit.trace(module, example, check_trace=False)
    cached = Cached(decoder, model.settings.context, lengths.most if lengths.fixed else 0).to(kind).eval()
    return torch.jit.trace(cached, (example, torch.zeros(1, dtype=torch.int32)), check_trace=False)


def _shape(lengths: Lengths) -> Any:
    """The shape of the ids as coremltools wants it. Of a range the longest is what the system prepares for."""
    if lengths.fixed:
        return (1, lengths.most)
    if lengths.listed:
        shapes = [(1, length) for length in lengths.listed]
        return ct.EnumeratedShapes(shapes=shapes, default=shapes[0])
    return (1, ct.RangeDim(lower_bound=lengths.least, upper_bound=lengths.most, default=lengths.most))


def _together(made: Mapping[str, Path]) -> Any:
    """One program of several functions; the file of weights of the first gets what only the others have.

    As coremltools' ``save_multifunction`` does it, without loading the weights. The first runs by default.
    """
    first, *others = made
    spec = program.load(made[first])
    whole = type(spec)(specificationVersion=spec.specificationVersion)
    whole.description.metadata.CopyFrom(spec.description.metadata)
    whole.description.defaultFunctionName = first
    whole.mlProgram.version = spec.mlProgram.version
    for name in made:
        one = program.load(made[name])
        if name in others:
            moved = append_missing(made[first] / program.WEIGHTS, made[name] / program.WEIGHTS)
            for operation in program.operations(one):
                for value in program.stored(operation).values():
                    value.blobFileValue.offset = moved[value.blobFileValue.offset]
        whole.mlProgram.functions[name].CopyFrom(one.mlProgram.functions["main"])
        described = one.description
        whole.description.functions.add(
            name=name, input=described.input, output=described.output, state=described.state
        )
    return whole
