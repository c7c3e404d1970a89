"""Archives and image layouts as tests make them, and a simple model of what they become."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile

from hypothesis import strategies as st

TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}


def member(name, kind="file", content=b"", **facts):
    info = tarfile.TarInfo(name)
    info.type = TYPES[kind]
    info.mode = 0o755 if kind == "dir" else 0o644
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def archive(*members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def listing(root):
    """Every path with its type, and what is in it."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                what = ("symlink", os.readlink(path))
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    what = ("file", file.read())
            else:
                what = (stat.S_IFMT(mode), None)
            found[os.path.relpath(path, root)] = what
    return found


# A simple model of what an archive becomes: {path: what}; a directory is None.

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.just("file"), NAMES, st.binary(max_size=3)),
        st.tuples(st.just("dir"), NAMES, st.none()),
        st.tuples(st.just("link"), NAMES, NAMES),
        st.tuples(st.just("hide"), NAMES, st.none()),
        st.tuples(st.just("empty"), NAMES, st.none()),
    ),
    max_size=8,
)


class Refused(Exception):
    """An archive that cannot be unpacked."""


class Unclear(Exception):
    """A layer that overlay and a copy may show differently: no program makes such."""


def model_apply(below, entries):
    """What a layer on `below` shows. Raises Refused, Unclear."""
    shown = dict(below)
    own = {}
    hidden = [path for kind, path, _ in entries if kind == "hide"]
    for kind, path, _ in entries:  # only what is below is hidden
        if kind == "hide":
            forget(shown, path, itself=True)
        elif kind == "empty":
            if any(path == other or path.startswith(f"{other}/") for other in hidden):
                raise Unclear
            if shown.get(path, b"") is None:
                forget(shown, path, itself=False)
    for kind, path, what in entries:
        if kind not in ("hide", "empty"):
            model_add(shown, own, kind, path, what)
    return shown


def forget(shown, path, itself):
    for name in [n for n in shown if n.startswith(f"{path}/") or (itself and n == path)]:
        del shown[name]


def model_parents(shown, own, path):
    """The directories on the way have to be directories in this layer, and not only below."""
    parts = path.split("/") if path else []
    for depth in range(1, len(parts) + 1):
        name = "/".join(parts[:depth])
        if own.get(name, "none") is None:
            continue
        if name in own:
            raise Refused
        if shown.get(name) is not None:
            raise Unclear
        own[name] = shown[name] = None


def model_add(shown, own, kind, path, what):
    model_parents(shown, own, path.rpartition("/")[0])
    if kind == "link":
        if not isinstance(own.get(what), bytes) or what.startswith(f"{path}/"):
            raise Refused  # it is not there, or goes with the directory that makes way
        what = own[what]
    if kind == "dir" and own.get(path, b"") is None:
        return
    if not (kind == "dir" and path not in own and shown.get(path, b"") is None):
        forget(shown, path, itself=True)
    forget(own, path, itself=True)
    own[path] = shown[path] = what


def members_of(entries):
    for kind, path, what in entries:
        folder, _, name = path.rpartition("/")
        if kind == "hide":
            yield member(f"{folder}/.wh.{name}".lstrip("/"))
        elif kind == "empty":
            yield member(f"{path}/.wh..wh..opq")
        elif kind == "link":
            yield member(path, "link", linkname=what)
        else:
            yield member(path, kind, what or b"")


class LayoutMaker:
    """Writes an OCI image layout, honest unless it is changed afterwards."""

    def __init__(self, path):
        self.path = path
        self.manifests = []
        self.packed = []  # the descriptors of the layers
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data, media_type):
        """A descriptor of `data`, which is written."""
        name = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    def json(self, value, media_type):
        return self.blob(json.dumps(value).encode(), media_type)

    def image(self, layers, config=None, platform=None, name=None, diff_ids=None):
        """Add an image of these tars; its descriptor. diff_ids: what the config says they are."""
        platform = platform or {"os": "linux", "architecture": "amd64"}
        facts = {
            **platform,
            "config": config or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [
                    f"sha256:{hashlib.sha256(data).hexdigest()}" for data in diff_ids or layers
                ],
            },
        }
        packed = [
            self.blob(
                gzip.compress(data, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"
            )
            for data in layers
        ]
        self.packed += packed
        manifest = {
            "schemaVersion": 2,
            "config": self.json(facts, "application/vnd.oci.image.config.v1+json"),
            "layers": packed,
        }
        descriptor = self.json(manifest, "application/vnd.oci.image.manifest.v1+json")
        if name:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(descriptor)
        return descriptor

    def index(self, manifests):
        """A nested index; its descriptor."""
        value = {"schemaVersion": 2, "manifests": manifests}
        return self.json(value, "application/vnd.oci.image.index.v1+json")

    def write(self):
        """Write index.json; the layout's path."""
        value = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(value))
        return self.path
