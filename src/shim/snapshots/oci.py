"""Reading an OCI image layout (opencontainers/image-spec 1.1: image-layout, image-index, manifest).

Nothing in it is believed before its digest and size have been compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shim import syscalls as sc
from shim.errors import InvalidArgument
from shim.snapshots.inflate import CHUNK, Source
from shim.snapshots.limits import Meter
from shim.snapshots.refusal import refusal

LAYERS_LIMIT: Final = 400

_JSON_LIMIT: Final = 4 << 20
_NESTED_LIMIT: Final = 4
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER: Final = re.compile(
    r"application/vnd\.oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?|"
    r"application/vnd\.docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?"
)
_REFERENCE: Final = "org.opencontainers.image.ref.name"
_FULL_NAME: Final = "io.containerd.image.name"
_ATTESTATION: Final = "vnd.docker.reference.type"

# What Go calls the machines of uname(2).
_MACHINES: Final = {
    "x86_64": "amd64",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "loongarch64": "loong64",
}


class Platform(NamedTuple):
    """What an image is made for."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


def parse_platform(text: str) -> Platform:
    """OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT; this machine's if empty.

    Raises InvalidArgument.
    """
    machine = platform.machine()
    parts = (text or f"linux/{_MACHINES.get(machine, machine)}").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidArgument(f"the platform {text!r} is not OS/ARCHITECTURE, such as linux/arm64")
    return _normal(Platform(*parts))


