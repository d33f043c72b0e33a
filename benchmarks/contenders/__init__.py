"""The frameworks that are compared, each as its own documentation runs it, with equal durability.

Each module has one durable queue, and in it persistent messages that are confirmed when they are enqueued and acked
when their job has run. All take a number of jobs a worker holds at once, and as many it has prefetched, from whoever
measures. Where the broker is and what the queue is called says the environment, since some are started by their own
commands: `place`.
"""
