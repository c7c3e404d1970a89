"""Containers without containerd: metadata, snapshots and the tasks that are made of them.

The front loads this only once somebody asks for it, but for `events`, which tasks need at once.
gRPC is translated in `shim.api`.
"""
