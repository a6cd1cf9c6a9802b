"""Golden texts are the same everywhere; a fault planted in an export is found, at the place where it was planted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import make_llama

from archmodels import CASES, make_model
from ingot.core.statement import MAX_LINE
from ingot.errors import RefusedInput, StageFailed
from ingot.kit.decoder.build import build_decoder, places
from ingot.kit.decoder.layers import Decoder, Form
from ingot.kit.decoder.shape import decoder_shape
from ingot.kit.hf import iter_tensors, load_tokenizer, read_config
from ingot.kit.parity import compare
from ingot.kit.parity.golden import Choice, Golden, golden
from ingot.kit.parity.lazy import lazy_model
from ingot.kit.parity.limits import LIMITS, Limits, table
from ingot.kit.parity.probes import PROBES
from ingot.kit.parity.prove import Proof, prove
from ingot.kit.parity.reference import HookedModel, Reference, SourceModel, record, reference_model
from ingot.kit.parity.tokenizers import check_tokenizer
from ingot.kit.parity.trace import Trace
from ingot.kit.quant.plain import plain_weights

EXACT = LIMITS["float32"]


def readers_of(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    return {name: weight.read for name, weight in plain_weights(folder).items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "rms_norm_eps": 1e-2, "tie_word_embeddings": False}
    return make_llama(tmp_path_factory.mktemp("parity") / "hf", dtype="float32", **sizes)


@pytest.fixture(scope="module")
def texts(source: Path) -> Golden:
    return golden(load_tokenizer(source), None, Choice(4, 48))


@pytest.fixture(scope="module")
def reference(source: Path, texts: Golden, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return record(lambda: SourceModel(source, threads=1), texts, tmp_path_factory.mktemp("traces") / "source")


def decoder_of(folder: Path, form: Form) -> Decoder:
    return build_decoder(decoder_shape(read_config(folder), "E-X"), iter_tensors(folder), form, "E-X")


def as_export(decoder: Decoder) -> HookedModel:
    """Ingot's own decoder stands for an export: it is not what computed the reference."""
    return HookedModel(decoder, lambda ids: decoder(ids.int(), places(decoder.shape, ids.shape[1]))[0])


class Blind:
    """An export that does not show its layers."""

    def __init__(self, inner: HookedModel) -> None:
        self._inner = inner

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        del probes
        return self._inner.trace(ids, probes=False)


def test_a_sound_export_is_proven_and_tells_its_figures(source: Path, texts: Golden, reference: Reference) -> None:
    proof = prove({"prefill": as_export(decoder_of(source, Form()))}, texts, reference, EXACT)
    metrics = {name: metric.value for name, metric in proof.metrics.items()}
    assert metrics["parity_texts"] == 4
    assert metrics["parity_tokens"] == texts.tokens == 1 + 3 + 13 + 48
    assert metrics["parity_cosine"] > 1 - 1e-9
    assert metrics["parity_top1_agreement"] == 1
    assert 0 <= metrics["parity_kl"] < 1e-9
    assert 0 < metrics["parity_max_difference"] < 1e-3
    notes: Any = json.loads(json.dumps(proof.notes))
    assert notes["golden"] == {"digest": texts.digest, "origin": "probe texts"}
    run = notes["runs"]["prefill"]
    assert [text["tokens"] for text in run["texts"]] == [1, 3, 13, 48]
    assert min(text["cosine"] for text in run["texts"]) == pytest.approx(metrics["parity_cosine"])
    # after the embedding, each of four layers, the output layer
    assert len(run["layers"]["cosine"]) == len(run["layers"]["relative_difference"]) == 6
    assert max(run["layers"]["relative_difference"]) < 1e-5


