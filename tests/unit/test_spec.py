"""The default spec, held against what `runc spec` writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shim.model import User
from shim.oci.spec import process, spec

needs_runc = pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundle")
    subprocess.run(["runc", "spec", "--bundle", folder], check=True)
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


def masked(value: dict[str, Any]) -> dict[str, set[str]]:
    return {key: set(value["linux"][key]) for key in ("maskedPaths", "readonlyPaths")}


@needs_runc
def test_isolation_is_that_of_runc(example: dict[str, Any]) -> None:
    ours = spec("box", ["sh"])
    assert masked(ours) == masked(example)
    assert ours["linux"]["resources"] == example["linux"]["resources"]
    kinds = {row["type"] for row in ours["linux"]["namespaces"]}
    assert kinds == {"pid", "network", "ipc", "uts", "mount"}


@needs_runc
def test_mounts_are_those_of_runc_but_the_cgroups(example: dict[str, Any]) -> None:
    theirs = [row for row in example["mounts"] if row["type"] != "cgroup"]
    assert spec("box", ["sh"])["mounts"] == theirs


@needs_runc
def test_process_is_that_of_runc(example: dict[str, Any]) -> None:
    theirs = example["process"]
    theirs["user"]["additionalGids"] = []
    assert process(["sh"], terminal=True) == theirs


def test_arguments_go_where_they_belong() -> None:
    value = spec("box", ["a", "b"], rootfs="/r", hostname="h", env={"X": "1"}, cwd="/w")
    assert value["process"]["args"] == ["a", "b"]
    assert value["process"]["env"][-1] == "X=1"
    assert value["process"]["cwd"] == "/w"
    assert value["root"] == {"path": "/r", "readonly": False}
    assert value["hostname"] == "h"
    assert value["linux"]["cgroupsPath"] == "/denseshim-box"


def test_env_overrides_the_default_path() -> None:
    assert process(["sh"], env={"PATH": "/x"})["env"] == ["PATH=/x"]


def test_user() -> None:
    user = process(["sh"], user=User(5, 6, (7,)))["user"]
    assert user == {"uid": 5, "gid": 6, "additionalGids": [7]}


def test_a_spec_is_json(tmp_path: Path) -> None:
    value = spec("box", ["sh"])
    assert json.loads(json.dumps(value)) == value


def test_specs_share_nothing() -> None:
    spec("box", ["sh"])["linux"]["maskedPaths"].clear()
    assert spec("box", ["sh"])["linux"]["maskedPaths"]
