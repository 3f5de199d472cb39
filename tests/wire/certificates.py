"""An authority and certificates for tests, made by the ``openssl`` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Files(NamedTuple):
    """What ``Tls`` takes."""

    cert: str
    key: str
    ca: str


def openssl(*arguments: str) -> None:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("no openssl command here to make certificates with")
    subprocess.run([command, *arguments], check=True, capture_output=True, timeout=60)


def make_authority(folder: Path, name: str) -> None:
    """``name.pem`` and ``name.key`` of an authority."""
    files = ("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"))
    openssl("req", "-x509", *_NEW_KEY, *files, "-days", "30", "-subj", f"/CN=authority {name}")


def make_certificate(folder: Path, name: str, authority: str) -> Files:
    """``name.pem`` and ``name.key``, signed by ``authority``."""
    cert, key, request = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.csr"
    signer, signers_key = folder / f"{authority}.pem", folder / f"{authority}.key"
    openssl("req", *_NEW_KEY, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}")
    signed = ("-CA", str(signer), "-CAkey", str(signers_key), "-CAcreateserial", "-days", "30")
    openssl("x509", "-req", "-in", str(request), *signed, "-out", str(cert))
    return Files(str(cert), str(key), str(signer))
