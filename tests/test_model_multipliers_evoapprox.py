"""EvoApproxLib from folders and archives: hostile ones, and ones that are not the release."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from model.errors import RedcaneError
from model.multipliers import evoapprox
from model.multipliers.evoapprox import fetch, unpack
from model.multipliers.library import library_names

MULTIPLIER = b"module mul8u_X(input [7:0] A, input [7:0] B, output [15:0] O); assign O = A * B; endmodule\n"
GOOD = "lib/multiplers/8x8_unsigned/pareto_pwr_ep/mul8u_X.v"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))


def tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("lib/8x8_unsigned/a/mul8u_L.v")
            info.type, info.linkname = tarfile.SYMTYPE, link
            packed.addfile(info)
    return path


def test_only_the_multipliers_come_out_of_an_archive(tmp_path: Path) -> None:
    members = {GOOD: MULTIPLIER, "lib/8x8_signed/pareto/mul8s_S.v": MULTIPLIER, "lib/8x8_signed/mul8u_H.v": MULTIPLIER,
               "lib/8x8_signed/mul8s_S_pdk45.v": b"x",
               "../../8x8_unsigned/mul8u_E.v": MULTIPLIER, "/etc/8x8_unsigned/mul8u_F.v": MULTIPLIER,
               "lib/8x8_unsigned/mul8u_G_pdk45.v": b"x", "lib/README": b"x"}  # fmt: skip
    tar(tmp_path / "x.tar.gz", members, link="/etc/passwd")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    for archive in ("x.tar.gz", "x.zip"):
        folder = tmp_path / f"out of {archive}"
        folder.mkdir()
        unpack(tmp_path / archive, folder)
        found = sorted(p.name for p in folder.rglob("*") if p.is_file())
        assert found == ["mul8s_S.v", "mul8u_E.v", "mul8u_F.v", "mul8u_X.v"]
    assert {p.name for p in tmp_path.iterdir()} == {"x.tar.gz", "x.zip", "out of x.tar.gz", "out of x.zip"}


def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    whole = tar(tmp_path / "whole.tar.gz", {GOOD: MULTIPLIER * 1000}).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none").write_bytes(b"not an archive")
    tar(tmp_path / "empty.tar.gz", {"lib/README": b"x"})
    tar(tmp_path / "bomb.tar.gz", {GOOD: bytes(2**21)})
    for name, sentence in (("cut.tar.gz", "not a whole"), ("none", "not a whole"), ("empty.tar.gz", "holds no"),
                           ("bomb.tar.gz", "larger than"), ("missing", "no such")):  # fmt: skip
        with pytest.raises(RedcaneError, match=sentence):
            unpack(tmp_path / name, out)
    monkeypatch.setattr(evoapprox, "MEMBERS_LIMIT", 2)
    tar(tmp_path / "many.tar.gz", {f"{i}": b"" for i in range(5)})
    with pytest.raises(RedcaneError, match="more than 2 files"):
        unpack(tmp_path / "many.tar.gz", out)


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evoapprox, "ARCHIVE_LIMIT", 2**20)
    beside = tar(tmp_path / "beside.tar.gz", {"lib/other": bytes(2**22), GOOD: MULTIPLIER})
    with tarfile.open(tmp_path / "name.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as packed:
        packed.addfile(tarfile.TarInfo("lib/" + "x" * 2**21))  # a name that tarfile would hold in memory
    for bomb in (beside, tmp_path / "name.tar.gz"):
        assert bomb.stat().st_size < 2**16
        with pytest.raises(RedcaneError, match="more than 1 MiB when it is unpacked"):
            unpack(bomb, tmp_path / "out")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_a_damaged_archive_is_told_in_one_sentence(kind: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(GOOD, MULTIPLIER * 20)
    else:
        with tarfile.open(whole, f"w:{kind}") as packed_tar:  # type: ignore[call-overload]  # a mode made of parts
            info = tarfile.TarInfo(GOOD)
            info.size = 20 * len(MULTIPLIER)
            packed_tar.addfile(info, io.BytesIO(MULTIPLIER * 20))
    content, rng = whole.read_bytes(), random.Random(kind)
    told: list[str] = []
    for index in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        (tmp_path / "damaged").write_bytes(damaged[: rng.randrange(len(damaged))] if index % 3 == 0 else damaged)
        out = tmp_path / f"{index}"
        out.mkdir()
        try:
            unpack(tmp_path / "damaged", out)
        except RedcaneError as problem:
            told.append(str(problem))
    assert len(told) > 20 and "\n" not in "".join(told)


def test_another_release_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(tmp_path / "x.tar.gz", {GOOD: MULTIPLIER})
    with pytest.raises(RedcaneError, match="is missing"):
        fetch(archive)
    monkeypatch.setattr(evoapprox, "TABLES", {"mul8u_X": "0123456789abcdef"})
    with pytest.raises(RedcaneError, match="another circuit"):
        fetch(archive)
    assert "evoapprox" not in library_names()


def test_a_release_that_checks_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = fetch_digest()
    monkeypatch.setattr(evoapprox, "TABLES", {"mul8u_X": exact[:16]})
    library = fetch(tar(tmp_path / "x.tar.gz", {GOOD: MULTIPLIER}))
    assert library.exact.name == "mul8u_X"
    assert "evoapprox" in library_names()


def fetch_digest() -> str:
    from model.multipliers.netlist import extract_table
    from model.multipliers.product_table import table_digest

    return table_digest(extract_table(MULTIPLIER.decode()).table)
