"""`jobstream webhooks`: the secret by which receivers verify what goes to a `callback_url`."""

from __future__ import annotations

import click
from redis.asyncio import Redis

from jobstream.webhooks.settings import WebhookSettings
from jobstream.webhooks.signing import callback_secrets, rotate_callback_secret
from jobstream_cli.exits import Exit
from jobstream_cli.keys import on_redis


async def secret(tenant: str | None) -> Exit:
    """Print the secret, or both while it is rotated, the newest first. Raises ConfigurationError for a wrong one."""
    given = WebhookSettings().webhook_secrets

    async def show(client: Redis) -> Exit:
        for text in await callback_secrets(client, given, tenant):
            click.echo(text)
        return Exit.OK

    return await on_redis(show)


async def rotate(tenant: str | None, *, overlap: float) -> Exit:
    """Another secret; print it, and the old one while both sign."""

    async def change(client: Redis) -> Exit:
        await rotate_callback_secret(client, tenant, overlap=overlap)
        return Exit.OK

    await on_redis(change)
    return await secret(tenant)
