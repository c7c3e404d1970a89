"""The root file system of busybox, and how a static program is told."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shim.errors import FailedPrecondition
from shim.oci.busybox import BUSYBOX, make_rootfs
from shim.oci.elf import is_static

needs_busybox = pytest.mark.skipif(
    not BUSYBOX.exists() or not is_static(BUSYBOX), reason="no static busybox on this machine"
)


def elf(segments: list[int], bits: int, order: str) -> bytes:
    """An ELF header and program headers of these types."""
    size = 56 if bits == 64 else 32
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2]) + bytes(10)
    word = "Q" if bits == 64 else "I"
    head = ident + struct.pack(
        f"{order}HHI3{word}IHHHHHH", 2, 62, 1, 0, 64, 0, 0, 0, size, len(segments), 0, 0, 0
    )
    rows = (struct.pack(f"{order}I", kind).ljust(size, b"\0") for kind in segments)
    return head.ljust(64, b"\0") + b"".join(rows)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_static_is_told_from_the_segments(tmp_path: Path, bits: int, order: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf([1, 6, 1], bits, order))
    assert is_static(program)
    program.write_bytes(elf([6, 3, 1], bits, order))
    assert not is_static(program)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n" * 20, b"\x7fELF\x09" + bytes(80)])
def test_what_is_no_elf_program_is_not_static(tmp_path: Path, data: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(data)
    assert not is_static(program)


def test_the_running_python_is_not_static() -> None:
    assert not is_static(Path(sys.executable))


def test_without_busybox_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="apt-get install busybox-static"):
        make_rootfs(tmp_path / "root", tmp_path / "none")
    assert not (tmp_path / "root").exists()


def test_a_dynamic_busybox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no static busybox"):
        make_rootfs(tmp_path / "root", Path(sys.executable).resolve())


@needs_busybox
def test_rootfs_has_what_a_container_needs(tmp_path: Path) -> None:
    make_rootfs(tmp_path)
    for folder in ("proc", "sys", "dev", "root", "var/run", "usr/bin", "sbin"):
        assert (tmp_path / folder).is_dir()
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "root:x:0:0" in (tmp_path / "etc/passwd").read_text()
    assert "tty:x:5:" in (tmp_path / "etc/group").read_text()


@needs_busybox
def test_every_applet_leads_to_a_copy(tmp_path: Path) -> None:
    make_rootfs(tmp_path)
    copy = tmp_path / "bin/busybox"
    assert not copy.is_symlink()
    assert not os.path.samefile(copy, BUSYBOX)
    links = [path for path in (tmp_path / "bin").iterdir() if path.is_symlink()]
    assert {"sh", "cat", "sleep"} <= {path.name for path in links}
    assert all(path.resolve() == copy for path in links)
    run = subprocess.run([tmp_path / "bin/echo", "hi"], capture_output=True, check=True)
    assert run.stdout == b"hi\n"
