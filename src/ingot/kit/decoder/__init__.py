"""One small hand-written decoder that exporters can trace (Llama, Mistral, Qwen2, Qwen3): shape, layers, weights."""
