"""Generate src/shim/_pb from proto/: messages, type stubs and gRPC service code.

protoc writes imports by package path (`from containerd.v1...`); they are moved below
`shim._pb`, so that no other distribution's `containerd` package is met, nor Python's `io`.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent / "proto"
OF_GRPC_TOOLS = Path(grpc_tools.__file__).parent / "_proto"

# What is called over gRPC; the calls of all other services are framed by hand.
GRPC = [
    "containerd/v1/containers/containers.proto",
    "containerd/v1/services/execution/execution.proto",
    "containerd/v1/services/shim/shim.proto",
    "containerd/v1/snapshot/snapshot.proto",
    "denseshim/machine/v1/machine.proto",
]


def generate(target: Path) -> None:
    """Write the generated package into `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    compile_protos(protos, [f"--{kind}_out={target}" for kind in ("python", "pyi")])
    compile_protos(GRPC, [f"--grpc_python_out={target}"])
    move_imports(target)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()


def compile_protos(protos: list[str], outputs: list[str]) -> None:
    """Exits the program when the compiler refuses."""
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{OF_GRPC_TOOLS}", *outputs, *protos]) != 0:
        sys.exit("protoc failed")


def move_imports(target: Path) -> None:
    """Let the modules in `target` import each other from below `shim._pb`."""
    ours = "|".join(sorted(path.name for path in PROTO.iterdir() if path.is_dir()))
    for path in target.rglob("*.py*"):
        text = re.sub(rf"^from ({ours})\.", r"from shim._pb.\1.", path.read_text(), flags=re.M)
        path.write_text(text)


if __name__ == "__main__":
    generate(PROTO.parent / "src" / "shim" / "_pb")