def test_the_notes_of_a_large_model_fit_into_a_line_of_the_log() -> None:
    """126 layers, 32 texts, two ways to run, loss and execution."""
    some = Trace(np.ones((1, 3), np.float32), tuple(np.full((1, 2), 1 / 3, np.float32) for _ in range(127)))

    class Run:
        def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
            return Trace(some.logits * 1.000003, some.hidden)

    texts = Golden(((1,),) * 32, "held-out rows")
    reference = Reference((some,) * 32, lambda: pytest.fail("nothing is wrong"))
    proof = prove({"prefill": Run(), "decode": Run()}, texts, reference, EXACT)
    assert 2 * len(json.dumps(proof.notes)) < MAX_LINE // 2


def _wrong_weight(decoder: Decoder) -> None:
    decoder.layers[1].mlp.up_proj.weight[3] *= -8


def _swapped_heads(decoder: Decoder) -> None:
    weight = decoder.layers[2].self_attn.q_proj.weight
    weight[:] = torch.cat((weight[16:32], weight[:16], weight[32:]))


def _wrong_eps(decoder: Decoder) -> None:
    decoder.layers[3].input_layernorm.eps = 5.0


def _wrong_embedding(decoder: Decoder) -> None:
    decoder.embed_tokens.weight = torch.nn.Parameter(decoder.embed_tokens.weight.roll(1, 0), requires_grad=False)


def _wrong_head(decoder: Decoder) -> None:
    decoder.lm_head.weight = torch.nn.Parameter(decoder.lm_head.weight.roll(1, 1), requires_grad=False)


def _wrong_rope(decoder: Decoder) -> None:
    object.__setattr__(decoder.shape.rope, "theta", 300.0)


@pytest.mark.parametrize(
    ("plant", "place"),
    [
        (_wrong_weight, "layer 1"),
        (_swapped_heads, "layer 2"),
        (_wrong_eps, "layer 3"),
        (_wrong_rope, "layer 0"),
        (_wrong_embedding, "the embedding"),
        (_wrong_head, "the output layer"),
    ],
)
def test_a_planted_fault_is_found_where_it_is(
    source: Path, texts: Golden, reference: Reference, plant: Callable[[Decoder], None], place: str
) -> None:
    decoder = decoder_of(source, Form(scaled_norm=False))
    with torch.no_grad():
        plant(decoder)
    with pytest.raises(StageFailed) as caught:
        prove({"prefill": as_export(decoder)}, texts, reference, EXACT)
    assert caught.value.code == "E-PARITY"
    assert "no weight was rounded to few bits" in (caught.value.hint or "")
    began = [fact for fact in caught.value.facts if fact.startswith("it began")]
    assert len(began) == 1, caught.value.facts
    assert began[0].startswith(f"it began in {place}:"), began
    later = [fact for fact in caught.value.facts if fact.startswith("so do")]
    # positions are wrong in every layer; any other fault is in one place, whatever becomes of it later
    assert bool(later) == (plant is _wrong_rope), later


def test_a_small_fault_is_found_although_later_layers_amplify_it(
    source: Path, texts: Golden, reference: Reference
) -> None:
    """After it, the differences from the source's own trace are larger in later layers; its own is not."""
    decoder = decoder_of(source, Form(scaled_norm=False))
    with torch.no_grad():
        decoder.layers[0].self_attn.o_proj.weight *= 1.02
        for index in range(1, 4):
            assert decoder.layers[index].mlp.down_proj.weight.abs().max() > 0
    with pytest.raises(StageFailed, match="does not compute") as caught:
        prove({"prefill": as_export(decoder)}, texts, reference, EXACT)
    assert any("it began in layer 0" in fact for fact in caught.value.facts)
    assert not any(fact.startswith("so do") for fact in caught.value.facts)


