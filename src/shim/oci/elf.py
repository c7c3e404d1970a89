"""Whether a program runs without a dynamic loader."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_PT_INTERP: Final = 3

# By EI_CLASS: the offset of e_phoff and its format, and the offset of e_phentsize, e_phnum
# (elf(5)).
_LAYOUTS: Final = {1: (28, "I", 42), 2: (32, "Q", 54)}
_ORDERS: Final = {1: "<", 2: ">"}


def is_static(program: Path) -> bool:
    """True for an ELF program that asks for no interpreter (no PT_INTERP segment).

    False for what is not ELF. Raises OSError when `program` cannot be read.
    """
    with program.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in _LAYOUTS:
            return False
        table, kind, sizes = _LAYOUTS[head[4]]
        order = _ORDERS.get(head[5], "<")
        (offset,) = struct.unpack_from(order + kind, head, table)
        size, count = struct.unpack_from(order + "HH", head, sizes)
        file.seek(offset)
        segments = file.read(size * count)
    # p_type is the first word of a segment's header in both classes.
    types = (struct.unpack_from(order + "I", segments, i * size)[0] for i in range(count))
    return _PT_INTERP not in types
