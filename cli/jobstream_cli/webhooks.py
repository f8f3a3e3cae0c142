"""`jobstream webhooks`: the secret by which receivers verify what goes to a `callback_url`."""

from __future__ import annotations

import click
from redis.asyncio import Redis

from jobstream.webhooks.settings import WebhookSettings
from jobstream.webhooks.signing import callback_secrets, secret_of
from jobstream_cli.exits import Exit
from jobstream_cli.keys import on_redis


async def secret(tenant: str | None) -> Exit:
    """Print the secret, or both while it is rotated, the newest first. Raises ConfigurationError for a wrong one."""
    given = WebhookSettings().webhook_secrets
    if given:
        for text in given:
            click.echo(secret_of(text, tenant))
        return Exit.OK

    async def kept(client: Redis) -> Exit:
        for text in await callback_secrets(client, (), tenant):
            click.echo(text)
        return Exit.OK

    return await on_redis(kept)
