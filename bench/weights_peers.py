"""The three steps of the usual way, each in a process of its own: PEFT's merge, llama.cpp's converter and quantizer.

python bench/weights_peers.py merge MODEL ADAPTER OUT
python bench/weights_peers.py convert LLAMA_CPP MODEL OUT.gguf
python bench/weights_peers.py quantize IN.gguf OUT.gguf TYPE THREADS
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shutil
import sys
from pathlib import Path


def merge(model: str, adapter: str, out: str) -> None:
    """``merge_and_unload`` in bfloat16, saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(out)
    for path in Path(model).glob("token*"):
        shutil.copy(path, out)


def convert(llama_cpp: str, model: str, out: str) -> None:
    """``convert_hf_to_gguf.py`` to bfloat16: what the weights are stored in."""
    os.environ["PYTHONPATH"] = f"{llama_cpp}/gguf-py"
    sys.path[:0] = [f"{llama_cpp}/gguf-py", llama_cpp]
    sys.argv = ["convert_hf_to_gguf.py", model, "--outtype", "bf16", "--outfile", out]
    runpy.run_path(f"{llama_cpp}/convert_hf_to_gguf.py", run_name="__main__")


def quantize(source: str, out: str, kind: str, threads: str) -> None:
    """``llama_model_quantize``."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = int(threads)
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings)):
        raise SystemExit("llama_model_quantize failed")


if __name__ == "__main__":
    {"merge": merge, "convert": convert, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])
