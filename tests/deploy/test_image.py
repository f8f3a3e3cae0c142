"""The image: small, and made to run without a right to anything."""

from __future__ import annotations

import pytest

from tests.deploy import image

pytestmark = pytest.mark.timeout(900)

IMAGE_MIB = 120
"""What the image may take beyond its base."""


def test_the_image_is_small_and_nothing_in_it_may_be_written_to(built: str) -> None:
    look = (
        "id -u; test -z \"$(find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/tmp*' "
        "-not -path '/var/tmp*' -not -path '/run/*' -not -path '/dev/*' -not -path '/var/lib/jobstream*' "
        "-not -path '/var/lock*' 2>/dev/null | tee /dev/stderr)\"; test ! -e /wheels; test ! -e ~root/.cache"
    )
    assert image.podman("run", "--rm", "--network", "none", "--entrypoint", "sh", built, "-ec", look) == "10001"
    size = image.size(built)
    print(f"measured: the image is {size / 2**20:.0f} MiB larger than its base")
    assert size < IMAGE_MIB * 2**20
