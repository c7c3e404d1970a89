"""README's section on a machine without containerd, run as it is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.fakes.node import BIN
from tests.standalone.support import StandaloneNode

README = Path(__file__).parents[2] / "README.md"


def section() -> str:
    text = README.read_text().partition("## Without containerd\n")[2]
    (first, *_) = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    return str(first)


def test_readme_without_containerd(node: StandaloneNode, tmp_path: Path) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    done = node.run("env", f"PATH={path}", "sh", "-exc", section(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    assert "hello\n" in said
    assert "inside, beside pid 1\n" in said
    assert re.search(r"^web +box +running ", said, re.M)
