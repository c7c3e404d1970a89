"""Calls go down only (design: Data ways): who may import whom, as one table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shim

SOURCE = Path(shim.__file__).parent

BASE = {"shim", "errors", "model"}
KERNEL = {"syscalls", "stdio", "console", "mounts", "cgroup", "blocking", "store", "journal"}
KERNEL |= {"metrics", "oom"}
LEAVES = {"events", "runtime"}

# A part is a module or a package of `shim`; it may import itself and what stands here.
ALLOWED: dict[str, set[str]] = {
    "shim": set(),
    "errors": set(),
    "model": set(),
    "boot": {"_keeper"},
    "syscalls": {"_sys"},
    "stdio": {"errors"},
    "console": {"errors", "stdio", "syscalls"},
    "loop": {"stdio", "syscalls"},
    "idmap": {"errors", "stdio", "syscalls"},
    "mounts": {"errors", "idmap", "loop", "model", "stdio", "syscalls"},
    "cgroup": set(),
    "metrics": {"_pb", "cgroup", "errors"},
    "oom": {"cgroup", "syscalls"},
    "blocking": {"errors"},
    "store": set(),
    "journal": {"model", "store"},
    "metadata": {"errors", "service", "store"},
    "snapshots": {"errors", "metadata", "model", "syscalls"},
    "events": {"errors", "journal", "model"},
    "keeper": BASE,
    "runtime": BASE | {"keeper", "stdio"},
    "service": BASE | KERNEL | LEAVES | {"keeper"},
    "places": set(),
    "standalone": BASE
    | {"blocking", "cgroup", "events", "journal", "metadata", "metrics", "places", "service"}
    | {"snapshots", "store"},
    "api": BASE
    | {"_keeper", "_pb", "blocking", "bootstrap", "events", "journal", "keeper", "metadata"}
    | {"metrics", "places", "runtime", "service", "snapshots", "standalone", "store"},
    "front": BASE
    | {"api", "blocking", "bootstrap", "cgroup", "keeper", "log", "notify", "oom", "pair"}
    | {"places", "service", "stacks", "standalone"},
    "log": set(),
    "stacks": set(),
    "orphans": set(),
    "launch": {"shim", "detach", "errors", "keeper", "launching", "mounts", "orphans", "pair"}
    | {"syscalls"},
    "bootstrap": {"_pb", "errors", "model"},
    "notify": set(),
    "door": {"_pb", "errors"},
    "detach": set(),
    "pair": {"detach"},
    "host": {"detach", "keeper", "orphans", "pair", "syscalls"},
    "launching": {"shim", "_pb", "bootstrap", "detach", "door", "errors", "pair", "service"},
    "launcher": {"launch", "launching"},
    "client": BASE | {"_pb", "api", "metadata"},
    "logs": {"errors", "stdio", "syscalls"},
    "oci": BASE,
    "cli": BASE
    | {"_pb", "client", "detach", "door", "host", "logs", "metadata", "oci", "pair", "places"}
    | {"snapshots"},
    "demo": BASE | {"client", "oci"},
}

# Of a part, only these modules may be used from that one.
NARROW: dict[tuple[str, str], set[str]] = {
    ("host", "keeper"): {"shim.keeper.records", "shim.keeper.start"},
    ("launching", "_pb"): {"shim._pb.denseshim.host.v1.host_pb2"},
    ("launching", "service"): {"shim.service.bundle"},
    ("metadata", "service"): {"shim.service.bundle"},
    ("client", "metadata"): {"shim.metadata.values"},
    ("cli", "metadata"): {"shim.metadata.values"},
    ("cli", "snapshots"): {"shim.snapshots.image"},
    ("cli", "_pb"): {"shim._pb.denseshim.host.v1.host_pb2"},
    ("client", "api"): {"shim.api.convert", "shim.api.codes"},
    ("runtime", "keeper"): {"shim.keeper.command"},
    ("launch", "keeper"): {"shim.keeper.records", "shim.keeper.start"},
}


def imported(source: str) -> Iterator[str]:
    """The modules of `shim` that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (_target(node.module or "", name.name) for name in node.names)


def _target(module: str, name: str) -> str:
    """`from shim import x` and `from shim.api import x` may mean a module x."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    is_module = (path / name).is_dir() or any(path.glob(f"{name}.*"))
    return f"{module}.{name}" if module.split(".")[0] == "shim" and is_module else module


def part_of(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 else "shim"


def violations(part: str, source: str) -> list[str]:
    """What a module of `part` imports and may not."""
    modules = [name for name in imported(source) if name.split(".")[0] == "shim"]
    return [
        module
        for module in modules
        if part_of(module) != part
        and (
            part_of(module) not in ALLOWED[part]
            or module not in NARROW.get((part, part_of(module)), {module})
        )
    ]


def modules() -> list[Path]:
    found = SOURCE.rglob("*.py")
    return sorted(path for path in found if "_pb" not in path.parts)


def _part(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "shim" if first == "__init__" else first


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    assert violations(_part(path), path.read_text()) == []


def test_the_table_has_every_part_and_no_other() -> None:
    assert {_part(path) for path in modules()} == set(ALLOWED)


def test_no_two_parts_need_each_other() -> None:
    """The table itself goes one way."""
    below: dict[str, set[str]] = {part: set(others) for part, others in ALLOWED.items()}
    while free := {part for part, others in below.items() if not others & set(below)}:
        below = {part: others for part, others in below.items() if part not in free}
    assert below == {}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("keeper", "from shim.service.host import Host"),
        ("keeper", "import shim.api.convert"),
        ("runtime", "from shim.service import host"),
        ("runtime", "def f():\n    from shim import service"),
        ("client", "from shim.api.server import make_server"),
        ("client", "from shim.api import server"),
        ("service", "from shim.api import convert"),
        ("cli", "from shim.service.shim import Shim"),
        ("model", "from shim.errors import ShimError"),
    ],
)
def test_a_violation_is_seen(part: str, source: str) -> None:
    assert len(violations(part, source)) == 1
