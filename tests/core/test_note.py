"""Signed notes and checkpoints: round trips, a public example, and every malformed spelling."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingot.core.note import Checkpoint, Note, SigningKey, VerifierKey
from ingot.errors import RegistryDamaged

KEY = SigningKey("ingot.local/0123456789ab", bytes(range(32)))
VKEY = KEY.verifier()
POINT = Checkpoint(KEY.name, 707, bytes(32))
NOTE = KEY.sign(POINT.text())
SIGNATURE = NOTE.split(b"\n")[-2]


def test_a_signed_checkpoint_reads_back() -> None:
    note = Note.parse(NOTE)
    note.verify(VKEY)
    assert Checkpoint.parse(note.text) == POINT
    assert KEY.sign(POINT.text()) == NOTE


def test_the_layout_is_the_published_one() -> None:
    lines = NOTE.decode().split("\n")
    assert lines[:4] == [KEY.name, "707", base64.b64encode(bytes(32)).decode(), ""]
    assert lines[4].startswith(f"— {KEY.name} ")
    assert lines[5:] == [""]


def test_a_published_key_of_gos_note_package() -> None:
    """The example of pkg.go.dev/golang.org/x/mod/sumdb/note: key pair, message, signature."""
    skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = (
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert str(SigningKey.parse(skey).verifier()) == vkey
    assert SigningKey.parse(skey).sign(text).decode() == f"{text}\n{signature}\n"
    Note.parse(f"{text}\n{signature}\n".encode()).verify(VerifierKey.parse(vkey))


def test_keys_read_back() -> None:
    assert VerifierKey.parse(str(VKEY)) == VKEY
    assert SigningKey.parse(str(KEY)) == KEY
    assert SigningKey.generate("a").seed != SigningKey.generate("a").seed


def test_a_key_is_never_shown() -> None:
    assert KEY.seed.hex() not in repr(KEY)
    assert str(KEY) not in repr(KEY)
    with pytest.raises(RegistryDamaged) as caught:
        SigningKey.parse(str(KEY) + "A")
    assert str(KEY)[-20:] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "PRIVATE+KEY+a+00000000+AA==", str(KEY).replace("PRIVATE", "PUBLIC"), str(KEY).replace("ab+", "ac+"), "a+b"],
)
def test_a_malformed_signing_key_is_refused(text: str) -> None:
    with pytest.raises(RegistryDamaged) as caught:
        SigningKey.parse(text)
    assert caught.value.code == "E-REG-KEY"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a+b",
        str(VKEY) + "\n",
        str(VKEY).replace("ab+", "ac+"),
        str(VKEY)[:-1],
        " " + str(VKEY),
        VKEY.name + "+00000000+" + str(VKEY).rsplit("+", 1)[1],
    ],
)
def test_a_malformed_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(RegistryDamaged):
        VerifierKey.parse(text)


def unpadded(line: bytes) -> bytes:
    """The last base64 digit replaced by one that decodes to the same bytes."""
    assert line.endswith(b"=")
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = line.rstrip(b"=")
    other = digits[digits.index(body[-1]) ^ 1]
    return body[:-1] + bytes([other]) + line[len(body) :]


@pytest.mark.fault("T3", "a signed note is malformed in one of many ways: refused")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        NOTE[:-1],
        NOTE + b"\n",
        NOTE.replace(b"\n", b"\r\n"),
        NOTE.replace(b"707", b"7\x007"),
        NOTE.replace(b"707", b"7\xff7"),
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"\xe2\x80\x94", b"-"),
        NOTE.replace(SIGNATURE, SIGNATURE + b" "),
        NOTE.replace(SIGNATURE, unpadded(SIGNATURE)),
        NOTE.replace(SIGNATURE, SIGNATURE.rstrip(b"=")),
        NOTE.replace(SIGNATURE, f"— {KEY.name} AAAA".encode()),
        NOTE + 16 * (SIGNATURE + b"\n"),
        b"x" * 65_536 + NOTE,
    ],
)
def test_a_malformed_note_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryDamaged) as caught:
        Note.parse(data)
    assert caught.value.code == "E-REG-NOTE"


def test_the_limits_of_a_note_are_those_published() -> None:
    assert len(Note.parse(NOTE + 15 * (SIGNATURE + b"\n")).signatures) == 16
    for room, taken in ((65_535, True), (65_536, False)):
        data = b"x" * (room - len(NOTE)) + NOTE
        assert len(data) == room
        if taken:
            assert Note.parse(data).text.startswith("xxx")
        else:
            with pytest.raises(RegistryDamaged, match="longer than"):
                Note.parse(data)
    for length, taken in ((5, True), (4, False)):
        line = f"— {KEY.name} {base64.b64encode(bytes(length)).decode()}".encode()
        if taken:
            assert Note.parse(NOTE.replace(SIGNATURE, line)).signatures == ((KEY.name, bytes(4), bytes(1)),)
        else:
            with pytest.raises(RegistryDamaged, match="too short"):
                Note.parse(NOTE.replace(SIGNATURE, line))


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"a\n7\n{ROOT}",
        f"a\n07\n{ROOT}\n",
        f"a\n-7\n{ROOT}\n",
        f"a\n+7\n{ROOT}\n",
        f"a\n7 \n{ROOT}\n",
        f"a\n٧\n{ROOT}\n",
        f"a\n{'9' * 17}\n{ROOT}\n",
        f"a\n7\n{ROOT}\n\n",
        f"a\n7\n{ROOT}\nextension\n",
        f"a b\n7\n{ROOT}\n",
        f"a+b\n7\n{ROOT}\n",
        f"\n7\n{ROOT}\n",
        f"a\n7\n{ROOT[:-4]}\n",
        f"a\n7\n{ROOT[:-2]}B=\n",
        f"a\n7\n{ROOT}=\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(RegistryDamaged) as caught:
        Checkpoint.parse(text)
    assert caught.value.code == "E-REG-NOTE"


def test_a_note_of_another_key_is_refused() -> None:
    other = SigningKey(KEY.name, bytes(32)).verifier()
    with pytest.raises(RegistryDamaged, match="no signature"):
        Note.parse(NOTE).verify(other)


@pytest.mark.fault("T3", "a second signature of the known key fails: the whole note is refused")
def test_one_bad_signature_of_a_known_key_spoils_the_note() -> None:
    name, blob = SIGNATURE.decode()[2:].split(" ")
    wrong = bytearray(base64.b64decode(blob))
    wrong[-1] ^= 1
    line = f"— {name} {base64.b64encode(wrong).decode()}\n".encode()
    for data in (NOTE + line, NOTE.replace(SIGNATURE + b"\n", line)):
        with pytest.raises(RegistryDamaged, match="does not verify"):
            Note.parse(data).verify(VKEY)


def test_signatures_of_unknown_keys_are_passed_over() -> None:
    other = SigningKey("witness", bytes(32)).sign(POINT.text()).split(b"\n")[-2] + b"\n"
    Note.parse(NOTE + other).verify(VKEY)


@given(st.integers(0, len(NOTE) - 1), st.integers(0, 7))
def test_any_changed_bit_is_found(place: int, bit: int) -> None:
    changed = bytearray(NOTE)
    changed[place] ^= 1 << bit
    with pytest.raises(RegistryDamaged):
        Note.parse(bytes(changed)).verify(VKEY)


@given(st.binary(max_size=200))
@example(b"\xe2\x80\x94 a \n\n")
@example(b"\n\n\xe2\x80\x94 a AAAAAAAA\n")
def test_any_bytes_are_a_note_or_refused(data: bytes) -> None:
    try:
        note = Note.parse(data)
        Checkpoint.parse(note.text)
    except RegistryDamaged:
        return


@given(
    st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="+"), min_size=1, max_size=20),
    st.integers(0, 10**15),
    st.binary(min_size=32, max_size=32),
)
def test_any_checkpoint_survives_signing(origin: str, size: int, root: bytes) -> None:
    key = SigningKey(origin, root)
    note = Note.parse(key.sign(Checkpoint(origin, size, root).text()))
    note.verify(VerifierKey.parse(str(key.verifier())))
    assert Checkpoint.parse(note.text) == Checkpoint(origin, size, root)
