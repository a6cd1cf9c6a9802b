"""ONNX models of ingot, run by ONNX Runtime: on the CPU, or on a GPU where its build has one.

One graph reads a prompt (with keys and values of no tokens) and each next token. A model without such inputs reads the
whole text again at each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from ingot.errors import RefusedInput, StageFailed
from ingot.kit.backends import Next, segments
from ingot.kit.backends.exported import Exported
from ingot.kit.contract import Contract, read_contract
from ingot.kit.onnx_model import graph
from ingot.kit.onnx_model.files import DATA, MODEL
from ingot.kit.onnx_model.read import read_model
from ingot.kit.parity.trace import Trace

Array = npt.NDArray[np.float32]

#: What is tried in this order; a GPU only where ONNX Runtime was built with one.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxBackend(Exported):
    """An ``onnx`` artifact: what its contract says is compared with the model before anything runs."""

    container = "onnx"

    def __init__(self, folder: Path, *, threads: int) -> None:
        """RefusedInput: E-CONTRACT, E-ONNX-FORMAT, E-ONNX-EXTERNAL, E-TOKENIZER; StageFailed: E-ONNX-RUNTIME."""
        contract = read_contract(folder)
        self._model = read_model(folder)
        _compare(contract, self._model)
        super().__init__(folder, contract)
        self._folder, self._threads = folder, threads
        self.parameters = contract.parameters
        self.bytes = sum(path.stat().st_size for name in (MODEL, DATA) if (path := folder / name).is_file())
        self._cached = len(contract.inputs) > len(graph.INPUTS)
        self._hidden = [graph.hidden(layer) for layer in range(contract.layers + 1)]
        self._probed = False
        self._session = _open(str(folder / MODEL), threads)
        self._cache: list[Any] = []
        self._ids: list[int] = []
        self.runtime = f"ONNX Runtime ({self._session.get_providers()[0].removesuffix('ExecutionProvider')})"

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits that predict ``ids[first:]``; a model without a cache reads all at once."""
        self.forget()
        if not self._cached:
            whole = self._read(ids[:-1])[0]
            for start, _, kept in segments(len(ids), first):
                if kept:
                    yield torch.from_numpy(whole[start + kept.start : start + kept.stop])
            return
        for start, stop, kept in segments(len(ids), first):
            rows = self._read(ids[start:stop])[0]
            if kept:
                yield torch.from_numpy(rows[kept.start : kept.stop])

    def prefill(self, ids: Sequence[int]) -> Next:
        """Read a prompt into an empty cache; the logits of the next token."""
        self.forget()
        row: Next = self._read(ids)[0][-1]
        return row

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one."""
        row: Next = self._read([token])[0][-1]
        return row

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """See ``kit.parity.trace.Traced``: the whole text in one go."""
        self.forget()
        return self.append(ids, probes=probes)

    def stepped(self) -> Stepped:
        """The same model run token by token, as when it generates."""
        return Stepped(self)

    def append(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """What comes of more tokens behind those that were read."""
        return Trace(*self._read(ids, self._probes() if probes else ()))

    def forget(self) -> None:
        """Forget the text that was read."""
        self._cache, self._ids = [], []

    def close(self) -> None:
        """Give the memory back; further calls are errors."""
        self._session = None
        self.forget()

    def _read(self, ids: Sequence[int], more: Sequence[str] = ()) -> tuple[Array, tuple[Array, ...]]:
        """Run tokens behind those that were read: logits (n, vocabulary), and the values that ``more`` names."""
        before = len(self._ids)
        if before + len(ids) > self.context:
            raise RefusedInput(
                "E-ONNX-CONTEXT", f"{before + len(ids)} tokens are more than the model's context of {self.context}"
            )
        self._ids += ids
        fed, start = (list(ids), before) if self._cached else (self._ids, 0)
        names = [*(port.name for port in self.contract.outputs), *more]
        made = self._session.run_with_ort_values(names, self._inputs(fed, start))
        count = 2 * self.contract.layers if self._cached else 0
        self._cache = made[1 : 1 + count]
        rows = slice(len(fed) - len(ids), None)
        logits, *hidden = (value.numpy()[0, rows] for value in (made[0], *made[1 + count :]))
        return logits, tuple(hidden)

    def _inputs(self, ids: Sequence[int], start: int) -> Mapping[str, Any]:
        end = start + len(ids)
        plain = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in plain.items()}
        for index, port in enumerate(self.contract.inputs[len(graph.INPUTS) :]):
            values[port.name] = self._cache[index] if self._cache else _none(port.shape, port.dtype)
        return values

    def _probes(self) -> Sequence[str]:
        """The names of the hidden states, from now on given by the session: one on a copy of the model in memory.

        They are the sums that go from layer to layer; a graph in which a runtime has fused them away has none. The
        session that was open is closed first: each holds the weights.
        """
        if not self._probed:
            made = {name for node in self._model.graph.node for name in node.output}
            if not made.issuperset(self._hidden):
                return ()
            copy = onnx.ModelProto()
            copy.CopyFrom(self._model)
            values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._hidden]
            copy.graph.output.extend(values)
            self._session = None
            self._session = _open(copy.SerializeToString(), self._threads, self._folder)
            self._probed = True
        return self._hidden


class Stepped:
    """A backend's traces with every token read by itself, through the cache."""

    def __init__(self, backend: OnnxBackend) -> None:
        self._backend = backend

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """See ``kit.parity.trace.Traced``."""
        self._backend.forget()
        steps = [self._backend.append([token], probes=probes) for token in ids]
        hidden = zip(*(step.hidden for step in steps), strict=True)
        return Trace(np.concatenate([step.logits for step in steps]), tuple(np.concatenate(rows) for rows in hidden))

    def close(self) -> None:
        """See ``OnnxBackend.close``."""
        self._backend.close()


def _open(model: str | bytes, threads: int, weights: Path | None = None) -> Any:
    """A session. ``weights``: where the weights of a model in memory lie."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if weights is not None:
        options.add_session_config_entry(_FOLDER, str(weights))
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=[name for name in _PROVIDERS if name in available]
        )
    except Exception as error:
        raise StageFailed("E-ONNX-RUNTIME", f"ONNX Runtime does not open the model: {error}") from error


def _none(shape: tuple[int | str, ...], dtype: str) -> Any:
    """Keys or values of no tokens: (1, heads, 0, size)."""
    sizes = (1, int(shape[1]), 0, int(shape[3]))
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(sizes, dtype))


def _compare(contract: Contract, model: onnx.ModelProto) -> None:
    """Refuse a model whose inputs and outputs are not those of its contract (E-CONTRACT)."""
    for told, found in ((contract.inputs, model.graph.input), (contract.outputs, model.graph.output)):
        ports = [(port.name, port.dtype, port.shape) for port in told]
        if ports != (there := [port_of(value) for value in found]):
            odd = [item[0] for item in there if item not in ports] or [item[0] for item in ports if item not in there]
            raise RefusedInput(
                "E-CONTRACT",
                f"{MODEL} has other inputs or outputs than contract.json says",
                facts=[f"differs: {', '.join(odd[:4]) or 'their order'}"],
                hint="build the export again",
            )
    names = [port.name for port in contract.inputs]
    known = names[:3] == list(graph.INPUTS) and (len(names) == 3 or len(names) == 3 + 2 * contract.layers)
    if not known or contract.outputs[0].name != graph.LOGITS:
        raise RefusedInput("E-CONTRACT", "the inputs and outputs of the export are not those that ingot writes")


def port_of(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """Name, type and sizes of an input or output."""
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes
