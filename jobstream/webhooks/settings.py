"""What API and workers must know alike of webhooks."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.egress import EgressPolicy
from jobstream.webhooks.signing import secret_bytes


class WebhookSettings(BaseSettings):
    """Where webhooks may go, and the service's own secret."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    webhook_allow: str = Field(
        "",
        description="Networks, addresses and host names that webhooks may reach although they are private, separated "
        "by commas: 10.0.0.0/8, hooks.example.org. The same for API and workers.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs what goes to a `callback_url`: `whsec_` and base64; two, separated by a comma, while it is "
        "rotated. The same for API and workers. Empty: one that is made once and kept in Redis.",
    )

    @field_validator("webhook_allow")
    @classmethod
    def _allow(cls, value: str) -> str:
        EgressPolicy.parse(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        for text in value.get_secret_value().split(",") if value else ():
            secret_bytes(text.strip())
        return value

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """JOBSTREAM_WEBHOOK_SECRET as a tuple."""
        text = self.webhook_secret.get_secret_value() if self.webhook_secret else ""
        return tuple(filter(None, map(str.strip, text.split(","))))
