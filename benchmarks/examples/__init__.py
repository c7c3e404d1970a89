"""Examples of how others may use the client and the load generators."""
