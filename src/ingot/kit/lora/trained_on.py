"""Whether adapters are merged into what they were trained on: the base's digest, and its quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ingot.errors import RefusedInput
from ingot.kit.lora.files import Quantization, Record
from ingot.kit.lora.nf4 import identity


def refuse_other_base(records: Sequence[Record], digest: str) -> None:
    """Refuse an adapter that records another base than the one of this artifact digest (E-MERGE-BASE)."""
    for number, record in enumerate(records, 1):
        if record.base_digest is not None and record.base_digest != digest:
            raise RefusedInput(
                "E-MERGE-BASE",
                f"adapter {number} was trained on another base" if len(records) > 1 else
                "the adapter was trained on another base",
                facts=[f"trained on {record.base_digest}", f"to be merged into {digest}"],
                hint="merge it into the model it was trained on; 'allow_other_base: true' merges it all the same",
            )  # fmt: skip


def quantization(records: Sequence[Record], stated: Quantization | None) -> Quantization | None:
    """The quantization that all adapters were trained over; None: plain weights.

    An adapter without a record was trained over what the spec states. RefusedInput (E-MERGE-QUANTIZER) when records and
    statement differ, or when bitsandbytes here does not do what it did there.
    """
    claims = [record.quantization if record.known else stated for record in records]
    if stated is not None:
        claims.append(stated)
    first = claims[0]
    for claim in claims[1:]:
        if not _same(first, claim):
            raise RefusedInput(
                "E-MERGE-QUANTIZER",
                "it is not clear over which quantization the adapter was trained",
                facts=[_shown(first), _shown(claim)],
                hint="leave 'quantization' out where the adapter records it, and merge adapters that differ one by one",
            )
    known = [claim for claim in claims if claim is not None]
    if not known:
        return None
    dtype = next((claim.dtype for claim in known if claim.dtype), None)
    how = replace(known[0], dtype=dtype, identity=None)
    recorded = {claim.identity for claim in known if claim.identity}
    if not recorded and stated is None:
        raise RefusedInput(
            "E-MERGE-QUANTIZER",
            "the adapter records a quantization, but not what it made of a fixed tensor",
            facts=[_shown(how)],
            hint="state 'quantization' in the spec to repeat it with the bitsandbytes installed here",
        )
    for one in recorded:
        _check_identity(replace(how, identity=one))
    return how


def _check_identity(how: Quantization) -> None:
    here = identity(how)
    if here != how.identity:
        raise RefusedInput(
            "E-MERGE-QUANTIZER",
            "bitsandbytes here does not quantize as it did where the adapter was trained",
            facts=[how.shown(), f"there {how.identity}", f"here {here}"],
            hint="install the bitsandbytes that trained it",
        )


def _same(one: Quantization | None, other: Quantization | None) -> bool:
    if one is None or other is None:
        return one is other
    alike = (one.method, one.blocksize, one.double_quant) == (other.method, other.blocksize, other.double_quant)
    return alike and (one.dtype == other.dtype or None in (one.dtype, other.dtype))


def _shown(one: Quantization | None) -> str:
    return "plain weights" if one is None else one.shown()
