"""A Hub on loopback, and a cache of its own for every test."""

from tests.helpers.servers import home, hub_server  # noqa: F401  fixtures
