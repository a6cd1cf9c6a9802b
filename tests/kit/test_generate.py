"""Generation over any backend: what is taken, what ends an answer, what a mask allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekit import END, Bytes
from ingot.errors import RefusedInput
from ingot.kit.backends import Next
from ingot.kit.backends.gguf import GgufBackend
from ingot.kit.backends.hf import HfBackend
from ingot.kit.generate import Decoding, Generation, Stream, drawn, generate, penalized


def said(says: str, **decoding: object) -> Generation:
    return generate(Bytes(says), [1], replace(Decoding(50), **decoding))  # type: ignore[arg-type]


def test_an_answer_says_why_it_ended() -> None:
    assert said("Yes.") == Generation(tuple(b"Yes."), "Yes.", "end")
    assert said("Yes.", max_tokens=3) == Generation(tuple(b"Yes"), "Yes", "limit")
    assert said("Yes.", stop=("no", "s.")) == Generation(tuple(b"Yes."), "Ye", "stop")
    assert said("Yes, no.", stop=("no", ",")) == Generation(tuple(b"Yes,"), "Yes", "stop")
    assert generate(Bytes("Yes.", context=3), [1], Decoding(50)) == Generation(tuple(b"Ye"), "Ye", "context")
    assert said("") == Generation((), "", "end")


def test_nothing_is_computed_that_cannot_become_a_part_of_the_answer() -> None:
    for decoding, steps in ((Decoding(3), 3), (Decoding(50), 9), (Decoding(50, stop=("s, ",)), 5)):
        backend = Bytes("Yes, no.")
        generate(backend, [1], decoding)
        assert backend.read == steps


@settings(max_examples=40)
@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=6), max_size=3))
def test_no_text_holds_a_stop_text_and_each_is_cut_at_the_first(says: str, stops: list[str]) -> None:
    made = said(says, max_tokens=400, stop=tuple(stops))
    wanted = min([says.find(stop) for stop in stops if stop in says], default=len(says))
    assert made.ended == ("stop" if wanted < len(says) else "end")
    # a stop text may end before another that begins earlier is whole
    assert not any(stop in made.text for stop in stops)
    assert says.startswith(made.text)
    if made.ended == "end":
        assert made.text == says


def test_a_stop_text_in_the_middle_of_a_long_answer_is_seen_when_it_is_said() -> None:
    made = said("abc " * 60 + "ß\nQ: more", max_tokens=1000, stop=("ß\nQ:",))
    assert (made.text, made.ended) == ("abc " * 60, "stop")
    assert len(made.tokens) == 240 + len("ß\nQ:".encode())


def test_a_mask_allows_and_ends() -> None:
    def digits(tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(END, np.bool_)  # shorter than the vocabulary: the end token is not allowed
        if len(tokens) < 4:
            mask[ord("7") : ord("9")] = True
        return mask

    for decoding in (Decoding(50), Decoding(50, temperature=1.0)):
        made = generate(Bytes("Yes, of course."), [1], decoding, digits)
        assert made.ended == "complete"
        assert len(made.text) == 4
        assert set(made.text) <= set("78")


def test_what_is_complete_is_not_continued() -> None:
    backend = Bytes("abc")
    made = generate(backend, [1], Decoding(2), lambda tokens: np.full(END, len(tokens) < 2))
    assert (made.text, made.ended, backend.read) == ("ab", "complete", 2)
    assert generate(backend, [1], Decoding(2), lambda _: np.zeros(END, np.bool_)) == Generation((), "", "complete")
    assert backend.read == 2, "where nothing is allowed the prompt is not read"


def test_a_mask_may_allow_the_end_alone() -> None:
    def end(tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(END + 5, np.bool_)  # longer than the vocabulary: what is not there cannot be taken
        mask[[END if tokens else ord("x"), END + 3]] = True
        return mask

    assert generate(Bytes("Yes."), [1], Decoding(50), end) == Generation(tuple(b"x"), "x", "end")


def test_samples_have_the_chances_of_the_model() -> None:
    chances = {1: 0.5, 2: 0.3, 3: 0.15, 4: 0.05}
    backend = Bytes(chances=chances, context=10_000)
    made = generate(backend, [1], Decoding(5000, temperature=1.0, seed=3))
    found = Counter(made.tokens)
    assert found.total() == 5000
    for token, chance in chances.items():
        # four standard deviations of a share of 5,000 draws; the seed is fixed
        assert abs(found[token] / 5000 - chance) < 4 * (chance * (1 - chance) / 5000) ** 0.5
    hot = Counter(generate(backend, [1], Decoding(5000, temperature=4.0)).tokens)
    assert hot[4] > 2 * found[4]


def test_a_nucleus_is_the_fewest_tokens_that_have_the_mass() -> None:
    backend = Bytes(chances={5: 0.5, 6: 0.3, 7: 0.15, 8: 0.05})
    for top_p, wanted in ((0.4, {5}), (0.51, {5, 6}), (0.79, {5, 6}), (0.9, {5, 6, 7}), (1.0, {5, 6, 7, 8})):
        made = generate(backend, [1], Decoding(400, temperature=1.0, top_p=top_p))
        assert set(made.tokens) == wanted, top_p


def test_an_equal_seed_gives_equal_tokens_and_another_seed_others() -> None:
    backend = Bytes(chances=dict.fromkeys(range(10), 0.1))
    one, again, other = (generate(backend, [1], Decoding(40, temperature=0.7, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.floats(0.01, 1))
def test_what_is_drawn_is_in_the_nucleus(seed: int, temperature: float, top_p: float) -> None:
    numbers = np.random.default_rng(seed)
    row = numbers.normal(0, 3, 30).astype(np.float32)
    token = drawn(row, Decoding(1, temperature=temperature, top_p=top_p), numbers)
    chances = np.exp(row.astype(np.float64) / temperature)
    chances /= chances.sum()
    assert chances[chances > chances[token]].sum() < top_p + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_tokens_said_lately_lose_what_llama_cpp_takes_from_them(seed: int, count: int) -> None:
    numbers = np.random.default_rng(seed)
    row, lately = numbers.normal(0, 1, 20).astype(np.float32), numbers.integers(0, 20, count).tolist()
    sampler = llama_cpp.llama_sampler_init_penalties(20, 64, 1.1, 0.0, 0.0)
    for token in lately:
        llama_cpp.llama_sampler_accept(sampler, token)
    candidates = (llama_cpp.llama_token_data * 20)(*[(index, float(value), 0.0) for index, value in enumerate(row)])
    listed = llama_cpp.llama_token_data_array(candidates, 20, -1, False)
    llama_cpp.llama_sampler_apply(sampler, listed)
    llama_cpp.llama_sampler_free(sampler)
    wanted = [candidates[index].logit for index in range(20)]
    assert penalized(row, lately[-64:], 1.1) == pytest.approx(wanted, rel=1e-6)


def test_the_penalty_is_for_what_was_said_lately() -> None:
    backend = Bytes(chances={1: 0.5, 2: 0.4, 3: 0.1})
    assert generate(backend, [1], Decoding(4)).tokens == (1, 1, 1, 1)
    assert set(generate(backend, [1], Decoding(4, penalty=2.0)).tokens) == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    class Broken(Bytes):
        def step(self, token: int) -> Next:
            return np.array([1, np.nan, 2], np.float32)

    with pytest.raises(RefusedInput) as caught:
        generate(Broken(), [1], Decoding(4, temperature=temperature))
    assert caught.value.code == "E-EVAL-NAN"


def test_prompts_that_cannot_be_continued_are_refused() -> None:
    for ids, code in (([], "E-GENERATE-EMPTY"), ([1] * 10, "E-GENERATE-CONTEXT")):
        with pytest.raises(RefusedInput) as caught:
            Stream(Bytes("Yes.", context=10), ids, Decoding(4))
        assert caught.value.code == code


def test_real_runtimes_stop_at_a_text_and_within_what_is_allowed(stories: Path, stories_gguf: Path) -> None:
    backends = (
        HfBackend(stories, dtype="float32", threads=1),
        GgufBackend(stories_gguf, context=128, threads=1),
    )
    made = []
    for backend in backends:
        ids = backend.question({"prompt": "Once upon a time"})
        free = generate(backend, ids, Decoding(24))
        cut = generate(backend, ids, Decoding(24, stop=(",",)))
        assert free.text.startswith(cut.text)
        assert "," in free.text
        assert "," not in cut.text
        assert cut.ended == "stop"
        sampled = generate(backend, ids, Decoding(24, temperature=0.8, top_p=0.9, seed=7))
        assert sampled == generate(backend, ids, Decoding(24, temperature=0.8, top_p=0.9, seed=7))
        assert sampled.tokens != free.tokens
        made.append((free.tokens, cut.tokens))
    assert made[0] == made[1]
