"""Constants of a program as tensors: decoded when they are first needed, equal ones once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingot.kit.mil import constants
from ingot.kit.mil.package import Package
from ingot.kit.mil.program import Function, Literal, Operation, refused

#: Constants of up to so many elements are arguments (axes, masks, numbers) and are decoded at once.
SMALL = 4096


@dataclass(frozen=True)
class Weight:
    """A constant that is decoded when it is used; ``key`` is equal for equal content."""

    key: str
    operation: Operation


class Weights:
    """Decoded constants of a package, kept up to a number of bytes; beyond that they are decoded at every use."""

    def __init__(self, package: Package, most: int | None) -> None:
        """``most`` None keeps all."""
        self.package = package
        self._room = most
        self._kept: dict[str, Any] = {}

    def of(self, function: Function) -> dict[str, Weight]:
        """All constants of a function by name. RefusedInput: E-MIL-BLOB where one is not stored soundly."""
        found: dict[str, Weight] = {}
        for operation in function.operations:
            if operation.constant:
                key = self._key(operation, found)
                (name, _), *_ = operation.outputs
                found[name] = Weight(key, operation)
        return found

    def value(self, weight: Weight, known: Mapping[str, Weight]) -> Any:
        """The tensor (or the string) of a constant."""
        if weight.key in self._kept:
            return self._kept[weight.key]
        arguments = {
            key: self.argument(argument, weight.operation.where, known)
            for key, (argument,) in weight.operation.arguments.items()
        }
        found = constants.evaluate(weight.operation, arguments)
        size = getattr(found, "nbytes", 0)
        if self._room is None or size <= self._room:
            self._room = None if self._room is None else self._room - size
            self._kept[weight.key] = found
            if hasattr(found, "flags"):
                found.flags.writeable = False
        return found

    def argument(self, argument: str | Literal, where: str, known: Mapping[str, Weight]) -> Any:
        """The content of a constant's or an operation's argument."""
        if isinstance(argument, str):
            return self.value(known[argument], known)
        return constants.literal(argument, self.package, where)

    def _key(self, operation: Operation, known: Mapping[str, Weight]) -> str:
        parts = [operation.kind, str(operation.outputs[0][1])]
        for name in sorted(operation.arguments):
            arguments = operation.arguments[name]
            if len(arguments) != 1 or (isinstance(arguments[0], str) and arguments[0] not in known):
                raise refused(f"{operation.where} reads {name}, which is no constant")
            argument = arguments[0]
            if isinstance(argument, str):
                parts.append(f"{name}={known[argument].key}")
                continue
            if argument.file is not None:
                self.package.blobs(argument.file).check(argument.value.blobFileValue.offset, argument.type)
            parts.append(f"{name}={argument.key()}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
