"""The members of a tar file are those that the standard library finds, in every format; damage is said."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from unlabeled.data.sources.tar import DamagedTar, TarMember, members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def archive(kind: int, longest: int) -> bytes:
    """Files of many sizes and lengths of names, with folders and links between them."""
    stream, random = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for number in range(60):
            name = "ö" * (number % 3) + f"{number:0{number % longest + 2}}"
            info = tarfile.TarInfo("d" * (number % 50 + 1) + "/" + name)
            info.size = 0 if number % 7 == 0 else int(random.integers(0, 2000))
            info.type = {5: tarfile.DIRTYPE, 6: tarfile.SYMTYPE}.get(number % 10, tarfile.REGTYPE)
            info.linkname = "elsewhere" if number % 10 == 6 else ""
            info.size = info.size if info.isreg() else 0
            info.mtime = 1.5 if kind == tarfile.PAX_FORMAT else 1  # needs a pax header
            tar.addfile(info, io.BytesIO(random.bytes(info.size)))
    return stream.getvalue()


def found(data: bytes) -> list[TarMember]:
    return list(members(io.BytesIO(data), len(data)))


@pytest.mark.parametrize(("kind", "longest"), [(FORMATS[0], 80), (FORMATS[1], 140), (FORMATS[2], 140)])
def test_members_are_those_of_the_standard_library(kind: int, longest: int) -> None:
    data = archive(kind, longest)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [TarMember(info.name.encode(), info.offset_data, info.size) for info in tar if info.isreg()]
    assert len(theirs) == 48
    assert max(len(member.name) for member in theirs) > 100
    assert found(data) == theirs
    links = list[bytes]()
    assert list(members(io.BytesIO(data), len(data), links)) == theirs
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert links == [info.name.encode() for info in tar if info.issym()]


def test_sizes_beyond_eight_gigabytes_are_read_in_both_ways_of_writing_them(tmp_path: Path) -> None:
    for kind in FORMATS[1:]:
        info = tarfile.TarInfo("big")
        info.size = 9 * 2**30
        header = info.tobuf(kind)  # type: ignore[arg-type]
        with open(tmp_path / "big.tar", "wb") as file:
            file.write(header)
            file.truncate(len(header) + info.size + 1024)  # a hole, no bytes
        with open(tmp_path / "big.tar", "rb") as file:
            assert list(members(file, len(header) + info.size + 1024)) == [TarMember(b"big", len(header), info.size)]


@pytest.mark.parametrize("kind", FORMATS)
def test_any_cut_and_any_damage_of_a_header_give_the_members_before_it(kind: int) -> None:
    data = archive(kind, 80)
    whole = found(data)
    ends = [member.offset + member.size for member in whole]
    headers = [member.offset - 512 for member in whole]
    for length in range(0, headers[-1], 301):
        with pytest.raises(DamagedTar, match="empty" if length == 0 else f"cut short at byte {length:,}"):
            found(data[:length])
        assert before(data[:length]) == whole[: sum(end <= length for end in ends)]
    for number in range(1, len(whole), 5):
        broken = bytearray(data)
        broken[headers[number] + 130] ^= 1  # a digit of the size
        with pytest.raises(DamagedTar, match=f"damaged from byte {headers[number]:,} on"):
            found(bytes(broken))
        assert before(bytes(broken)) == whole[:number]


def before(data: bytes) -> list[TarMember]:
    """What comes before the damage."""
    listed: list[TarMember] = []
    with suppress(DamagedTar):
        listed.extend(members(io.BytesIO(data), len(data)))
    return listed


def test_what_never_was_a_tar_file_is_said() -> None:
    with pytest.raises(DamagedTar, match=r"^no tar file$"):
        found(b"text" * 300)
