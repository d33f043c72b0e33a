"""Enqueue with a database transaction: `contrib.django` and `contrib.sqlalchemy`.

A job is enqueued after the commit, and not at all when there is none. A process that dies
between the two has committed and not enqueued: that job is lost, and nobody is told. There is
no outbox yet. What must not be lost that way is also found by a schedule of yours that looks
for rows without their effect, and enqueues under the same job id.

A framework is imported when its function is first called, and by no other module of ours.
"""