@dataclass(frozen=True)
class Blob:
    """A file of the layout, by its digest and size."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Image:
    """Layers from the bottom to the top, the digests of each without its compression."""

    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]
    config: Mapping[str, Any]

    def chain_ids(self) -> list[str]:
        """A name for each layer on what is below it (image-spec: config.md, "Layer ChainID")."""
        names: list[str] = []
        for diff in self.diff_ids:
            below = f"{names[-1]} {diff}".encode() if names else b""
            names.append(f"sha256:{hashlib.sha256(below).hexdigest()}" if below else diff)
        return names


@dataclass(frozen=True)
class _Candidate:
    manifest: Blob
    platform: Platform | None
    names: tuple[str, ...]


class Layout:
    """The layout in `directory`, which is borrowed.

    Everything raises InvalidArgument for what is no sound layout.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def image(self, wanted: Platform, reference: str) -> Image:
        """The image for that platform, of that name; without one it has to be the only one."""
        marker = _mapping(_json(self._read("oci-layout", None), "oci-layout"), "oci-layout")
        if not str(marker.get("imageLayoutVersion", "")).startswith("1."):
            raise InvalidArgument("oci-layout is of no version that is known here (1.0.0)")
        index = _json(self._read("index.json", None), "index.json")
        found = list(self._candidates(index, "index.json", reference, 0))
        return self._choose(found, wanted, reference)

    @contextmanager
    def open(self, blob: Blob, meter: Meter) -> Iterator[Verified]:
        """The content of a blob, which has to be read to its end and verified."""
        with self._opened(_path(blob.digest)) as file:
            yield Verified(file, blob, meter)

    def _choose(self, found: Sequence[_Candidate], wanted: Platform, reference: str) -> Image:
        images: dict[str, tuple[int, Image, tuple[str, ...]]] = {}
        seen: list[str] = []
        for candidate in found:
            # The blobs for other platforms need not be there.
            rank = _rank(candidate.platform, wanted) if candidate.platform else 0
            made_for = candidate.platform
            if rank is not None:
                image, made_for = self._load(candidate)
                rank = _rank(made_for, wanted)
            seen.append(str(made_for))
            if rank is not None:
                images.setdefault(candidate.manifest.digest, (rank, image, candidate.names))
        if not images:
            named = f" called {reference!r}" if reference else ""
            there = f"; there is {', '.join(sorted(set(seen)))}" if seen else ""
            raise InvalidArgument(f"the layout has no image{named} for {wanted}{there}")
        best = min(rank for rank, _, _ in images.values())
        fitting = [(image, names) for rank, image, names in images.values() if rank == best]
        if len(fitting) > 1:
            known = sorted({name for _, names in fitting for name in names})
            raise InvalidArgument(
                f"the layout has {len(fitting)} images for {wanted}; say which one: "
                f"{', '.join(known) or 'they have no names'}"
            )
        return fitting[0][0]

    def _candidates(
        self, index: object, what: str, reference: str, depth: int
    ) -> Iterator[_Candidate]:
        """All manifests of an index and of those in it."""
        if depth > _NESTED_LIMIT:
            raise InvalidArgument(f"{what} is nested more than {_NESTED_LIMIT} deep")
        for row in _items(_mapping(index, what), "manifests", what):
            descriptor = _mapping(row, what)
            names = _names(descriptor)
            if _ATTESTATION in _annotations(descriptor) or (reference and reference not in names):
                continue
            blob = _blob(descriptor, what)
            if blob.media_type in _INDEXES:
                nested = self._read_blob(blob)
                for candidate in self._candidates(nested, blob.digest, "", depth + 1):
                    yield _Candidate(candidate.manifest, candidate.platform, names)
            elif blob.media_type in _MANIFESTS:
                yield _Candidate(blob, _platform(descriptor.get("platform")), names)

    def _load(self, candidate: _Candidate) -> tuple[Image, Platform]:
        """An image and what it is made for, by its config where the index does not say it."""
        what = candidate.manifest.digest
        manifest = _mapping(self._read_blob(candidate.manifest), what)
        config_blob = _blob(_mapping(manifest.get("config"), what), what)
        if config_blob.media_type not in _CONFIGS:
            raise InvalidArgument(f"{what} is no image, but {config_blob.media_type[:100]!r}")
        layers = tuple(_blob(_mapping(row, what), what) for row in _items(manifest, "layers", what))
        config = _mapping(self._read_blob(config_blob), config_blob.digest)
        image = Image(layers, _diff_ids(config, config_blob.digest), config)
        _check_layers(image, what)
        return image, candidate.platform or _platform(config) or Platform("linux", "")

    def _read_blob(self, blob: Blob) -> object:
        data = self._read(_path(blob.digest), blob)
        return _json(data, blob.digest)

    def _read(self, path: str, blob: Blob | None) -> bytes:
        if blob is not None and blob.size > _JSON_LIMIT:
            raise InvalidArgument(f"{path} is larger than {_JSON_LIMIT} bytes")
        with self._opened(path) as file:
            if blob is None:
                data = os.read(file, _JSON_LIMIT + 1)
                if len(data) > _JSON_LIMIT:
                    raise InvalidArgument(f"{path} is larger than {_JSON_LIMIT} bytes")
                return data
            source = Verified(file, blob, Meter(None, "", 0))
            parts = []
            while part := source.read(CHUNK):
                parts.append(part)
            source.verify()
            return b"".join(parts)

    def _find(self, path: str) -> int:
        try:
            return sc.open_inside(self._directory, path, os.O_PATH)
        except FileNotFoundError as error:
            if os.path.islink(f"/proc/self/fd/{self._directory}/{path}"):
                raise InvalidArgument(
                    f"{path} is a symbolic link to nothing in the layout, and what is outside is "
                    "not read: put the file itself there"
                ) from error
            raise

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        """A regular file of the layout, borrowed for the block."""
        with _told(path):
            found = self._find(path)
            try:
                if not stat.S_ISREG(os.fstat(found).st_mode):
                    raise InvalidArgument(f"{path} is no regular file")
                # By its descriptor: a FIFO or device in its place is never opened.
                file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(found)
        try:
            yield file
        finally:
            os.close(file)


