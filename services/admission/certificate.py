"""The webhook's certificate: files that somebody else renews while the webhook runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509

from shared.domain.errors import PermanentError
from shared.runtime.clock import now


class NoCertificate(PermanentError):
    """The certificate or its key is missing or cannot be used."""

    reason = "NoCertificate"


class Certificate:
    """`tls.crt` and `tls.key` of a directory, PEM, as a mounted Secret of type kubernetes.io/tls has them.

    Attributes:
        context: what a server listens with. Each new connection gets the newest certificate that was read.
    """

    def __init__(self, directory: Path) -> None:
        """Read the files.

        Raises:
            NoCertificate: they are missing, do not belong together, or the key is encrypted.
        """
        self._chain, self._key = directory / "tls.crt", directory / "tls.key"
        self._read: tuple[bytes, bytes] | None = None
        self.refresh()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.sni_callback = self._use_newest

    @property
    def is_valid(self) -> bool:
        """Whether the certificate's time has come and is not over."""
        return self._since <= now() <= self.until

    def refresh(self) -> bool:
        """Read the files again if they changed. Returns whether they did.

        Raises:
            NoCertificate: as above; the certificate from before stays in use.
        """
        try:
            content = self._chain.read_bytes(), self._key.read_bytes()
            if content == self._read:
                return False
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            # Without a password OpenSSL would ask the terminal for the one of an encrypted key.
            context.load_cert_chain(self._chain, self._key, password="")
            leaf = x509.load_pem_x509_certificate(content[0])
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise NoCertificate(
                f"{self._chain} and {self._key} cannot be used: {error}. "
                "Put a certificate for the webhook's address and its unencrypted key there, both PEM."
            ) from error
        self._newest, self._read = context, content
        self._since, self.until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        return True

    def _use_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest
