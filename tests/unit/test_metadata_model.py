"""The store against a model of it that is plain enough to be read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shim.errors import AlreadyExists, FailedPrecondition, NotFound, ShimError
from shim.metadata.store import Store
from shim.metadata.values import Container, Kind, Layer, Orphans, Snapshot

KEYS = st.sampled_from("abcdef")
NUMBERS = st.integers(0, 11)  # of one that is there; see `_choose`
# Inner layers are often another image's.
INNER = st.sampled_from([[], ["a"], ["i"], ["i", "j"], ["i", "j", "k"], ["j", "i"], ["a", "i"]])
IDS = st.sampled_from(["one", "two", "three"])
LABELS = st.dictionaries(st.sampled_from(["x", "y", "z.z"]), st.sampled_from(["", "1", "2"]))
PATHS = st.sampled_from(["labels", "labels.x", "labels.z.z", "image", "rootfs"])


@dataclass
class Node:
    """A snapshot of the model."""

    parent: Node | None
    directory: int
    committed: bool = False
    readonly: bool = False
    held: bool = True
    config: bytes = b""


class Model:
    """What the store should be: names and objects, and who refers to whom."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.containers: dict[str, Container] = {}

    def key_of(self, node: Node) -> str:
        (key,) = (key for key, other in self.nodes.items() if other is node)
        return key

    def users(self, key: str) -> int:
        children = sum(node.parent is self.nodes[key] for node in self.nodes.values())
        return children + sum(container.rootfs == key for container in self.containers.values())

    def need(self, key: str) -> Node:
        if key not in self.nodes:
            raise NotFound
        return self.nodes[key]

    def need_new(self, key: str) -> None:
        if key in self.nodes:
            raise AlreadyExists

    def prepare(self, key: str, parent: str, readonly: bool, directory: int) -> None:
        self.need_new(key)
        above = self.need(parent) if parent else None
        if above is not None and not above.committed:
            raise FailedPrecondition
        self.nodes[key] = Node(above, directory, readonly=readonly)

    def commit(self, name: str, key: str) -> None:
        node = self.need(key)
        if node.readonly or node.committed or self.users(key):
            raise FailedPrecondition
        self.need_new(name)
        del self.nodes[key]
        self.nodes[name] = replace(node, committed=True, readonly=True)

    def add_image(self, layers: list[Layer], config: bytes) -> tuple[int, ...]:
        nodes, above, unused = dict(self.nodes), None, []
        for layer in layers:
            found = nodes.get(layer.key)
            is_top = layer is layers[-1]
            if found and found.committed and found.parent is above and not is_top:
                unused.append(layer.directory)
            elif found:
                raise AlreadyExists
            else:
                found = Node(above, layer.directory, True, True, held=is_top)
                nodes[layer.key] = found
            above = found
        nodes[layers[-1].key].config = config
        self.nodes = nodes
        return tuple(unused)

    def remove(self, key: str) -> tuple[int, ...]:
        node = self.need(key)
        if self.users(key):
            raise FailedPrecondition
        return self.drop(node)

    def drop(self, node: Node | None) -> tuple[int, ...]:
        freed = []
        while node is not None:
            freed.append(node.directory)
            del self.nodes[self.key_of(node)]
            node = node.parent
            if node is not None and (node.held or self.users(self.key_of(node))):
                break
        return tuple(freed)

    def create(self, container: Container) -> None:
        if container.rootfs:
            self.need(container.rootfs)
        if container.id in self.containers:
            raise AlreadyExists
        self.containers[container.id] = container

    def update(self, container: Container, mask: list[str]) -> None:
        if container.id not in self.containers:
            raise NotFound
        present = self.containers[container.id]
        labels = dict(present.labels)
        for path in mask:
            key = path.removeprefix("labels.")
            labels.pop(key, None)
            if key in container.labels and key != path:
                labels[key] = container.labels[key]
        merged = Container(
            container.id,
            container.labels if "labels" in mask or not mask else labels,
            container.image if "image" in mask or not mask else present.image,
            rootfs=container.rootfs if "rootfs" in mask or not mask else present.rootfs,
        )
        if merged.rootfs:
            self.need(merged.rootfs)
        self.containers[container.id] = merged
        if present.rootfs and not self.users(present.rootfs):
            self.nodes[present.rootfs].held = True

    def delete(self, id: str, busy: bool) -> tuple[int, ...]:
        if id not in self.containers:
            raise NotFound
        if busy:
            raise FailedPrecondition
        root = self.containers.pop(id).rootfs
        if not root or self.users(root) or (self.nodes[root].committed and self.nodes[root].held):
            return ()
        return self.drop(self.nodes[root])

    def snapshots(self) -> list[Snapshot]:
        return [
            Snapshot(
                key,
                self.key_of(node.parent) if node.parent else "",
                Kind.COMMITTED if node.committed else Kind.ACTIVE,
                node.readonly,
                node.directory,
            )
            for key, node in sorted(self.nodes.items(), key=lambda item: item[1].directory)
        ]


