"""A service that sends mail.

    amqpjobs run services.email
    amqpjobs send services.email email.send to=ann@example.com subject=Hello body='How are you?'

Whoever enqueues imports `services.email.jobs` alone, and needs none of the worker's libraries.
"""
