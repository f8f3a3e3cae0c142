"""deploy/Dockerfile: what it says, and the image that is made of it."""

from __future__ import annotations

import functools
import re

from tests.deploy.manifests import DEPLOY

DOCKERFILE = DEPLOY / "Dockerfile"


@functools.cache
def image_environment() -> dict[str, str]:
    """The settings that the image's last stage brings."""
    last = DOCKERFILE.read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    (line,) = re.findall(r"^ENV (.*)$", last, flags=re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())
