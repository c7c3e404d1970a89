"""denseshim: a shim for containerd that serves every container of a host."""

__version__ = "0.1.0"