def test_differences_that_only_add_up_are_told_as_such(source: Path, texts: Golden, reference: Reference) -> None:
    decoder = decoder_of(source, Form())
    with torch.no_grad():
        for layer in decoder.layers:
            layer.mlp.down_proj.weight += 0.002 * torch.randn(
                layer.mlp.down_proj.weight.shape, generator=torch.Generator().manual_seed(0)
            )
    limits = replace(EXACT, layer=0.5)
    with pytest.raises(StageFailed) as caught:
        prove({"prefill": as_export(decoder)}, texts, reference, limits)
    assert any("in no single layer" in fact for fact in caught.value.facts)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"cosine": 1.0}, "cosine similarity"),
        ({"cosine_mean": 1.0}, "mean cosine similarity"),
        ({"max_difference": 1e-9}, "a logit differs"),
        ({"kl": 1e-18}, "KL divergence"),
    ],
)
def test_each_limit_counts(
    source: Path, texts: Golden, reference: Reference, limit: dict[str, float], words: str
) -> None:
    generous = Limits(cosine=None, top1=0, kl=1e9, layer=1)
    run = {"prefill": as_export(decoder_of(source, Form()))}
    prove(run, texts, reference, generous)
    with pytest.raises(StageFailed) as caught:
        prove({"prefill": as_export(decoder_of(source, Form()))}, texts, reference, generous.but(**limit))
    assert words in caught.value.facts[0]


def test_other_likeliest_tokens_fail_though_all_else_is_allowed(
    source: Path, texts: Golden, reference: Reference
) -> None:
    decoder = decoder_of(source, Form())
    with torch.no_grad():
        _wrong_head(decoder)
    with pytest.raises(StageFailed) as caught:
        prove({"x": as_export(decoder)}, texts, reference, Limits(cosine=None, top1=0.9, kl=1e9, layer=1))
    assert "the likeliest token is the same at" in caught.value.facts[0]


def test_every_way_to_run_is_compared(source: Path, texts: Golden, reference: Reference) -> None:
    broken = decoder_of(source, Form())
    with torch.no_grad():
        _wrong_weight(broken)
    runs = {"prefill": as_export(decoder_of(source, Form())), "decode": as_export(broken)}
    with pytest.raises(StageFailed, match=r"\(decode\)") as caught:
        prove(runs, texts, reference, EXACT)
    assert "prefill is within all limits" in caught.value.facts


def test_layers_are_told_of_a_text_that_is_soon_run_again(source: Path, tmp_path: Path) -> None:
    long = golden(load_tokenizer(source), None, Choice(4, 120))
    traced: list[int] = []

    class Counting(HookedModel):
        def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
            traced.extend([len(ids)] * probes)
            return super().trace(ids, probes=probes)

    decoder = decoder_of(source, Form())
    run = Counting(decoder, lambda ids: decoder(ids.int(), places(decoder.shape, ids.shape[1]))[0])
    prove({"x": run}, long, record(lambda: SourceModel(source, threads=1), long, tmp_path / "t"), EXACT)
    assert traced == [31]


def test_logits_that_are_no_numbers_have_words_of_their_own(source: Path, texts: Golden, reference: Reference) -> None:
    decoder = decoder_of(source, Form())
    with torch.no_grad():
        decoder.layers[2].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(StageFailed) as caught:
        prove({"prefill": as_export(decoder)}, texts, reference, Limits(None, 0, 1e9, 1))
    assert "not finite numbers at 1 of 1 positions" in caught.value.facts[0]
    assert "it began in layer 2: what it gives is not finite from there on" in caught.value.facts


def test_another_vocabulary_is_told(source: Path, texts: Golden, reference: Reference) -> None:
    decoder = decoder_of(source, Form())
    decoder.lm_head.weight = torch.nn.Parameter(decoder.lm_head.weight[:-1], requires_grad=False)
    with pytest.raises(StageFailed, match="does not compute") as caught:
        prove({"prefill": as_export(decoder)}, texts, reference, EXACT)
    assert "logits of shape" in caught.value.facts[0]


