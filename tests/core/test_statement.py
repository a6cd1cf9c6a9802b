"""Receipts and decisions as Statements: nothing is lost, nothing foreign is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.log import decode_line
from ingot.core.statement import (
    MAX_LINE,
    PROVENANCE,
    build_statement,
    decision_of,
    decision_statement,
    evidence_of,
    receipt_of,
    time_of,
    type_of,
)
from ingot.errors import RefusedInput, RegistryDamaged
from registrykit import DIGEST, receipt


def through_json(statement: dict[str, Any]) -> dict[str, Any]:
    return decode_line(canonical_json(statement))


def test_a_receipt_comes_back() -> None:
    predicted = {"wall_s": 1.5, "peak_anon_bytes": None, "bytes": 7, "scratch_bytes": 0, "n": 2, "basis": "same_kind"}
    plain = (receipt(), receipt(git={"commit": None, "clean": None}), receipt(inputs={}))
    for made in (*plain, receipt(observed=DIGEST), receipt(predicted=predicted)):
        assert receipt_of(through_json(build_statement(made))) == made


def test_the_statement_is_slsa_provenance() -> None:
    statement = build_statement(receipt())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PROVENANCE
    assert statement["subject"][0] == {"name": "demo:gguf@Q4_0", "digest": {"dirHash1": "33" * 32}}
    assert statement["subject"][1]["digest"]["sha256"] == "55" * 32
    predicate = statement["predicate"]
    assert set(predicate["buildDefinition"]) >= {"buildType", "externalParameters", "resolvedDependencies"}
    assert predicate["runDetails"]["builder"]["id"]
    # SLSA: fields that it does not define start with the producer's name.
    assert all(name.startswith("ingot_") for name in set(predicate) - {"buildDefinition", "runDetails"})
    assert (type_of(statement), time_of(statement)) == ("build", "2026-11-20T10:00:01.500000Z")


def test_a_small_build_makes_a_small_line() -> None:
    assert len(canonical_json(build_statement(receipt()))) < 4000


def files(count: int) -> list[dict[str, Any]]:
    return [{"path": f"f{n:05}", "size": n, "sha256": f"{n:064x}", "xxh3_128": f"{n:032x}"} for n in range(count)]


def test_a_long_file_list_moves_to_evidence() -> None:
    kept: dict[str, bytes] = {}

    def store(data: bytes) -> str:
        kept[sha256_bytes(data)] = data
        return sha256_bytes(data)

    made = receipt(files=files(1000))
    statement = through_json(build_statement(made, store))
    assert len(canonical_json(statement)) < MAX_LINE
    (name,) = kept
    assert evidence_of(statement) == [name]
    assert receipt_of(statement, kept.__getitem__) == made
    slim = receipt_of(statement)
    assert slim["files_evidence"] == name
    assert "files" not in slim
    assert build_statement(slim) == statement
    assert evidence_of(build_statement(receipt(), store)) == []
    assert len(kept) == 1


def test_the_digests_of_tensors_are_evidence() -> None:
    """Beside a file list that fits, and beside one that does not."""
    kept: dict[str, bytes] = {}

    def store(data: bytes) -> str:
        kept[sha256_bytes(data)] = data
        return sha256_bytes(data)

    tensors = store(b"{}")
    for count in (1, 1000):
        made = receipt(files=files(count), tensors_evidence=tensors, notes={"adapter": ["a"]})
        statement = through_json(build_statement(made, store))
        assert receipt_of(statement, kept.__getitem__) == made
        assert set(evidence_of(statement)) == set(list(kept)[: 1 if count == 1 else 2])
    byproducts = statement["predicate"]["runDetails"]["byproducts"]
    for wrong in ([{**byproducts[0], "name": "other"}], [byproducts[0]] * 2, [{**byproducts[0], "digest": {}}]):
        statement["predicate"]["runDetails"]["byproducts"] = wrong
        with pytest.raises(RegistryDamaged):
            receipt_of(statement)


def test_what_cannot_be_made_to_fit_is_refused() -> None:
    for made, store in ((receipt(files=files(1000)), None), (receipt(environment={"x": "y" * 70_000}), sha256_bytes)):
        with pytest.raises(RefusedInput) as caught:
            build_statement(made, store)
        assert caught.value.code == "E-LEAF-SIZE"


@pytest.mark.parametrize(
    "changes", [{"surprise": 1}, {"type": "selected"}, {"files_evidence": DIGEST}], ids=["unknown", "type", "both"]
)
def test_a_wrong_receipt_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedInput) as caught:
        build_statement(receipt(**changes))
    assert caught.value.code == "E-RECEIPT"


@pytest.mark.parametrize("field", ["digest", "files", "key_parts"])
def test_a_receipt_with_a_field_missing_is_refused(field: str) -> None:
    made = receipt()
    del made[field]
    with pytest.raises(RefusedInput):
        build_statement(made)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.update(predicateType="https://example.org/other"),
        lambda s: s.update(subject=[]),
        lambda s: s.update(predicate=None),
        lambda s: s["predicate"]["buildDefinition"].update(buildType="https://example.org/other"),
        lambda s: s["predicate"]["buildDefinition"].pop("resolvedDependencies"),
        lambda s: s["predicate"]["runDetails"].update(byproducts=[{"digest": {"sha256": "../../etc/passwd"}}]),
    ],
)
def test_a_foreign_statement_is_no_receipt(damage: Any) -> None:
    statement = build_statement(receipt())
    damage(statement)
    with pytest.raises(RegistryDamaged) as caught:
        receipt_of(statement)
    assert caught.value.code == "E-REG-ENTRY"


def test_a_decision_comes_back() -> None:
    fields = {"target": "demo:gguf", "digest": DIGEST, "spec": "demo", "key": "22" * 32}
    statement = through_json(decision_statement("selected", fields, time="2026-11-20T10:00:00.000000Z"))
    assert decision_of(statement) == {**fields, "type": "selected", "time": "2026-11-20T10:00:00.000000Z"}
    assert (type_of(statement), time_of(statement)) == ("selected", "2026-11-20T10:00:00.000000Z")


def test_a_decision_is_of_now() -> None:
    statement = decision_statement("gate-failed", {"target": "a:b", "digest": DIGEST})
    assert time_of(statement).startswith("20")
    assert time_of(statement).endswith("Z")


@pytest.mark.parametrize("statement", [{}, {"subject": [{}]}, {"subject": [{"digest": {}}], "predicate": {}}])
def test_a_foreign_statement_is_no_decision(statement: dict[str, Any]) -> None:
    with pytest.raises(RegistryDamaged):
        decision_of(statement)


def test_types_and_times_of_foreign_statements() -> None:
    for foreign in ("urn:ingot:x:2", "urn:ingot::1", "https://example.org/urn:ingot:x:1"):
        assert type_of({"predicateType": foreign}) == foreign
    assert time_of({"predicateType": PROVENANCE, "predicate": {"runDetails": 1}}) == ""
    assert time_of({"predicateType": PROVENANCE, "predicate": {"runDetails": {"metadata": 1}}}) == ""
    assert time_of({"predicateType": PROVENANCE}) == ""
    assert time_of({"predicateType": "urn:ingot:x:1", "predicate": {}}) == ""


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
INPUT = st.fixed_dictionaries({"target": st.text(max_size=5), "digest": st.just(DIGEST)})


@given(
    st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    st.dictionaries(st.text(max_size=5), INPUT | st.lists(INPUT, max_size=3), max_size=3),
)
def test_any_receipt_comes_back(anything: dict[str, Any], inputs: dict[str, Any]) -> None:
    made = receipt(metrics=anything, key_parts=anything, environment=anything, inputs=inputs)
    assert receipt_of(through_json(build_statement(made))) == made
