"""Settings from the environment (prefix `PIPELINE_`): the only place that reads it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.model.errors import ConfigurationError


class Settings(BaseSettings):
    """`PIPELINE_BROKER=host:9092`, `PIPELINE_PREFIX=staging.` and so on. Times are in seconds.

    `registry`: URL of a Confluent-compatible schema registry; empty: ids are kept in the cluster itself.
    `buffer_*`, `spool_dir`: what publishing may cost an agent while the broker is away (see `BufferPolicy`).
    `ce_source`: the CloudEvents source (a URI) of published events; empty: no `ce_*` headers.
    `state_dir`: where tools keep what they can build again, such as the index of dead letters; empty: the user's own place for that.
    `scrub`: what is masked in events before they are published: fields tagged "pii", "secret" (both
    with a comma), and always what looks like a secret; "off": nothing.
    `blobs`: where large inputs and results of jobs lie: a folder (`file:///path`), or `s3://bucket/prefix` and the like by fsspec; empty:
    nowhere. Larger than `blob_inline_bytes` they go there, larger than `blob_bytes_max` they are refused.
    `permissions`: what jobs may do that run in this process, names with a comma between: "tickets:read", "tickets:*", or "*" for all.
    `alert_webhook`: URL that hears of dead letters; `alert_secret` signs what it is sent.
    `client`: further librdkafka properties as JSON, such as `{"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}`.
    """

    model_config = SettingsConfigDict(env_prefix="PIPELINE_", extra="ignore")

    broker: str = Field(default="127.0.0.1:9092", min_length=1)
    prefix: str = Field(
        default="", pattern=r"^[a-zA-Z0-9._-]*$", description="stands before topics, groups and subjects"
    )
    registry: str = ""
    registry_user_info: SecretStr = SecretStr("")
    registry_ca: str = ""
    username: str = ""
    password: SecretStr = SecretStr("")
    client: dict[str, str] = Field(default_factory=dict)
    group_protocol: Literal["classic", "consumer"] = "classic"
    session_timeout_s: float = Field(default=10.0, gt=0)
    max_poll_interval_s: float = Field(default=300.0, ge=1)
    instance_id: str = ""
    events_topic: str = "agent.run.events"
    buffer_mode: Literal["block", "drop_oldest", "spool"] = "block"
    buffer_records: int = Field(default=20_000, ge=2)
    buffer_timeout_s: float = Field(default=1.0, ge=0)
    spool_dir: str = ""
    state_dir: str = ""
    ce_source: str = ""
    scrub: str = Field(default="", pattern=r"^\s*(off|((pii|secret)(\s*,\s*(pii|secret))?)?)\s*$")
    blobs: str = ""
    blob_inline_bytes: int = Field(default=100_000, ge=0, le=400_000)
    blob_bytes_max: int = Field(default=100_000_000, ge=1)
    permissions: str = ""
    alert_webhook: SecretStr = SecretStr("")
    alert_secret: SecretStr = SecretStr("")
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    maven_mirror: str = ""

    @classmethod
    def load(cls) -> Settings:
        """From the environment; a wrong value is a `ConfigurationError` that names its variable."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            variable = "PIPELINE_" + "_".join(str(part) for part in first["loc"]).upper()
            raise ConfigurationError(
                f"{variable} is wrong: {first['msg'].lower()} (it is {first['input']!r})"
            ) from None

    def state_directory(self) -> Path:
        """`state_dir`, else what the platform gives a user for state."""
        if self.state_dir:
            return Path(self.state_dir).expanduser()
        home = Path.home()
        if sys.platform == "darwin":
            return home / "Library" / "Application Support" / "pipeline"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "pipeline"
        return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "pipeline"

    def client_settings(self) -> dict[str, str]:
        """librdkafka properties for security: `client`, with user name and password added."""
        found = dict(self.client)
        if self.username:
            found |= {"sasl.username": self.username, "sasl.password": self.password.get_secret_value()}
        return found


def editor() -> str:
    """The command that edits a file, as `VISUAL` or `EDITOR` says; empty when neither is set."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
