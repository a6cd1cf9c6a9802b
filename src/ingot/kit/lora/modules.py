"""Which linear layers a list of names means, and how to say it shortly."""

from __future__ import annotations

from collections.abc import Sequence

from ingot.errors import RefusedInput


def match_modules(linear: Sequence[str], wanted: Sequence[str], code: str) -> list[str]:
    """The linear layers that ``wanted`` names: by full name or by its last parts (``q_proj``, ``mlp.up_proj``).

    RefusedInput (``code``) names each wanted entry that matches nothing, and what there is.
    """
    missing = [name for name in wanted if not any(_is(module, name) for module in linear)]
    if missing or not linear:
        raise RefusedInput(
            code,
            f"no linear layer is named {', '.join(missing)}" if missing else "the model has no linear layers",
            facts=[f"linear layers: {', '.join(kinds_of(linear)) or 'none'}"],
            hint="name some of these, or use all-linear",
        )
    return [module for module in linear if any(_is(module, name) for name in wanted)]


def kinds_of(modules: Sequence[str]) -> list[str]:
    """The different last parts of module names, sorted."""
    return sorted({module.rpartition(".")[2] for module in modules})


def shortest(chosen: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Last parts that name exactly the chosen modules where there are such, else the full names; sorted."""
    parts = kinds_of(chosen)
    reached = {module for module in modules if any(_is(module, part) for part in parts)}
    return parts if reached == set(chosen) else sorted(chosen)


def _is(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
