"""What a server reports about its models, over gRPC and REST alike."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from contracts.names import SIGNATURE_DEF
from serving.server.errors import invalid
from serving.server.models import Models


def model_metadata(models: Models, request: Any) -> Any:
    """GetModelMetadataResponse: the signatures of a version.

    Raises:
        RequestError: as `Models.find`; INVALID_ARGUMENT for a field other than signature_def.
    """
    if not request.metadata_field:
        raise invalid(f"GetModelMetadataRequest must name at least one metadata_field: {SIGNATURE_DEF}")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field with value {field} is not supported; only {SIGNATURE_DEF} is")
    version = models.find(request.model_spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse(
        model_spec=resolved(request.model_spec.name, version.number)
    )
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response


def model_status(models: Models, request: Any) -> Any:
    """GetModelStatusResponse: the states of versions.

    Raises:
        RequestError: as `Models.status`.
    """
    return get_model_status_pb2.GetModelStatusResponse(model_version_status=models.status(request.model_spec))


def resolved(name: str, version: int, signature: str = "") -> Any:
    """The ModelSpec of an answer: what answered, not what was asked for."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return spec
