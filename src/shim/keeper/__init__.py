"""The front's side of the channel to the keeper: records, and a client that speaks them."""