def line(node: Node | None) -> list[Node]:
    return [] if node is None else [node, *line(node.parent)]


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class of the error that it answers with."""
    try:
        return call()
    except ShimError as error:
        return type(error)


def _choose(present: list[str], number: int) -> str:
    """One of those that are there, now and then one that is not."""
    return present[number % len(present)] if present and number else "none"


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory: the model knows no disk.
        self.place = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="denseshim-")
        self.path = Path(self.place.name) / "metadata.db"
        self.store = Store.open(self.path)
        self.model = Model()

    def teardown(self) -> None:
        self.store.close()
        self.place.cleanup()

    def same(self, actual: Callable[[], Any], expected: Callable[[], Any]) -> None:
        """The same result, or the same error. A value that the model does not give is not looked
        at: the invariants look at all of them."""
        found, wanted = outcome(actual), outcome(expected)
        if wanted is not None or isinstance(found, type):
            assert found == wanted

    def snapshot(self, number: int) -> str:
        return _choose(sorted(self.model.nodes), number)

    def root(self, number: int) -> str:
        return "" if number % 4 == 1 else self.snapshot(number)

    @rule(key=KEYS, parent=NUMBERS, readonly=st.booleans())
    def prepare(self, key: str, parent: int, readonly: bool) -> None:
        above, number = self.root(parent), self.store.allocate()
        self.same(
            lambda: self.store.prepare(key, above, readonly, number),
            lambda: self.model.prepare(key, above, readonly, number),
        )

    @rule(name=KEYS, number=NUMBERS)
    def commit(self, name: str, number: int) -> None:
        # Most often of one that may be.
        active = [key for key, node in self.model.nodes.items() if not node.readonly]
        key = _choose(sorted(active), number) if number % 4 else self.snapshot(number)
        self.same(lambda: self.store.commit(name, key), lambda: self.model.commit(name, key))

    @rule(inner=INNER, top=KEYS, config=st.sampled_from([b"", b"1", b"2"]))
    def add_image(self, inner: list[str], top: str, config: bytes) -> None:
        layers = [Layer(key, self.store.allocate()) for key in [*inner, top]]
        self.same(
            lambda: self.store.add_image(layers, config),
            lambda: self.model.add_image(layers, config),
        )

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        key = self.snapshot(number)
        self.same(lambda: self.store.remove(key), lambda: self.model.remove(key))

    @rule(id=IDS, labels=LABELS, root=NUMBERS)
    def create(self, id: str, labels: dict[str, str], root: int) -> None:
        container = Container(id, labels, rootfs=self.root(root))
        self.same(
            lambda: self.store.create_container(container),
            lambda: self.model.create(container),
        )

    @precondition(lambda self: self.model.containers)
    @rule(number=NUMBERS, labels=LABELS, root=NUMBERS, mask=st.lists(PATHS, max_size=3))
    def update(self, number: int, labels: dict[str, str], root: int, mask: list[str]) -> None:
        id = _choose(sorted(self.model.containers), number)
        container = Container(id, labels, f"image-{root}", rootfs=self.root(root))
        self.same(
            lambda: self.store.update_container(container, mask),
            lambda: self.model.update(container, mask),
        )

    @precondition(lambda self: self.model.containers)
    @rule(number=NUMBERS, busy=st.booleans())
    def delete(self, number: int, busy: bool) -> None:
        id = _choose(sorted(self.model.containers), number)
        self.same(
            lambda: self.store.delete_container(id, lambda _: busy),
            lambda: self.model.delete(id, busy),
        )

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.path)
        assert self.store.check() == []
        present = {node.directory for node in self.model.nodes.values()}
        assert self.store.free_orphans(present) == Orphans((), (), ())

    @invariant()
    def snapshots_are_the_same(self) -> None:
        assert self.store.list_snapshots() == self.model.snapshots()
        for key, node in self.model.nodes.items():
            ancestors = line(node)
            assert self.store.chain(key) == tuple(each.directory for each in ancestors)
            configs = [each.config for each in ancestors if each.config]
            assert self.store.image_config(key) == (configs[0] if configs else b"")

    @invariant()
    def containers_are_the_same(self) -> None:
        found = self.store.list_containers()
        assert [replace(each, created_at=0, updated_at=0) for each in found] == [
            self.model.containers[id] for id in sorted(self.model.containers)
        ]

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        for key, node in self.model.nodes.items():
            assert node.held or self.model.users(key)


Comparison.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, derandomize=True
)


class TestStore(Comparison.TestCase):
    """Each example is a history of calls."""
