"""The lab's own certificate authority, and the certificates of its pods.

As in Istio: ECDSA on P-256, the identity as a SPIFFE URI in the subject alternative name, no subject.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from merbridge_lab.adapters.certificate_period import period
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

_LIFE = dt.timedelta(days=365)
#: For clocks that are set back after the lab was created.
_SLACK = dt.timedelta(days=1)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + _LIFE)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_encipherment=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """The signer of certificates: `load` returns the lab's, `fresh` one that nobody else trusts."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def fresh(cls) -> Authority:
        """Create a new authority, in memory only."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "merlab")])
        certificate = (
            _builder(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, path: Path) -> Authority:
        """Read the authority stored at `path`, or create it: key and certificate in one file that only root can read.

        It is stored because control pods created later need certificates, too. An authority that is not valid now is
        replaced. Raises OSError, ValueError.
        """
        if authority_problem(path) is not None:
            new = cls.fresh()
            write_atomic(path, _pem(new._key) + new.certificate, mode=0o600)  # noqa: SLF001 - its own class
        content = path.read_bytes()
        key = serialization.load_pem_private_key(content, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{path} holds no elliptic curve key")
        return cls(key, x509.load_pem_x509_certificate(content))

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: str) -> tuple[bytes, bytes]:
        """Create a key and a certificate for `identity` (a SPIFFE URI): key and chain, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(self._certificate.subject, x509.Name([]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            # Critical, because the subject is empty (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(key), certificate.public_bytes(serialization.Encoding.PEM)


class Seen(NamedTuple):
    """The content of a certificate, and whether the lab's authority has signed it."""

    identities: tuple[str, ...]
    since: dt.datetime
    until: dt.datetime
    serial: int
    signed: bool

    @property
    def untimely(self) -> str | None:
        """Describe why it is not valid at this moment; None if it is."""
        return _untimely(self.since, self.until)


def _untimely(since: dt.datetime, until: dt.datetime) -> str | None:
    now = dt.datetime.now(dt.timezone.utc)
    if now < since:
        return f"is valid from {since:%Y-%m-%d %H:%M} UTC on, and the clock says {now:%Y-%m-%d %H:%M} UTC"
    if until <= now:
        return f"expired at {until:%Y-%m-%d %H:%M} UTC"
    return None


def authority_problem(path: Path) -> str | None:
    """Describe what is wrong with the authority stored at `path` (unreadable, or not valid now); None if nothing is."""
    try:
        content = path.read_bytes()
        serialization.load_pem_private_key(content, password=None)
        return _untimely(*period(x509.load_pem_x509_certificate(content)))
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def trusts(folder: Path, authority: Path) -> bool:
    """Report whether the one authority that `folder` names is the one stored at `authority`."""
    try:
        roots = x509.load_pem_x509_certificates((folder / "root-cert.pem").read_bytes())
        return roots == [x509.load_pem_x509_certificate(authority.read_bytes())]
    except (OSError, ValueError):
        return False


def look(folder: Path, authority: Path) -> Seen | str:
    """Read the certificate in `folder`, beside the authority stored at `authority`; or return why it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "cert-chain.pem").read_bytes())
        trusted = x509.load_pem_x509_certificate(authority.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        return str(error)
    try:
        certificate.verify_directly_issued_by(trusted)
        signed = True
    except (ValueError, TypeError, InvalidSignature):
        signed = False
    identities = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    return Seen(identities, *period(certificate), certificate.serial_number, signed)


def are_good(folder: Path, identity: str, authority: Path, *, foreign: bool = False) -> bool:
    """Report whether the files in `folder` are valid now, name `identity`, and come from the authority.

    With `foreign`, they must not come from it. If the authority is not valid now, nothing is good.
    """
    seen = look(folder, authority)
    if isinstance(seen, str) or authority_problem(authority) is not None:
        return False
    right = seen.signed is not foreign and seen.identities == (identity,)
    return right and seen.untimely is None and trusts(folder, authority) and key_problem(folder) is None


def key_problem(folder: Path) -> str | None:
    """Describe what is wrong with the private key in `folder`.

    None if only its owner and root can read it, and the certificate beside it was made for it.
    """
    try:
        place, key = folder.stat(), (folder / "key.pem").stat()
    except OSError as error:
        return f"could not be looked at: {error.strerror}"
    if key.st_uid != place.st_uid or (key.st_mode | place.st_mode) & 0o077:
        return f"can be read by others ({folder})"
    try:
        private = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), password=None)
        certified = x509.load_pem_x509_certificate((folder / "cert-chain.pem").read_bytes()).public_key()
    except (OSError, ValueError, TypeError) as error:
        return f"cannot be read: {error}"
    if (
        isinstance(private, ec.EllipticCurvePrivateKey)
        and isinstance(certified, ec.EllipticCurvePublicKey)
        and private.public_key().public_numbers() == certified.public_numbers()
    ):
        return None
    return f"is not its certificate's ({folder})"


@change("write certificates")
def install(folder: Path, identity: str, *, authority: Authority, trusted: Authority, owner: int) -> None:
    """Write key.pem, cert-chain.pem and root-cert.pem into the new directory `folder`, readable only by `owner`.

    The directory appears complete or not at all. Raises OSError.
    """
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o500)
    os.chown(draft, owner, owner)
    key, chain = authority.issue(identity)
    write_atomic(draft / "key.pem", key, mode=0o400, owner=owner)
    write_atomic(draft / "cert-chain.pem", chain, mode=0o400, owner=owner)
    write_atomic(draft / "root-cert.pem", trusted.certificate, mode=0o400, owner=owner)
    draft.rename(folder)
