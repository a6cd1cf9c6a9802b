"""Tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), its own code over any backend of ours."""
