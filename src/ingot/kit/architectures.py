"""Which architectures transformers knows, asked before it is given a model that it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.errors import RefusedInput


def refuse_unknown_architecture(config: Mapping[str, Any]) -> None:
    """RefusedInput (E-MODEL-ARCH) when transformers has no causal language model for ``model_type`` of a config."""
    from difflib import get_close_matches

    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    kind = config.get("model_type")
    if kind in KNOWN:
        return
    near = get_close_matches(str(kind), KNOWN, 1)
    raise RefusedInput(
        "E-MODEL-ARCH",
        f"the architecture {kind!r} (model_type in config.json) is no causal language model that transformers knows"
        if kind
        else "config.json names no model_type, so the architecture is not known",
        facts=[f"transformers {transformers.__version__} knows: {', '.join(sorted(KNOWN))}"],
        hint=f"did you mean {near[0]!r}?" if near else "use a model of one of these, or a newer transformers",
    )
