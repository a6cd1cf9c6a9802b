"""Spec, graph, keys, store, registry, plan and build; imports no stage and no heavy package."""
