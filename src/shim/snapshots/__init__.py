"""Root file systems: committed trees that containers share, and each container's own changes.

`snapshotter` keeps them as directories, `imports` makes them of a directory, a tar or an OCI image
layout. What strangers' archives hold is written by `tree` only, which cannot leave its directory.
Nothing here mounts anything but the probe of overlay, in a mount namespace that ends with it.

Everything may block for as long as a disk likes: run it in a thread.
"""
