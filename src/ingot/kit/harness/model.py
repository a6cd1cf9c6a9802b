"""A model of the harness over any backend: what it scores and generates is what its own class for transformers would.

Texts become tokens as in ``lm_eval.models.huggingface`` (a text that begins with the begin token gets no second one),
long ones lose their beginning as there, and log-likelihoods are sums of float32 log-softmax. Requests are computed in
the order of their tokens, so that what they begin with in common is read once (``kit.harness.reading_on``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from ingot.core.stage import Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.generate import Decoding, generate
from ingot.kit.harness.reading_on import Reader
from ingot.kit.harness.tokens import tokens_of
from ingot.kit.scoring.run import log_softmax

_GENERATION = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p"})


class BackendModel(TemplateLM):  # type: ignore[misc]
    """``truncated`` counts the requests whose beginning was left out."""

    def __init__(self, backend: Backend, max_length: int, progress: Progress) -> None:
        super().__init__()
        self.reader = Reader(backend)
        self.max_length = min(max_length, backend.context)
        self.truncated = 0
        self._template = backend.template
        self._tokens = tokens_of(backend)
        self._progress = progress
        if self._tokens.end is None and self._tokens.begin is None:
            raise RefusedInput("E-HARNESS-TOKENS", "the tokenizer has neither a begin nor an end token")

    @property
    def eot_token_id(self) -> int:
        """The end token; of a tokenizer without one its begin token."""
        end, begin = self._tokens.end, self._tokens.begin
        return end if end is not None else int(begin or 0)

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text that nothing precedes: the begin token, or the end token."""
        return self.eot_token_id if self._tokens.begin is None else self._tokens.begin

    @property
    def tokenizer_name(self) -> str:
        """Names no file: requests are never cached."""
        return ""

    def tok_encode(self, string: str, *, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; by default with what the tokenizer adds, unless the text begins with it."""
        if add_special_tokens is None:
            begin = self._tokens.decode([self.prefix_token_id], special=True)
            add_special_tokens = not string.startswith(begin)
        return self._tokens.encode(string, special=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation; one without a generation prompt ends with its last message's text."""
        try:
            return self._rendered(chat_history, prompt=add_generation_prompt)
        except RefusedInput as error:
            if error.code != "E-CHAT-RENDER" or not any(message["role"] == "system" for message in chat_history):
                raise
            rest = [message for message in chat_history if message["role"] != "system"]
            return self._rendered(rest, prompt=add_generation_prompt)

    def _rendered(self, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
        text = self._template.apply(messages, add_generation_prompt=prompt)
        if prompt:
            return text
        last = messages[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def loglikelihood(self, requests: list[Any], *, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The harness's own pairs of contexts and continuations."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], *, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of whole texts, by the harness's own windows."""
        windows = [
            (number, (None, *utils.make_disjoint_window(window)))
            for number, request in enumerate(requests)
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        scores = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm=disable_tqdm)
        sums = [0.0] * len(requests)
        for (number, _), (score, _) in zip(windows, scores, strict=True):
            sums[number] += score
        return sums

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """One (log-likelihood, whether it is the likeliest token by token) a request, in their order.

        Requests that read the same tokens are read once; of those with continuations of one token these are all
        choices of a question.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            groups.setdefault(self._read(context, continuation), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        done = 0
        for ids in sorted(groups):
            scores = self._scores(ids, [requests[number][2] for number in groups[ids]])
            for number, score in zip(groups[ids], scores, strict=True):
                found[number] = score
            done += len(groups[ids])
            self._progress(done, len(requests), "requests")
        return found

    def _scores(self, ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """The scores of continuations that read the same tokens; each is predicted by the last of the rows."""
        longest = max(map(len, continuations))
        sums, likeliest, at = [0.0] * len(continuations), [True] * len(continuations), 0
        for rows in self.reader.rows(ids, len(ids) - longest):
            log = log_softmax(rows)
            best, end = log.argmax(-1), at + len(log)
            for number, continuation in enumerate(continuations):
                begin = longest - len(continuation)
                targets = torch.tensor(continuation[max(at - begin, 0) : max(end - begin, 0)], dtype=torch.int64)
                mine = slice(len(log) - len(targets), None)
                sums[number] += float(log[mine].gather(-1, targets[:, None]).sum())
                likeliest[number] &= bool((best[mine] == targets).all())
            at = end
        return list(zip(sums, likeliest, strict=True))

    def _read(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """What is read to score a continuation: all but its last token, from the left at most ``max_length``."""
        if not continuation or len(continuation) > self.max_length:
            raise RefusedInput(
                "E-HARNESS-CONTEXT",
                f"a continuation has {len(continuation)} tokens and the model reads {self.max_length}",
                hint="raise max_length, if the model's context allows it, or leave the task out",
            )
        whole = (*context, *continuation)
        self.truncated += len(whole) > self.max_length + 1
        return whole[-(self.max_length + 1) :][:-1]

    def generate_until(self, requests: list[Any], *, disable_tqdm: bool = True) -> list[str]:
        """What the model says after each context, greedily or sampled as the task says, up to a text that ends it."""
        del disable_tqdm
        asked = [(number, *self._prompt(*request.args)) for number, request in enumerate(requests)]
        found = [""] * len(requests)
        known: dict[str, str] = {}
        for done, (number, ids, wanted) in enumerate(sorted(asked, key=lambda item: (item[1], item[0])), 1):
            # of a sampled answer each repeat is another draw
            draw = number if wanted["temperature"] else -1
            key = json.dumps([ids, wanted, draw], sort_keys=True)
            if key not in known:
                known[key] = self._answer(ids, wanted, max(draw, 0))
            found[number] = known[key]
            self._progress(done, len(requests), "answers")
        return found

    def _prompt(self, context: str, kwargs: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """(token ids of a context, how it is to be answered)."""
        wanted = dict(normalize_gen_kwargs(kwargs))
        if odd := sorted(set(wanted) - _GENERATION):
            raise RefusedInput(
                "E-HARNESS-GENERATION",
                f"a task wants to generate with {odd[0]!r}, which backends here do not know",
                hint=f"known: {', '.join(sorted(_GENERATION))}",
            )
        end = self._tokens.decode([self.eot_token_id], special=True)
        wanted["until"] = handle_stop_sequences(wanted.get("until"), eos=end)
        wanted["temperature"] = wanted.get("temperature", 0.0) if wanted.pop("do_sample", False) else 0.0
        room = self.max_length - wanted["max_gen_toks"]
        if room < 1:
            raise RefusedInput(
                "E-HARNESS-CONTEXT",
                f"an answer of {wanted['max_gen_toks']} tokens leaves no room in the {self.max_length} that are read",
                hint="set max_tokens to less, or max_length to more if the model's context allows it",
            )
        begin = self._tokens.begin_text
        ids = self._tokens.encode(context, special=not (begin and context.startswith(begin)))
        self.truncated += len(ids) > room
        return ids[-room:], wanted

    def _answer(self, ids: Sequence[int], wanted: dict[str, Any], seed: int) -> str:
        stops = tuple(filter(None, wanted["until"]))
        decoding = Decoding(
            wanted["max_gen_toks"], stops, float(wanted["temperature"]), float(wanted.get("top_p", 1.0)), seed
        )
        said = generate(self.reader, ids, decoding)
        text = self._tokens.decode(said.tokens, special=False)
        return str(postprocess_generated_text(text, list(stops), None))
