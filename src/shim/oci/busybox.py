"""A minimal root file system, made from the machine's own static busybox."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from shim.errors import FailedPrecondition
from shim.oci.elf import is_static

BUSYBOX: Final = Path("/bin/busybox")

_FOLDERS: Final = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var", "var/run")
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
}
_LINKS: Final = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"}


def make_rootfs(target: Path, busybox: Path = BUSYBOX) -> None:
    """Fill the directory `target`, made if need be, with busybox and a link for each applet.

    The program is copied: the container's root may write to it. Raises FailedPrecondition when
    there is no static busybox.
    """
    applets = _applets(busybox)
    for name in _FOLDERS:
        (target / name).mkdir(parents=True, exist_ok=True)
    (target / "tmp").chmod(0o1777)
    for name, text in _FILES.items():
        (target / name).write_text(text)
    for name, link in _LINKS.items():
        (target / name).symlink_to(link)
    shutil.copy2(busybox, target / "bin" / "busybox")
    for applet in applets:
        (target / "bin" / applet).symlink_to("busybox")


def _applets(busybox: Path) -> list[str]:
    """The names of `busybox`'s applets but its own; FailedPrecondition if it is not static."""
    if not busybox.exists() or not is_static(busybox):
        raise FailedPrecondition(
            f"{busybox} is no static busybox, which the root file system is made of: "
            "apt-get install busybox-static"
        )
    listing = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    return [name for name in listing.stdout.split() if name != "busybox"]
