"""A service that reports each working day what was sold, and cleans up after itself.

amqpjobs run services.reports --beat
amqpjobs send services.reports reports.sale item=tea cents=450 at=2026-01-05T10:00:00Z
amqpjobs send services.reports reports.daily day=2026-01-06
"""
