"""A service that reads feeds (RSS, Atom) every minute, and delivers what is new.

    FEEDS_URLS=https://example.com/feed.xml amqpjobs run services.feeds --beat
    amqpjobs send services.feeds feeds.fetch feed=https://example.com/feed.xml

Each feed is a job of its own, so that a slow or broken one holds up no other.
"""
