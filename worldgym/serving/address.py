"""Addresses of servers, and the token that a client sends.

Example::

    Address.parse("ws://localhost:8000").url
    token_of("WORLDGYM_TOKEN")      # the value of that environment variable
"""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
from dataclasses import dataclass

from worldgym.errors import ConfigError

SCHEMES = ("ws", "wss")


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Args:
        url: `ws://HOST:PORT` or `wss://HOST[:PORT]`.
    """

    url: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Check an address.

        Raises:
            ConfigError: it is not a websocket address, or has a user or a password in it.
        """
        parts = urllib.parse.urlsplit(text) if isinstance(text, str) else None
        try:
            usable = parts is not None and parts.scheme in SCHEMES and bool(parts.hostname)
            usable = usable and (parts.port is None or parts.port > 0)  # type: ignore[union-attr]
        except ValueError:  # the port is not a number
            usable = False
        if not usable or parts is None:
            raise ConfigError(
                f"the address of a server is {text!r}; expected for example ws://127.0.0.1:8000"
            )
        if parts.username or parts.password:
            raise ConfigError(
                f"the address of {parts.hostname} contains a user or a password; put the token into an environment "
                "variable and pass its name as token_env"
            )
        return cls(text)


def is_address(text: object) -> bool:
    """Whether a text is meant as an address, not as a folder (also if it is the address of something else)."""
    return isinstance(text, str) and "://" in text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_of(variable: str | None) -> str | None:
    """The token in an environment variable; None if no variable is named.

    Raises:
        ConfigError: the variable is not set.
    """
    if variable is None:
        return None
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(
            f"the environment variable {variable} is not set; type export {variable}=... with the server's token"
        )
    if not all("!" <= letter <= "~" for letter in token):  # what a header may hold; the value itself is never shown
        raise ConfigError(
            f"the token in the environment variable {variable} contains a space, a line end or a letter outside ASCII; "
            "expected letters, digits and punctuation only"
        )
    return token


TOKENS = "WORLDGYM_TOKENS"
"""Environment variable with `URL=VARIABLE` pairs, separated by spaces: the variable with the token of each server."""


def variable_for(url: str) -> str | None:
    """The variable that `WORLDGYM_TOKENS` names for an address; None if it names none.

    The names are never read from a checkpoint, because a checkpoint could then choose which secret is sent where.

    Raises:
        ConfigError: `WORLDGYM_TOKENS` has another form.
    """
    for pair in os.environ.get(TOKENS, "").split():
        address, equals, name = pair.rpartition("=")
        if not equals or not is_address(address) or not name.isidentifier():
            raise ConfigError(
                f"{TOKENS} holds pairs of an address and the name of a variable, never a token itself; type for "
                f"example export {TOKENS}=ws://127.0.0.1:8000=MY_TOKEN"
            )
        if address == url:
            return name
    return None
