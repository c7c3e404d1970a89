import errno
import os

import pytest

from shim import syscalls


def test_an_error_names_the_call_and_the_path(tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.umount(missing, 0)
    assert caught.value.filename == missing
    assert "umount2" in str(caught.value)


def test_mount_reports_its_own_errno(tmp_path):
    with pytest.raises(OSError, match="mount: ") as caught:
        syscalls.mount("x", str(tmp_path), "no-such-file-system", 0)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("place", range(4))
def test_a_string_with_nul_never_reaches_the_kernel(tmp_path, place):
    strings = ["tmpfs", str(tmp_path), "tmpfs", ""]
    strings[place] += "\0x"
    source, target, kind, data = strings
    with pytest.raises(ValueError, match="NUL"):
        syscalls.mount(source, target, kind, 0, data)


def test_a_pty_master_has_a_number_and_its_slave_has_none():
    master, slave = os.openpty()
    try:
        assert os.ttyname(slave) == f"/dev/pts/{syscalls.pty_number(master)}"
        with pytest.raises(OSError, match="ioctl") as caught:
            syscalls.pty_number(slave)
        assert caught.value.errno == errno.ENOTTY
    finally:
        os.close(master)
        os.close(slave)
