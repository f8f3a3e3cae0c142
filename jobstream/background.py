"""Durable BackgroundTasks for FastAPI apps: the one door from here to the API's code, which knows FastAPI."""

from jobstream_api.background import (
    DURABLE,
    BackgroundMiddleware,
    BackgroundTasks,
    DurableTasks,
    NotHandedOver,
    background,
    inline,
    use,
)

__all__ = [
    "DURABLE",
    "BackgroundMiddleware",
    "BackgroundTasks",
    "DurableTasks",
    "NotHandedOver",
    "background",
    "inline",
    "use",
]
