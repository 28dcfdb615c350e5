"""The sign stage of one artifact: sign, verify, and only then move the final tag."""

from __future__ import annotations

import structlog

from services.signer.image import sign_image, verify_image
from services.signer.module_signature import (
    check_key_matches,
    fingerprint,
    load_certificate,
    load_private_key,
)
from shared.domain.artifact import SOURCE_LABEL
from shared.domain.errors import TransientError
from shared.domain.image import ImageReference
from shared.domain.lease import Lease, Signed
from shared.leasing.secrets import SecretReader, registry_access
from shared.leasing.worker import Holder
from shared.registry.port import ImageRegistry
from shared.runtime.fail_point import FailPoint, fail_point

log = structlog.get_logger()

KEY_FIELD = "key"
"""Field of the key Secret (KMM API, `sign.keySecret`)."""

CERT_FIELD = "cert"
"""Field of the certificate Secret (KMM API, `sign.certSecret`)."""


class SignatureNotFound(TransientError):
    """An image that was just signed lacks a signature when it is read back."""

    reason = "SignFailed"


class SignStage:
    """Performs the sign stage of artifacts."""

    def __init__(self, *, registry: ImageRegistry, secrets: SecretReader) -> None:
        self._registry = registry
        self._secrets = secrets

    async def perform(self, lease: Lease, holder: Holder) -> Signed:
        """Sign the artifact's image. Raises HubError."""
        request, recipe = lease.request, lease.request.sign
        assert recipe is not None
        assert lease.source is not None
        certificate = load_certificate(await self._secrets.read_field(recipe.cert_secret, CERT_FIELD))
        key = load_private_key(await self._secrets.read_field(recipe.key_secret, KEY_FIELD))
        check_key_matches(key, certificate)
        docker_config = await self._secrets.read_docker_config(request.repo_secret)
        source, target = ImageReference.parse(lease.source), ImageReference.parse(request.target)
        target_access = registry_access(request.access, docker_config, target)
        is_own_source = source.name == target.name
        signed = await sign_image(
            self._registry,
            source=source,
            target=target,
            patterns=recipe.files,
            key=key,
            certificate=certificate,
            labels={SOURCE_LABEL: source.digest or ""},
            architecture=request.architecture,
            source_access=target_access
            if is_own_source
            else registry_access(recipe.source_access, docker_config, source),
            target_access=target_access,
        )
        fail_point(FailPoint.SIGNED_IMAGE_PUSHED)
        result = ImageReference.parse(target.with_tag(target.tag or "latest").pinned(signed.digest))
        unsigned = await verify_image(
            self._registry,
            result,
            recipe.files,
            certificate,
            architecture=request.architecture,
            access=target_access,
        )
        if unsigned:
            raise SignatureNotFound(
                f"image {result}: {', '.join(unsigned)} carry no signature of the certificate"
            )
        fail_point(FailPoint.SIGNATURES_VERIFIED)
        await holder.confirm()
        await self._registry.tag(target, signed.digest, access=target_access)
        fail_point(FailPoint.TAG_MOVED)
        log.info("image.signed", image=str(result), files=len(signed.files))
        return Signed(digest=signed.digest, signed_by=fingerprint(certificate))
