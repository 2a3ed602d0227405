"""A Valkey that does not wait for its disk, since these tests are about workers and not about power cuts."""

from collections.abc import Iterator

import pytest
from redis import Redis


@pytest.fixture(scope="module")
def unsynced(valkey: str) -> Iterator[str]:
    """URL of the session's Valkey. It does not sync until the end of the module."""
    with Redis.from_url(valkey) as client:
        client.config_set("appendfsync", "no")
        try:
            yield valkey
        finally:
            client.config_set("appendfsync", "always")
