"""The cluster's token: where it comes from, and when it is good enough.

A token is a line of text, the same on every machine of a cluster; its bytes go into the handshake (``auth``)
and never over the network. A session that only this user's own processes join makes one by itself. For several
machines it is made once (``make_token``) and handed over in a file that only its owner can read, or in an
environment variable, which every child process inherits: the file is better.

Whoever can reach a listener can try guesses without being noticed (its proof is one to compare with), so a token
that is to be reached from other machines has to be long.
"""

from __future__ import annotations

import os
import stat

from minray._base.config import Config
from minray.wire import transports
from minray.wire.errors import WireError

MIN_BYTES = 16
MAX_BYTES = 4096
_MAKE = "one is made by: (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > FILE)"


class TokenError(WireError, ValueError):
    """A token that cannot be read, or must not be used."""


def make_token() -> bytes:
    """A new one: 64 hexadecimal digits, 256 bits."""
    return os.urandom(32).hex().encode("ascii")


def token_of(config: Config) -> bytes | None:
    """The token that the user has given, in MINRAY_TOKEN or in the file MINRAY_TOKEN_FILE; None if none.
    Raises TokenError."""
    if config.token is not None:
        return check_token(config.token.encode("utf-8", "surrogateescape"), "MINRAY_TOKEN")
    if config.token_file is not None:
        return read_token_file(config.token_file)
    return None


def read_token_file(path: str) -> bytes:
    """The token in ``path``, which must be a file of this user that nobody else may read. Raises TokenError."""
    name = f"the token file {path!r}"
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise TokenError(f"{name} cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TokenError(f"{name} is no regular file")
        if hasattr(os, "geteuid"):
            if found.st_uid != os.geteuid():
                raise TokenError(f"{name} belongs to user {found.st_uid}, not to you ({os.geteuid()}): copy it")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise TokenError(f"{name} is open to others (its mode is {mode:04o}): chmod 600 {path}")
        return check_token(os.read(fd, MAX_BYTES + 1).strip(), name)
    finally:
        os.close(fd)


def check_token(token: bytes, name: str) -> bytes:
    """``token`` if it can be one. Raises TokenError, which does not contain it."""
    if not token:
        raise TokenError(f"{name} is empty; {_MAKE}")
    if len(token) > MAX_BYTES or b"\n" in token:
        raise TokenError(f"{name} is no token: it has more than one line or {MAX_BYTES} bytes; {_MAKE}")
    if len(token) < MIN_BYTES:
        raise TokenError(f"{name} has only {len(token)} bytes and can be guessed; {MIN_BYTES} at least: {_MAKE}")
    return token


def check_exposure(endpoint: str, token: bytes) -> None:
    """Nobody listens beyond this machine without a good token. Raises EndpointError."""
    if len(token) < MIN_BYTES and not transports.is_loopback(endpoint):
        what = f"a token of {len(token)} bytes, which can be guessed" if token else "a token"
        raise transports.EndpointError(
            f"refusing to listen on {endpoint!r}, which other machines can reach, {'with' if token else 'without'} "
            f"{what}: set MINRAY_TOKEN_FILE; {_MAKE}"
        )
