"""Transport security: the server's certificate, read again when its files change, without a restart.

gRPC asks for the certificate at every handshake, so a new pair serves the next connection and leaves those that are
open as they are.
"""

from __future__ import annotations

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mmecg.errors import ConfigError
from mmecg_server.config import TlsConfig
from mmecg_server.watched import Watched


class ServerCertificates:
    """The certificate of a server, and the authority of its clients.

    Parameters
    ----------
    config : TlsConfig
        With certificate and key.

    Raises
    ------
    ConfigError
        A file cannot be read, or is not PEM, or certificate and key do not belong together. Later on, such a new file
        is logged, and what was there goes on serving.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._demands_client = config.client_ca is not None
        paths = [path for path in (config.certificate, config.key, config.client_ca) if path is not None]
        self._pair = Watched("tls files", paths, _parse)
        self._served = self._pair.current()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            self._served,
            self._changed,  # type: ignore[arg-type]  # None is "no change", which the stubs do not know
            require_client_authentication=self._demands_client,
        )

    def reload(self) -> None:
        """Read the files again, whether they changed or not."""
        self._pair.reload()

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is new since the last handshake, None if nothing is."""
        pair = self._pair.current()
        if pair is self._served:
            return None
        self._served = pair
        return pair


def _parse(certificate: bytes, key: bytes, client_ca: bytes | None = None) -> grpc.ServerCertificateConfiguration:
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        if client_ca is not None:
            x509.load_pem_x509_certificates(client_ca)
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # What cryptography says may quote the file.
        raise ConfigError("tls.certificate, tls.key or tls.client_ca is no PEM file of its kind; check them") from None
    of_key, of_chain = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (private.public_key(), chain[0].public_key())
    )
    if of_key != of_chain:
        raise ConfigError("tls.key is not the key of tls.certificate; replace both")
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)
