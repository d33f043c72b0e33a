"""A web service that enqueues: `POST /mails` hands a mail to `services.email`.

uvicorn services.api.app:api
curl localhost:8000/mails --json '{"to": "ann@example.com", "subject": "Hello", "body": "How are you?"}'
"""
