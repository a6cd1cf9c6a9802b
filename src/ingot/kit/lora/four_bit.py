"""A base in four bits to train over (QLoRA, Dettmers et al. 2023): NF4 with double quantization, by bitsandbytes.

Weights are quantized on the CPU wherever they are used then, so that ``merge`` can repeat it on any machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ingot.errors import StageFailed
from ingot.kit import bitsandbytes_library, hf, layers
from ingot.kit.lora.files import Quantization
from ingot.kit.lora.nf4 import RoundTrip, identity


def load(folder: Path, dtype: str, *, attention: str) -> Any:
    """The folder's model with every linear layer but the output in NF4, computing in ``dtype``.

    RefusedInput (E-QUANTIZED) for a model that is quantized already. StageFailed (E-ADAPTER-NF4) when bitsandbytes does
    not compute with the weights that its own quantization gives.
    """
    layers.refuse_quantized(folder, "adapter")
    four_bit = bitsandbytes_library.part("nn", "'method: qlora' quantizes the base with it").Linear4bit
    model = hf.load_model(folder, dtype, quantized=bitsandbytes_library.nf4_config(dtype), attention=attention)
    found = {name: module for name, module in model.named_modules() if isinstance(module, four_bit)}
    for module in found.values():
        # Else it lays the weights out for inference when it first scores, and gives no gradient from then on.
        module.support_avx512bf16_for_cpu = False
    _check(folder, found, quantization(dtype))
    return model.requires_grad_(requires_grad=False)


def quantization(dtype: str) -> Quantization:
    """What ``load`` did to the base, as an adapter records it; with what it makes of a fixed tensor here."""
    how = Quantization("nf4", dtype=dtype)
    return replace(how, identity=identity(how))


def _check(folder: Path, modules: dict[str, Any], how: Quantization) -> None:
    """Of each shape one layer: what it multiplies by must be what ``merge`` will take for its weight."""
    trip = RoundTrip(how)
    wanted: dict[tuple[int, int], str] = {}
    for name, module in modules.items():
        wanted.setdefault((module.out_features, module.in_features), f"{name}.weight")
    names = set(wanted.values())
    for name, weight in hf.iter_tensors(folder):
        if name not in names:
            continue
        module = modules[name.removesuffix(".weight")]
        with torch.no_grad():
            unit = torch.eye(module.in_features, dtype=hf.torch_dtype(how.dtype or "bfloat16"))
            used = (module(unit) - (0 if module.bias is None else module.bias)).T.float()
        if not used.equal(trip.reader(weight)(0, weight.shape[0])):
            raise StageFailed(
                "E-ADAPTER-NF4",
                "bitsandbytes multiplies by other weights here than its quantization gives",
                facts=[f"{name}: {module.out_features} × {module.in_features}, blocks of {how.blocksize}"],
                hint="use 'method: lora' for this model, or a machine whose processor has no AVX-512",
            )
