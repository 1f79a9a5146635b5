"""The server's secrets in one place: token key, pepper, certificate authorities. Implements `ports.Keys`."""

from __future__ import annotations

import hashlib
import hmac
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.attestation.tpm_public import TpmPublicKey
from keyvouch.ids import DeviceId, TenantId
from keyvouch.proofs import jwk_of, thumbprint
from keyvouch.statement import Purpose
from keyvouch.tokens import AccessTokenClaims, sign_access_token, token_header
from keyvouch_server.attestation_ca import AttestationAuthority
from keyvouch_server.device_authority import DeviceAuthority
from keyvouch_server.ports import EndorsedTpm

_ES256 = ec.ECDSA(hashes.SHA256())


class Keyring:
    """Holds the secrets; gives out only what is made with them."""

    def __init__(
        self,
        token_key: ec.EllipticCurvePrivateKey,
        pepper: bytes,
        authority: DeviceAuthority,
        attestation: AttestationAuthority,
    ) -> None:
        if len(pepper) < 32:
            raise ValueError("the pepper has at least 32 bytes")
        self._token_key = token_key
        self._pepper = pepper
        self._authority = authority
        self._attestation = attestation
        self.key_id = base64url.encode(thumbprint(token_key.public_key()))
        self._header = token_header(self.key_id)
        self._derived: dict[str, bytes] = {}

    @property
    def token_keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Public keys of access tokens by key id."""
        return {self.key_id: self._token_key.public_key()}

    @property
    def jwks(self) -> str:
        """The same as a JWK Set (RFC 7517), JSON text."""
        keys = [
            {**jwk_of(key), "kid": kid, "alg": "ES256", "use": "sig"} for kid, key in sorted(self.token_keys.items())
        ]
        return json.dumps({"keys": keys})

    def mac(self, purpose: str, data: bytes) -> bytes:
        """See `ports.Keys`. Each purpose has its own key, derived from the pepper."""
        key = self._derived.get(purpose)
        if key is None:
            key = self._derived[purpose] = hmac.digest(self._pepper, f"keyvouch/{purpose}/v1".encode(), hashlib.sha256)
        return hmac.digest(key, data, hashlib.sha256)

    def access_token(self, claims: AccessTokenClaims) -> str:
        """See `ports.Keys`."""
        return sign_access_token(claims, header=self._header, sign=lambda m: self._token_key.sign(m, _ES256))

    def device_certificate(self, device: DeviceId, tenant: TenantId, channel_key: bytes) -> tuple[bytes, ...]:
        """See `ports.Keys`."""
        return self._authority.device_chain(device, tenant, channel_key)

    def attestation_certificate(self, key: TpmPublicKey, tpm: EndorsedTpm) -> bytes:
        """See `ports.Keys`."""
        return self._attestation.certify(key, tpm)

    def sign_identity(self, purpose: Purpose, statement: bytes) -> bytes:
        """See `ports.Keys`."""
        return self._authority.sign(purpose, statement)

    @property
    def identity_key(self) -> bytes:
        """See `ports.Keys`."""
        return self._authority.public_key

    @property
    def attestation_root(self) -> x509.Certificate:
        """See `ports.Keys`."""
        return self._attestation.certificate
