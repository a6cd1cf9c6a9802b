"""What is read of files that somebody was sent, and what is said of those that are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingot.core.note import SigningKey
from ingot.core.proof import HEADER
from ingot.core.proof_files import about, checkpoint_of, key_of, no_proof, read, read_checkpoint
from ingot.errors import RegistryDamaged, UsageError
from registrykit import Project, project, selected


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = project(tmp_path_factory.mktemp("files"))
    found.registry().append([selected(0)])
    return found


def test_a_file_is_read_within_limits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 18))
    assert len(read(str(path), "proof")) == 1 << 18
    path.write_bytes(b"x" * ((1 << 18) + 1))
    with pytest.raises(RegistryDamaged, match="has more than 262,144 bytes: it is no proof"):
        read(str(path), "proof")
    with pytest.raises(UsageError, match="the key 'nowhere' cannot be read: no such file or directory"):
        read("nowhere", "key")


def test_what_is_wrong_is_said_of_the_file() -> None:
    with pytest.raises(RegistryDamaged) as caught, about("grown"):
        raise RegistryDamaged("E-PROOF", "what", facts=["fact"], hint="hint")
    assert str(caught.value) == "E-PROOF: what\n  fact\n  in grown\n  hint: hint"
    with pytest.raises(RegistryDamaged) as caught, about("f", "a checkpoint"):
        raise RegistryDamaged("E-REG-NOTE", "it has no signature")
    assert str(caught.value) == "E-REG-NOTE: 'f' is not a checkpoint: it has no signature"


def test_a_checkpoint_may_have_been_mailed(made: Project, tmp_path: Path) -> None:
    data, path = made.checkpoint().read_bytes(), tmp_path / "mailed"
    path.write_bytes(b"\r\n " + data.replace(b"\n", b"\r\n").rstrip())
    assert read_checkpoint(str(path)) == data
    path.write_bytes(b"something else")
    with pytest.raises(RegistryDamaged, match="is not the signed checkpoint of a log"):
        read_checkpoint(str(path))


def test_what_a_file_is_instead_of_a_proof(made: Project) -> None:
    checkpoint = made.checkpoint().read_bytes()
    assert no_proof("f", b"text").hint is None
    assert "line ends were changed" in str(no_proof("f", f"{HEADER}\r\nextra".encode()).hint)
    assert "doit registry consistency f" in str(no_proof("f", checkpoint).hint)
    assert checkpoint_of(checkpoint).size == 2


def test_a_key_is_given_as_text_or_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = SigningKey.generate("example.com/log")
    public = secret.verifier()
    monkeypatch.chdir(tmp_path)
    for name in ("log.vkey", "c++"):
        Path(name).write_text(f"{public}\n")
        assert key_of(name, public.name) == public
    assert key_of(f" {public}\n", public.name) == public
    with pytest.raises(UsageError, match="no public key of a log"):
        key_of("a+" * 4000, public.name)
    with pytest.raises(RegistryDamaged, match=r"this is of the log other/log, and the key is that of example\.com/log"):
        key_of(str(public), "other/log")


def test_no_key_is_ever_repeated(tmp_path: Path) -> None:
    secret, path = SigningKey.generate("example.com/log"), tmp_path / "key"
    for text in (str(secret), "a+b+c", str(secret)[12:]):
        path.write_text(text)
        for given, named in ((text, "the text of --key"), (str(path), repr(str(path)))):
            with pytest.raises(UsageError) as caught:
                key_of(given, secret.name)
            assert (caught.value.code, str(caught.value).startswith(f"E-KEY: {named} is ")) == ("E-KEY", True)
            assert text not in str(caught.value)
            assert ("SECRET" in str(caught.value)) == (text == str(secret))
