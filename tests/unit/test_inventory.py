"""Another version looks at the records, while the front that serves goes on with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shim.model import Launcher, RuntimeOptions
from shim.service.inventory import check_records
from shim.service.record import ContainerRecord, Facts
from shim.store import MISSHAPEN

FACTS = Facts(
    id="box",
    bundle="/b",
    options=RuntimeOptions(),
    launcher=Launcher(),
    address="/run/containerd/containerd.sock",
    namespace="default",
    group=1,
)


@pytest.fixture
def record(tmp_path: Path) -> ContainerRecord:
    (tmp_path / "tasks").mkdir(mode=0o700)
    made = ContainerRecord(tmp_path / "tasks" / "box")
    made.save(FACTS)
    return made


def test_what_has_another_shape_is_told(record: ContainerRecord, tmp_path: Path) -> None:
    state = {"facts": FACTS.to_state() | {"of_the_future": 1}, "init": None}
    (record.directory / "container.json").write_text('{"version": 2, "state": {}}')
    with pytest.raises(MISSHAPEN):
        check_records(tmp_path)
    record._store.write("container", state)
    with pytest.raises(MISSHAPEN):
        check_records(tmp_path)


@pytest.mark.parametrize("step", ["__init__", "load", "load_execs"])
def test_what_is_removed_meanwhile_is_not_missed(
    record: ContainerRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (record.directory / "container.json").unlink()
    then = getattr(ContainerRecord, step)

    def late(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(record.directory)
        return then(*arguments, **options)

    monkeypatch.setattr(ContainerRecord, step, late)
    check_records(tmp_path)
    assert list((tmp_path / "tasks").iterdir()) == []
