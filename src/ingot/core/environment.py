"""The one fixed environment of stages."""

from __future__ import annotations

import os

#: Network kinds get these through, by prefix or name; they are never recorded.
_NETWORK_VARIABLES = (
    "PIP_",
    "HF_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
_PASSED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "SYSTEMROOT")

#: Libraries ask no hub for what they miss. Read as they are imported.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
#: Libraries tell nobody what is done with them: from 1.29 on, ONNX Runtime sends that to its makers unless told not to.
UNTOLD = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "ORT_DISABLE_TELEMETRY": "1"}


def environment(*, network: bool) -> dict[str, str]:
    """The one fixed environment of stages; network kinds get proxies, certificates and pip's and the hub's settings."""
    fixed = {
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait sleep: spinning ones take the processor from whatever else runs on the machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **UNTOLD,
    }
    env = {name: os.environ[name] for name in _PASSED if name in os.environ}
    if network:
        env |= {name: value for name, value in os.environ.items() if name.upper().startswith(_NETWORK_VARIABLES)}
        return env | fixed
    return env | fixed | OFFLINE
