"""Containers and what may be done to them: the state machine, free of gRPC."""
