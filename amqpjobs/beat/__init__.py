"""When jobs are due, and who enqueues them then."""
