"""A busybox root file system, and an image of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Final

from shim.oci.busybox import make_rootfs

# The image's name, as ctr and docker know it.
IMAGE: Final = "docker.io/denseshim/busybox:latest"


class Rootfs:
    """A directory that containers have as their root, and an archive with the same content."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rootfs"
        self.image = folder / "image.tar"
        make_rootfs(self.path)
        self.layer = folder / "layer.tar"
        self._archive(self.layer)

    def _archive(self, layer: Path) -> None:
        """Write the image as `docker save` would: a manifest, a configuration, one layer."""
        with tarfile.open(layer, "w") as tar:
            tar.add(self.path, ".")
        digest = hashlib.sha256(layer.read_bytes()).hexdigest()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        with tarfile.open(self.image, "w") as tar:
            tar.add(layer, "layer.tar")
            for name, content in (("config.json", config), ("manifest.json", manifest)):
                data = json.dumps(content).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
