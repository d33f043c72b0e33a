"""An HTTP endpoint that tells how a process of workers or beats is. See `docs/health.md`.

It is served by a thread of its own with an event loop of its own, since it must be able to say that the process's loop
does not turn. What it tells is asked of that loop when somebody asks; no job costs anything.
"""