class Verified:
    """What is read of a blob; borrows the descriptor."""

    def __init__(self, file: int, blob: Blob, meter: Meter) -> None:
        self._file = file
        self._blob = blob
        self._meter = meter
        self._left = blob.size
        self._sum = hashlib.new(blob.digest.partition(":")[0])
        with _told(blob.digest):
            size = os.fstat(file).st_size
        if size != blob.size:
            raise InvalidArgument(f"{blob.digest} has {size} bytes instead of {blob.size}")

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes. Raises what an OSError stands for."""
        with _told(self._blob.digest):
            data = os.read(self._file, min(size, self._left))
        self._left -= len(data)
        self._sum.update(data)
        self._meter.add(len(data))
        return data

    def verify(self) -> None:
        """Read what is left. Raises InvalidArgument unless it was what the digest says."""
        while self.read(CHUNK):
            pass
        if self._left or self._sum.hexdigest() != self._blob.digest.partition(":")[2]:
            raise InvalidArgument(f"{self._blob.digest} has another content: it is damaged")


class Summed:
    """Computes the digest of what is read of `source`."""

    def __init__(self, source: Source, digest: str) -> None:
        self._source = source
        self._digest = digest
        self._sum = hashlib.new(digest.partition(":")[0])

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._sum.update(data)
        return data

    def verify(self) -> None:
        """Raises InvalidArgument unless all of it is what the digest says."""
        while self.read(CHUNK):
            pass
        if self._sum.hexdigest() != self._digest.partition(":")[2]:
            raise InvalidArgument(f"the layer {self._digest} has another content than its config "
                                  "says")  # fmt: skip


def is_layout(directory: int) -> bool:
    """Whether the directory, which is borrowed, holds an image layout. Raises OSError."""
    names = os.listdir(directory)
    return "oci-layout" in names and "index.json" in names


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(f"read {path} of the image layout", error) from error


def _path(digest: str) -> str:
    kind, _, name = digest.partition(":")
    return f"blobs/{kind}/{name}"


def _json(data: bytes, what: str) -> object:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} of the image layout is not JSON: {error}") from error
    return value


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} of the image layout is not as it should be")
    return value


def _items(value: Mapping[str, Any], key: str, what: str) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list) or len(items) > LAYERS_LIMIT:
        raise InvalidArgument(f"{what} has no list {key!r} of at most {LAYERS_LIMIT}")
    return items


def _blob(descriptor: Mapping[str, Any], what: str) -> Blob:
    digest, size, media_type = (descriptor.get(key) for key in ("digest", "size", "mediaType"))
    _check_digest(digest, what)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidArgument(f"{what} has an entry without a size")
    if not isinstance(media_type, str):
        raise InvalidArgument(f"{what} has an entry without a media type")
    return Blob(str(digest), size, media_type)


def _check_digest(digest: object, what: str) -> None:
    # It becomes a path.
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{what} has the digest {str(digest)[:100]!r}, which is no sha256 "
                              "or sha512")  # fmt: skip


def _annotations(descriptor: Mapping[str, Any]) -> Mapping[str, Any]:
    found = descriptor.get("annotations")
    return found if isinstance(found, dict) else {}


def _names(descriptor: Mapping[str, Any]) -> tuple[str, ...]:
    annotations = _annotations(descriptor)
    return tuple(str(annotations[key]) for key in (_REFERENCE, _FULL_NAME) if key in annotations)


def _platform(value: object) -> Platform | None:
    if not isinstance(value, dict) or not value.get("architecture"):
        return None
    parts = (value.get("os") or "linux", value["architecture"], value.get("variant") or "")
    return _normal(Platform(*(str(part)[:100] for part in parts)))


def _normal(found: Platform) -> Platform:
    """One name for what is the same."""
    default = {"arm64": "v8", "amd64": "v1", "arm": ""}.get(found.architecture, "")
    return found._replace(variant="") if found.variant == default else found


def _rank(found: Platform, wanted: Platform) -> int | None:
    """How well an image fits, 0 being best; None if it does not."""
    if found.os != wanted.os or found.architecture not in ("", wanted.architecture):
        return None
    if found.variant == wanted.variant:
        return 0
    if not found.variant:
        return 1
    if found.architecture == "arm" and wanted.variant > found.variant:
        return 1 + int.from_bytes(wanted.variant.encode()) - int.from_bytes(found.variant.encode())
    return None


def _diff_ids(config: Mapping[str, Any], what: str) -> tuple[str, ...]:
    digests = _items(_mapping(config.get("rootfs"), what), "diff_ids", what)
    for digest in digests:
        _check_digest(digest, what)
    return tuple(digests)


def _check_layers(image: Image, what: str) -> None:
    if len(image.layers) != len(image.diff_ids) or not image.layers:
        raise InvalidArgument(
            f"{what} has {len(image.layers)} layers, and its config {len(image.diff_ids)}"
        )
    for layer in image.layers:
        if not _LAYER.fullmatch(layer.media_type):
            raise InvalidArgument(f"{what} has a layer of the unknown type {layer.media_type!r}")
