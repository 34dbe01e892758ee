"""Lists the members of a tar file by reading only headers, and finds damage, which ``tarfile`` takes for the end."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = 512  # bytes
_FIELDS = struct.Struct("100s24x12s12x8sc100s6s82x155s12x")  # name, size, checksum, kind, link, magic, prefix
_FILES, _LONG_NAME, _NEXT, _ALL = (b"0", b"\0", b"7"), b"L", b"x", b"g"  # kinds of members
_LINKS = (b"1", b"2")  # hard and symbolic


class DamagedTar(Exception):
    """Error of a tar file that is damaged or cut short; says where and why."""


@dataclass
class TarMember:
    """A file in a tar file."""

    name: bytes
    offset: int  # position of its first byte
    size: int


def members(file: IO[bytes], length: int, links: list[bytes] | None = None) -> Iterator[TarMember]:
    """Yields whole regular files in order; ustar, GNU and pax. The reader may move ``file`` between them.

    Args:
        file: at any position.
        length: of the file in bytes.
        links: gets the names of hard and symbolic links, which are not followed.

    Raises:
        DamagedTar: after the last whole member, at a truncated file, an invalid header, or a missing end mark.
    """
    place, name, size = 0, None, None
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise DamagedTar(f"cut short at byte {length:,}" if place or header else "empty")
        if not any(header):
            return
        member, kind = _parsed(header, place)
        member.size, start = member.size if size is None else size, place + _BLOCK
        if member.size < 0:
            raise DamagedTar(f"damaged from byte {place:,} on")
        if start + member.size > length:
            raise DamagedTar(f"cut short at byte {length:,}")
        place = start + -(-member.size // _BLOCK) * _BLOCK
        if kind == _LONG_NAME:
            name = file.read(member.size).rstrip(b"\0")
        elif kind == _NEXT:
            try:
                name, size = _pax(file.read(member.size), name)
            except ValueError as error:
                raise DamagedTar(f"damaged from byte {start:,} on") from error
        elif kind != _ALL:
            if kind in _FILES:
                yield TarMember(member.name if name is None else name, start, member.size)
            elif kind in _LINKS and links is not None:
                links.append(member.name if name is None else name)
            name = size = None


def _parsed(header: bytes, place: int) -> tuple[TarMember, bytes]:
    name, size, checksum, kind, _, magic, prefix = _FIELDS.unpack(header)
    try:
        expected = int(checksum.split(b"\0")[0] or b"0", 8)
        number = int.from_bytes(size[1:], "big") if size[0] == 0x80 else int(size.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        expected, number = -1, 0
    if sum(header) - sum(checksum) + 8 * 32 != expected:  # the checksum is computed with spaces in its own field
        raise DamagedTar(f"damaged from byte {place:,} on" if place else "no tar file")
    name, prefix = name.split(b"\0")[0], prefix.split(b"\0")[0] if magic == b"ustar\0" else b""
    return TarMember(prefix + b"/" + name if prefix else name, place + _BLOCK, number), kind


def _pax(records: bytes, name: bytes | None) -> tuple[bytes | None, int | None]:
    """Returns name and size that a pax header gives to the next member: records of ``LENGTH KEY=VALUE\\n``.

    Raises ValueError for an invalid header.
    """
    size = None
    while records:
        length = int(records.split(b" ", 1)[0])
        if length < 5:
            raise ValueError("a record without a value")
        key, _, value = records[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        name = value if key == b"path" else name
        size = int(value) if key == b"size" else size
        records = records[length:]
    return name, size
