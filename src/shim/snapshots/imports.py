"""Making committed snapshots of a directory, a tar or an OCI image layout.

All of an import is recorded in one transaction at its end: what fails or dies before leaves nothing
but directories without a record.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shim import syscalls as sc
from shim.errors import AlreadyExists, InvalidArgument, NotFound
from shim.metadata.snapshots import check_name
from shim.metadata.values import Kind, Layer, Snapshot
from shim.snapshots import layers
from shim.snapshots.image import Defaults, defaults
from shim.snapshots.inflate import Exact, Source, inflated
from shim.snapshots.limits import Budget, Limits, Meter, Progress
from shim.snapshots.oci import Image, Layout, Summed, is_layout, parse_platform
from shim.snapshots.refusal import refusal
from shim.snapshots.snapshotter import Snapshotter
from shim.snapshots.tree import Tree
from shim.snapshots.unpack import copy_tree, remove_hidden, unpack, unpack_layer

_USERS_LIMIT: Final = 4 << 20


@dataclass(frozen=True)
class Wishes:
    """How an import is to be done.

    devices: device nodes may be in it. platform: OS/ARCHITECTURE, empty for this machine's.
    reference: the name of an image in a layout that has several.
    """

    devices: bool = True
    platform: str = ""
    reference: str = ""
    limits: Limits = field(default_factory=Limits)
    progress: Progress | None = None


@dataclass(frozen=True)
class Imported:
    """What has been made; `lost` extended attributes that the file system does not take."""

    snapshot: Snapshot
    defaults: Defaults
    lost: int


def import_path(
    snapshotter: Snapshotter, name: str, path: Path, wishes: Wishes | None = None
) -> Imported:
    """Make the committed snapshot `name` of what is at `path`.

    A directory is copied, unless it is an OCI image layout. A file is a tar, which may be
    compressed, and may hold an image layout.

    Raises AlreadyExists; InvalidArgument for the name, the path and what is in it;
    ResourceExhausted for a full disk; FailedPrecondition; what `progress` raises. Nothing is
    left then.
    """
    work = _Import(snapshotter, name, wishes or Wishes())
    try:
        with _opened(path) as file:
            facts = os.fstat(file)
            if stat.S_ISDIR(facts.st_mode):
                return work.layout(file) if is_layout(file) else work.directory(file)
            if stat.S_ISREG(facts.st_mode):
                return work.tar(_File(file, path), facts.st_size)
    except OSError as error:
        raise refusal(f"import {path}", error) from error
    raise InvalidArgument(f"{path} is neither a directory nor a file")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open it for the block, without waiting for anybody. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def import_tar(
    snapshotter: Snapshotter, name: str, source: Source, wishes: Wishes | None = None
) -> Imported:
    """The same for a tar that comes from somewhere else."""
    return _Import(snapshotter, name, wishes or Wishes()).tar(source, 0)


class _File:
    """A file as a source; borrows the descriptor."""

    def __init__(self, file: int, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        try:
            return os.read(self._file, size)
        except OSError as error:
            raise refusal(f"read {self._path}", error) from error


class _Metered:
    """Counts what is read of `source`."""

    def __init__(self, source: Source, meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._meter.add(len(data))
        return data


class _Unpacked:
    """Has all that is read of `source`, without its compression, counted as work.

    A header is read by itself: so an archive of empty files is work, too.
    """

    def __init__(self, source: Source, meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._meter.unpacked(len(data))
        return data


class _Import:
    """One import. Raises InvalidArgument for the name, AlreadyExists."""

    def __init__(self, snapshotter: Snapshotter, name: str, wishes: Wishes) -> None:
        check_name(name)
        self._snapshotter = snapshotter
        self._name = name
        self._wishes = wishes
        self._budget = Budget(wishes.limits)
        _check_new(snapshotter, name)

    def directory(self, source: int) -> Imported:
        """Copy the directory, which is borrowed."""
        with self._snapshotter.new() as made, ExitStack() as stack:
            number, root = self._begin(made, stack)
            tree = self._tree(root)
            meter = Meter(self._wishes.progress, "files", 0)
            # An import of / would otherwise copy what it has copied.
            copy_tree(source, tree, meter, but=os.stat(self._snapshotter.root))
            tree.finish()
            meter.tell()
            return self._record([Layer(self._name, number)], None, tree.lost)

    def tar(self, source: Source, total: int) -> Imported:
        """Unpack a tar, and what is in it if that is an image layout."""
        with self._snapshotter.new() as made, ExitStack() as stack:
            number, root = self._begin(made, stack)
            tree = self._tree(root)
            meter = Meter(self._wishes.progress, "tar", total)
            plain = _Unpacked(inflated(_Metered(source, meter)), meter)
            unpack(Exact(plain), tree)
            tree.finish()
            meter.tell()
            if not is_layout(root):
                return self._record([Layer(self._name, number)], None, tree.lost)
            imported = self.layout(root)
        self._snapshotter.discard([number])
        return imported

    def layout(self, directory: int) -> Imported:
        """Make a snapshot of each layer, and an empty one with the image's name on top of them.

        So the layers are shared with other images. Borrows the directory.
        """
        layout = Layout(directory)
        image = layout.image(parse_platform(self._wishes.platform), self._wishes.reference)
        with self._snapshotter.new() as made, ExitStack() as stack:
            if self._snapshotter.why_copies:
                return self._copied_layers(layout, image, made, stack)
            return self._stacked_layers(layout, image, made, stack)

    def _stacked_layers(
        self, layout: Layout, image: Image, made: list[int], stack: ExitStack
    ) -> Imported:
        records: list[Layer] = []
        lowers: list[int] = []  # the uppermost first
        lost = 0
        for position, chain_id in enumerate(image.chain_ids()):
            number, root = self._begin(made, stack)
            tree = self._tree(root, lowers)
            self._apply(layout, image, position, tree, (unpack_layer,))
            tree.finish()
            records.append(Layer(chain_id, number))
            lowers.insert(0, root)
            lost += tree.lost
        number, root = self._begin(made, stack)
        self._tree(root, lowers).finish()
        records.append(Layer(self._name, number))
        return self._record(records, _defaults(image, lowers), lost)

    def _copied_layers(
        self, layout: Layout, image: Image, made: list[int], stack: ExitStack
    ) -> Imported:
        number, root = self._begin(made, stack)
        tree = self._tree(root)
        for position in range(len(image.layers)):
            # A layer hides what is in those below it, never what it has itself.
            self._apply(layout, image, position, tree, (remove_hidden, unpack_layer))
        tree.finish()
        layer = Layer(self._name, number)
        return self._record([layer], _defaults(image, [root]), tree.lost)

    def _apply(
        self, layout: Layout, image: Image, position: int, tree: Tree, steps: Sequence[_Step]
    ) -> None:
        """Go through a layer once for each of the steps."""
        total = sum(layer.size for layer in image.layers) * len(steps)
        before = sum(layer.size for layer in image.layers[:position]) * len(steps)
        blob = image.layers[position]
        for number, step in enumerate(steps):
            what = f"layer {position + 1} of {len(image.layers)}"
            meter = Meter(self._wishes.progress, what, total, before + number * blob.size)
            with layout.open(blob, meter) as source:
                plain = Summed(_Unpacked(inflated(source), meter), image.diff_ids[position])
                step(Exact(plain), tree)
                plain.verify()
                source.verify()
            meter.tell()

    def _begin(self, made: list[int], stack: ExitStack) -> tuple[int, int]:
        """A new directory: its number, and its files open until the end of `stack`."""
        number = self._snapshotter.make_directory(made)
        (root,) = self._snapshotter.open_files([number], stack)
        return number, root

    def _tree(self, root: int, lowers: Sequence[int] = ()) -> Tree:
        return Tree(root, self._budget, lowers, self._wishes.devices)

    def _record(self, records: Sequence[Layer], found: Defaults | None, lost: int) -> Imported:
        self._snapshotter.flush()
        store = self._snapshotter.store
        unused = store.add_image(records, b"" if found is None else found.to_bytes())
        self._snapshotter.discard(unused)
        parent = records[-2].key if len(records) > 1 else ""
        snapshot = Snapshot(self._name, parent, Kind.COMMITTED, True, records[-1].directory)
        return Imported(snapshot, found or Defaults(), lost)


_Step = Callable[[Exact, Tree], None]


def _check_new(snapshotter: Snapshotter, name: str) -> None:
    """Raises AlreadyExists, before anything is read."""
    try:
        snapshotter.store.stat(name)
    except NotFound:
        return
    raise AlreadyExists(f"there is a snapshot {name!r} already; remove it, or take another name")


def _defaults(image: Image, stack: Sequence[int]) -> Defaults:
    passwd, group = (_text(stack, name) for name in ("passwd", "group"))
    return defaults(image.config, passwd, group)


def _text(stack: Sequence[int], name: str) -> str:
    """/etc/NAME as the layers show it, the uppermost first; "" if there is none.

    Raises what an OSError stands for.
    """
    try:
        shown = layers.find(stack, ("etc", name))
        if shown is None or not stat.S_ISREG(shown.facts.st_mode):
            return ""
        file = sc.open_inside(shown.layer, f"etc/{name}", os.O_RDONLY | os.O_NOFOLLOW)
        with open(file, "rb") as text:
            return os.fsdecode(text.read(_USERS_LIMIT))
    except OSError as error:
        raise refusal(f"read /etc/{name} of the image", error) from error
