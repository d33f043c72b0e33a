"""The clock that moves only when told is the package's own; tests find it here."""

from amqpjobs.testing.clock import TURNS, FakeClock, settle

__all__ = ["TURNS", "FakeClock", "settle"]
