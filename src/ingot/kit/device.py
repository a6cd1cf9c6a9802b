"""Where a stage computes: the device that a spec asks for, resolved on the machine that builds."""

from __future__ import annotations

import torch

from ingot.errors import RefusedInput


def resolve(wanted: str) -> torch.device:
    """The device of ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``. RefusedInput (E-DEVICE): it is absent."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RefusedInput(
            "E-DEVICE",
            f"the spec asks for 'device: {wanted}', and this machine has no CUDA device that torch can use",
            facts=[f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"],
            hint="use 'device: auto' or 'device: cpu', or build on a machine with a GPU",
        )
    return torch.device("cuda", torch.cuda.current_device())


def described(device: torch.device) -> dict[str, str]:
    """The device as a receipt notes it: its type and, of a GPU, its name."""
    if device.type != "cuda":
        return {"device": device.type}
    return {"device": device.type, "device_name": torch.cuda.get_device_name(device)}


def words(device: torch.device) -> str:
    """The device in the method of a measurement: nothing of the processor, else `` on`` the name of the GPU."""
    return "" if device.type != "cuda" else f" on {torch.cuda.get_device_name(device)}"


def uuid(device: torch.device) -> str | None:
    """The UUID of a GPU as NVML has it; None for the processor."""
    return None if device.type != "cuda" else f"GPU-{torch.cuda.get_device_properties(device).uuid}"
