"""Operations that move values: shapes, slices, gathers, joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.kit.mil.ops.table import Call, Flag, bounded, moves, sizes
from ingot.kit.mil.types import Array

#: From this generation of operations (iOS 17's) on, negative indices of a gather lie outside.
_STRICT_GATHER = 7


@moves("reshape", called=True)
def reshape(call: Call, x: Array, shape: Array) -> Array:
    """Another shape; -1 follows from the rest, 0 is ``x``'s size there (counted from the end since iOS 17)."""
    wanted = list(sizes(shape))
    for index, size in enumerate(wanted):
        if size == 0 and x.size:
            other = index - len(wanted) + x.ndim if call.generation >= _STRICT_GATHER else index
            wanted[index] = x.shape[other] if 0 <= other < x.ndim else 1
    return x.reshape(wanted)


@moves("transpose")
def transpose(x: Array, perm: Array) -> Array:
    """The axes in another order."""
    return x.transpose(sizes(perm))


@moves("expand_dims")
def expand_dims(x: Array, axes: Array) -> Array:
    """New axes of size 1, at their places in the result."""
    return np.expand_dims(x, sizes(axes))


@moves("squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Without axes of size 1."""
    return np.squeeze(x) if axes is None else np.squeeze(x, sizes(axes))


@moves("tile")
def tile(x: Array, reps: Array) -> Array:
    """Repeated along each axis."""
    times = sizes(reps)
    bounded(*(size * count for size, count in zip(x.shape, times, strict=True)))
    return np.tile(x, times)


@moves("concat", lists=("values",))
def concat(values: Sequence[Array], *, axis: Array, interleave: Flag = False) -> Array:
    """One after the other along an axis (numbers: into a list); interleaved: first elements, second ones, …"""
    values = [np.atleast_1d(value) for value in values]
    if not interleave:
        return np.concatenate(values, axis=int(axis))
    found = np.stack(values, axis=int(axis) % values[0].ndim + 1)
    shape = list(values[0].shape)
    shape[int(axis)] *= len(values)
    return found.reshape(shape)


@moves("stack", lists=("values",))
def stack(values: Sequence[Array], axis: Array) -> Array:
    """Along a new axis."""
    return np.stack(values, axis=int(axis))


@moves("split")
def split(
    x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None
) -> tuple[Array, ...]:
    """Parts of equal or of given sizes along an axis."""
    where = int(axis)
    if split_sizes is None:
        if num_splits is None:
            raise ValueError("neither num_splits nor split_sizes")
        return tuple(np.split(x, int(num_splits), axis=where))
    parts = sizes(split_sizes)
    if sum(parts) != x.shape[where] or min(parts) < 0:
        raise ValueError(f"parts of {parts} do not make {x.shape[where]}")
    return tuple(np.split(x, np.cumsum(parts)[:-1], axis=where))


_OPTIONAL = ("stride", "begin_mask", "end_mask", "squeeze_mask")


def _slices(  # noqa: PLR0913  # MIL's own parameters
    x: Array,
    *,
    begin: Array,
    end: Array,
    stride: Array | None,
    begin_mask: Array | None,
    end_mask: Array | None,
    squeeze_mask: Array | None,
) -> tuple[slice | int, ...]:
    first, last = sizes(begin), sizes(end)
    steps = (1,) * x.ndim if stride is None else sizes(stride)
    from_start, to_end, single = (
        (0,) * x.ndim if mask is None else sizes(mask) for mask in (begin_mask, end_mask, squeeze_mask)
    )
    if {len(each) for each in (first, last, steps, from_start, to_end, single)} != {x.ndim}:
        raise ValueError(f"a slice of other than the {x.ndim} axes of {x.shape}")
    found: list[slice | int] = []
    for axis in range(x.ndim):
        if single[axis]:
            found.append(0 if from_start[axis] else first[axis])
        else:
            found.append(
                slice(None if from_start[axis] else first[axis], None if to_end[axis] else last[axis], steps[axis])
            )
    return tuple(found)


@moves("slice_by_index")
def slice_by_index(  # noqa: PLR0913  # MIL's own parameters
    x: Array,
    *,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """``x[begin:end:stride]`` along each axis, as Python counts; masked ends are open, squeezed axes are indexed."""
    masks = {"begin_mask": begin_mask, "end_mask": end_mask, "squeeze_mask": squeeze_mask}
    return np.asarray(x[_slices(x, begin=begin, end=end, stride=stride, **masks)])


def update_slice(x: Array, update: Array, *, in_place: bool, **where: Array) -> Array:
    """``slice_update``, in a copy of ``x`` or in ``x`` itself."""
    masks = {name: where.get(name) for name in _OPTIONAL}
    at = _slices(x, begin=where["begin"], end=where["end"], **masks)
    found = x if in_place and x.flags.writeable else np.array(x)
    if found[at].shape != update.shape:
        raise ValueError(f"an update of {update.shape} for a slice of {found[at].shape}")
    found[at] = update
    return found


@moves("slice_update")
def slice_update(  # noqa: PLR0913  # MIL's own parameters
    x: Array,
    update: Array,
    *,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """``x`` with another content of a slice, whose shape ``update`` has."""
    masks = dict(zip(_OPTIONAL, (stride, begin_mask, end_mask, squeeze_mask), strict=True))
    given = {name: value for name, value in masks.items() if value is not None}
    return update_slice(x, update, in_place=False, begin=begin, end=end, **given)


@moves("slice_by_size")
def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """As many elements from ``begin`` on; -1 is all that follow."""
    parts = []
    for length, first, count in zip(x.shape, sizes(begin), sizes(size), strict=True):
        start = first + length if first < 0 else first
        stop = length if count == -1 else start + count
        if not 0 <= start <= stop <= length:
            raise ValueError(f"elements {start} to {stop} of {length}")
        parts.append(slice(start, stop))
    return x[tuple(parts)]


def _indices(call: Call, indices: Array, length: int) -> Array:
    """Indices that lie within; MIL leaves open what others give, so they are refused."""
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < (0 if call.generation >= _STRICT_GATHER else -length) or high >= length:
            raise IndexError(f"the indices {low} … {high} do not all lie within {length}")
    return indices


@moves("gather", called=True)
def gather(  # noqa: PLR0913  # MIL's own parameters
    call: Call,
    x: Array,
    indices: Array,
    *,
    axis: int | Array = 0,
    batch_dims: int | Array = 0,
    validate_indices: Flag = False,
) -> Array:
    """The slices at ``indices`` of an axis; the first ``batch_dims`` axes of both go together."""
    del validate_indices  # they are always checked
    where, batch = int(axis) % x.ndim, int(batch_dims)
    _indices(call, indices, x.shape[where])
    bounded(*x.shape[:where], *indices.shape[batch:], *x.shape[where + 1 :])
    if not batch:
        return np.take(x, indices, axis=where)
    if x.shape[:batch] != indices.shape[:batch] or where < batch:
        raise ValueError(f"indices of {indices.shape} into {x.shape} with {batch} common axes")
    found = [np.take(x[at], indices[at], axis=where - batch) for at in np.ndindex(*x.shape[:batch])]
    return np.stack(found).reshape(*x.shape[:batch], *found[0].shape)


@moves("gather_along_axis", called=True)
def gather_along_axis(
    call: Call, x: Array, indices: Array, *, axis: int | Array = 0, validate_indices: Flag = False
) -> Array:
    """For each element the one at its index along an axis."""
    del validate_indices  # they are always checked
    return np.take_along_axis(x, _indices(call, indices, x.shape[int(axis)]).astype(np.int64), int(axis))


@moves("reverse")
def reverse(x: Array, axes: Array | None = None) -> Array:
    """Backwards along axes."""
    return np.flip(x, None if axes is None else sizes(axes))


@moves("band_part")
def band_part(x: Array, lower: int | Array = -1, upper: int | Array = -1) -> Array:
    """Zero outside of a band around the diagonal of the last two axes; -1 keeps a whole side."""
    below, above = int(lower), int(upper)
    away = np.arange(x.shape[-1])[None, :] - np.arange(x.shape[-2])[:, None]
    keep = ((below < 0) | (-away <= below)) & ((above < 0) | (away <= above))
    return np.where(keep, x, x.dtype.type(0))
