"""The services as gRPC speaks them."""