def test_an_export_that_shows_no_layers_still_fails(source: Path, texts: Golden, reference: Reference) -> None:
    decoder = decoder_of(source, Form())
    assert prove({"x": Blind(as_export(decoder))}, texts, reference, EXACT).metrics["parity_cosine"].value > 0.99
    with torch.no_grad():
        _wrong_weight(decoder)
    with pytest.raises(StageFailed) as caught:
        prove({"x": Blind(as_export(decoder))}, texts, reference, EXACT)
    assert "this way of running the export does not show its layers" in caught.value.facts


def test_a_source_that_is_broken_itself_is_told(source: Path, texts: Golden, tmp_path: Path) -> None:
    weights = readers_of(source)
    norm = weights["model.norm.weight"]()
    weights["model.norm.weight"] = lambda: norm * math.nan

    with pytest.raises(StageFailed, match="source's own logits"):
        record(lambda: SourceModel(source, threads=1, weights=weights), texts, tmp_path / "traces")


def test_the_weights_that_an_export_stores_are_what_it_executes(
    source: Path, texts: Golden, reference: Reference, tmp_path: Path
) -> None:
    """Rounded weights are far from the source and exact against themselves; a missing weight is told."""

    def stored() -> dict[str, torch.Tensor]:
        return {name: (tensor * 4).round() / 4 for name, tensor in iter_tensors(source)}

    rounded = stored()
    readers = {name: partial(rounded.__getitem__, name) for name in rounded}
    own = record(lambda: SourceModel(source, threads=1, weights=readers), texts, tmp_path / "own")
    decoder = decoder_of(source, Form())
    decoder.load_state_dict({name.removeprefix("model."): tensor for name, tensor in stored().items()})
    proof: Proof = prove({"prefill": as_export(decoder)}, texts, own, EXACT, name="execution")
    assert proof.metrics["execution_cosine"].value > 1 - 1e-9
    assert "execution_tokens" not in proof.metrics
    with pytest.raises(StageFailed, match="does not compute what its source computes"):
        prove({"prefill": as_export(decoder)}, texts, reference, EXACT)
    with torch.no_grad():
        _wrong_weight(decoder)
    with pytest.raises(StageFailed, match="own weights say") as caught:
        prove({"prefill": as_export(decoder)}, texts, own, EXACT, name="execution")
    assert any("it began in layer 1" in fact for fact in caught.value.facts)
    some = {name: read for name, read in readers_of(source).items() if "layers.3.mlp.up" not in name}
    with pytest.raises(StageFailed, match=r"lack model\.layers\.3\.mlp\.up_proj\.weight"):
        SourceModel(source, threads=1, weights=some)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_source_that_holds_no_weights_computes_the_same_to_the_bit(tmp_path: Path, name: str) -> None:
    folder = make_model(name, tmp_path / "hf", 300, dtype="bfloat16")
    lazy, whole = lazy_model(folder, readers_of(folder)), reference_model(folder)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        for _ in range(2):
            found = lazy(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(found, whole(input_ids=ids, use_cache=False).logits, atol=0, rtol=0)
    assert all(parameter.is_meta for parameter in lazy.parameters())


def test_the_figures_are_those_of_the_formulas() -> None:
    source = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 5.0, 1.0]], np.float32)
    export = np.array([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [4.0, 5.0, 1.0]], np.float32)
    found = compare.compare_logits(export, source, tie=0)
    assert found.cosine[0] == pytest.approx(12 / (math.sqrt(14) * math.sqrt(12)))
    assert found.cosine[1] == 1
    assert found.difference.tolist() == [1, 0, 1]
    # of two that are equal in the source either is right
    assert found.agrees.tolist() == [False, True, True]
    p = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    assert found.kl[0] == pytest.approx(float((p * np.log(p * 3)).sum()))
    near = np.array([[4.0, 3.999]], np.float32)
    for tie, agrees in ((1e-4, False), (1e-3, True)):
        assert compare.compare_logits(near[:, ::-1], near, tie).agrees.tolist() == [agrees]


