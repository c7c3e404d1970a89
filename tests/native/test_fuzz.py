"""The fuzzer's targets: their kept inputs pass, and see what they are there to see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0

pytestmark = pytest.mark.skipif(
    not (shutil.which("clang") and shutil.which("llvm-config")), reason="needs clang and libFuzzer"
)


def replay(target: str, place: Path, native: Path) -> subprocess.CompletedProcess[str]:
    """Build a target and give it its kept inputs once."""
    names = ("ASAN_OPTIONS", "UBSAN_OPTIONS")  # scripts/sanitize looks for the keeper's reports
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"FUZZ_PLACE": str(place), "NATIVE": str(native), "PYTHON": sys.executable}
    return subprocess.run(
        [ROOT / "scripts" / "fuzz", "replay", target],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["frames", "launcher_response"])
def test_the_kept_inputs_pass(tmp_path: Path, target: str) -> None:
    done = replay(target, tmp_path, ROOT / "src" / "_native")
    assert done.returncode == 0, done.stderr
    kept = len(list((ROOT / "tests" / "fuzz" / target).iterdir()))
    assert f"{kept} files found" in done.stderr


BUGS = {
    "a header too long": (
        "piece = min(<size_t>framing_wants(framing), size[0])",
        "piece = size[0] if framing.have else min(<size_t>framing_wants(framing), size[0])",
    ),
    "a stream twice": ("framing.stream <= framing.last", "framing.stream < framing.last"),
    "4 MiB": ("framing.left > MOST_MESSAGE", "framing.left >= MOST_MESSAGE"),
    "an even stream": ("framing.stream % 2 == 0", "framing.stream == 0"),
    "a body that does not end": ("framing.state = IN_HEADER\n            step", "step"),
    "a status too long": ("<unsigned char>(4 + length)", "<unsigned char>(5 + length)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_seen(tmp_path: Path, bug: str) -> None:
    """Each of these, put into a copy of the parser, makes the kept inputs fail."""
    native = tmp_path / "native"
    shutil.copytree(ROOT / "src" / "_native", native)
    framing = native / "framing.pxd"
    right, wrong = BUGS[bug]
    assert framing.read_text().count(right) == 1
    framing.write_text(framing.read_text().replace(right, wrong))
    done = replay("frames", tmp_path, native)
    assert done.returncode != 0
    assert "ERROR: " in done.stderr, done.stderr
