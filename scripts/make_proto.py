"""Generate src/shim/_pb from proto/: messages, type stubs and gRPC service code.

protoc writes imports by package path (`from containerd.v1...`); they are moved below
`shim._pb`, so that no other distribution's `containerd` package is met.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(target: Path) -> None:
    """Write the generated package into `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(arguments + outputs + protos) != 0:
        sys.exit("protoc failed")
    for path in target.rglob("*.py*"):
        text = re.sub(r"^from containerd\.", "from shim._pb.containerd.", path.read_text(), flags=re.M)
        path.write_text(text)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    for path in target.rglob("*_pb2_grpc.py"):
        if "\nclass " not in path.read_text():
            path.unlink()


if __name__ == "__main__":
    generate(ROOT / "src" / "shim" / "_pb")
