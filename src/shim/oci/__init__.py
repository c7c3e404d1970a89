"""Bundles for those who have none: a default spec, and a root file system of busybox."""