def test_golden_texts_are_the_same_in_every_process(source: Path, texts: Golden) -> None:
    program = (
        "import sys; from pathlib import Path; from ingot.kit.hf import load_tokenizer\n"
        "from ingot.kit.parity.golden import Choice, golden\n"
        "print(golden(load_tokenizer(Path(sys.argv[1])), None, Choice(4, 48)).digest)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(source)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == texts.digest


def test_golden_texts_come_from_held_out_rows_in_the_order_of_their_ids(source: Path, tmp_path: Path) -> None:
    rows = [{"id": f"{n:02}", "text": f"the cat number {n} sat on the mat"} for n in range(9)]
    tokenizer = load_tokenizer(source)
    found: list[Golden] = []
    for order in (rows, rows[::-1]):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
        found.append(golden(tokenizer, folder, Choice(4, 32, (8, 32, 64))))
    assert found[0] == found[1]
    assert [len(ids) for ids in found[0].ids] == [1, 3, 8, 9, 32, 64]
    ids = [tokenizer(str(row["text"]))["input_ids"] for row in rows]
    assert found[0].ids[1] == tuple(ids[1][:3])
    assert found[0].ids[4][: len(ids[4]) + 1] == (*ids[4], ids[5][0])
    assert found[0].texts == tuple(row["text"] for row in rows)
    assert found[0].digest != golden(tokenizer, None, Choice(4, 32, (8, 32, 64))).digest
    (tmp_path / "0" / "eval.jsonl").write_text("")
    with pytest.raises(RefusedInput, match="no tokens") as caught:
        golden(tokenizer, tmp_path / "0", Choice(4, 32))
    assert caught.value.code == "E-DATASET-EMPTY"


@pytest.mark.parametrize("texts", [1, 2, 4, 6])
def test_lengths(texts: int) -> None:
    lengths = Choice(texts, 128).lengths()
    assert lengths == tuple(sorted([128, 1, 33, 9, 128, 128][:texts]))
    assert Choice(2, 1).lengths() == (1, 1)


def _edited(source: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((source / name).read_bytes())
    value = json.loads((folder / "tokenizer.json").read_text())
    edit(value)
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder


def test_the_tokenizer_that_ships_gives_equal_ids(source: Path, texts: Golden, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(source)
    same = _edited(source, tmp_path / "same", lambda value: None)
    assert check_tokenizer(same, tokenizer, texts).value >= len(PROBES) + 3

    def swap(value: dict[str, Any]) -> None:
        vocabulary = value["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]

    def lower(value: dict[str, Any]) -> None:
        value["normalizer"] = {"type": "Lowercase"}

    for number, edit in enumerate((swap, lower)):
        with pytest.raises(StageFailed, match="other token ids") as caught:
            check_tokenizer(_edited(source, tmp_path / str(number), edit), tokenizer, texts)
        assert caught.value.code == "E-PARITY"


def test_a_row_of_the_data_set_is_not_told(source: Path, tmp_path: Path) -> None:
    """A difference that only a held-out row shows: the message names the row, not what it says."""
    words = Golden(((1,),), "held-out rows", ("secret zzz",))

    def special(value: dict[str, Any]) -> None:
        token = {**value["added_tokens"][0], "id": 4, "content": "zzz", "special": False}
        value["added_tokens"].append(token)

    with pytest.raises(StageFailed) as caught:
        check_tokenizer(_edited(source, tmp_path / "x", special), load_tokenizer(source), words)
    assert "held-out row 0" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_another_chat_template_is_found(source: Path, texts: Golden, tmp_path: Path) -> None:
    folder = _edited(source, tmp_path / "x", lambda value: None)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(StageFailed, match="chat template"):
        check_tokenizer(folder, load_tokenizer(source), texts)


def test_the_documents_table_is_the_codes() -> None:
    document = Path(__file__).parents[2] / "docs" / "parity.md"
    assert table() in document.read_text(encoding="utf-8")
