"""What is known of containers and snapshots while nothing of them runs: a store in SQLite.

It knows no gRPC, no runtime and no mounts.
"""
