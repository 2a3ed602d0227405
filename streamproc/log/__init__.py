"""The log: one Redis stream per partition, its scripts, and the loop that consumes it."""

from streamproc.absent import absent

with absent("opentelemetry.sdk.metrics"):  # redis-py's own metrics: ours are of the log (docs/telemetry.md)
    import redis.asyncio  # noqa: F401  # before all modules here, which then find it imported
