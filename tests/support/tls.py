"""Certificates of the tests' own, and call credentials that fail."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import NamedTuple

import grpc
import pytest

from lb.testing import Backend

pytest.importorskip("cryptography", reason="needs the package cryptography (extra: dev)")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """PEM."""

    key: bytes
    certificate: bytes


def self_signed(name: str) -> Certificate:
    """A certificate for a DNS name that is its own root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


@pytest.fixture(scope="module")
def catalog() -> Certificate:
    """For the name ``catalog``."""
    return self_signed("catalog")


@pytest.fixture
def credentials(catalog: Certificate) -> grpc.ChannelCredentials:
    """Trust in that certificate."""
    return grpc.ssl_channel_credentials(catalog.certificate)


@pytest.fixture
async def secure(catalog: Certificate) -> AsyncIterator[Backend]:
    """A backend on 127.0.0.1 that shows it."""
    async with Backend(credentials=grpc.ssl_server_credentials([(catalog.key, catalog.certificate)])) as backend:
        yield backend


class NoToken(grpc.AuthMetadataPlugin):
    """A plugin that raises."""

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Raise."""
        raise RuntimeError("no token")
