"""The border to the broker: the only rooms that know the client library."""
