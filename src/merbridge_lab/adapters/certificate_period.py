"""The period in which an X.509 certificate is valid, read with any version of cryptography."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509


def period(certificate: x509.Certificate) -> tuple[dt.datetime, dt.datetime]:
    """Return the first and the last moment of a certificate."""
    if hasattr(certificate, "not_valid_after_utc"):  # cryptography 42
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    utc = dt.timezone.utc
    return certificate.not_valid_before.replace(tzinfo=utc), certificate.not_valid_after.replace(tzinfo=utc)
