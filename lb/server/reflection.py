"""What tools ask a gRPC server of its contracts.

grpcio's own servicer lacks two things, which grpcurl and ghz want: methods as symbols (``describe pkg.Svc.Method``),
and reflection's version ``v1`` beside ``v1alpha`` (the messages are the same).

This needs ``grpcio-reflection``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_V1_NAME = f"{_V1}.ServerReflection"


class _Pool:
    """The default pool of descriptors, with methods as symbols, and reflection's own ``v1`` file."""

    def __init__(self) -> None:
        self._own = DescriptorPool()
        proto = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(proto)
        proto.name = proto.name.replace("v1alpha", "v1")
        proto.package = _V1
        for message in proto.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(_ALPHA, _V1)
        for service in proto.service:
            for method in service.method:
                method.input_type = method.input_type.replace(_ALPHA, _V1)
                method.output_type = method.output_type.replace(_ALPHA, _V1)
        self._own.Add(proto)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file of a message, enum, field, service or method. Raises ``KeyError``."""
        try:
            return self._either("FindFileContainingSymbol", symbol)  # type: ignore[no-any-return]
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._either("FindServiceByName", service)
            return found.methods_by_name[method].containing_service.file  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        """Everything else is looked up in one pool, then in the other."""
        return lambda *key: self._either(name, *key)

    def _either(self, find: str, *key: Any) -> Any:
        try:
            return getattr(Default(), find)(*key)
        except KeyError:
            return getattr(self._own, find)(*key)


def add_reflection(server: Any, names: Iterable[str], *, threads: bool = False) -> None:
    """Let tools read the contracts of the services ``names``, by both versions of reflection."""
    made = reflection.ReflectionServicer if threads else reflection.aio.ReflectionServicer
    servicer = made((*names, reflection.SERVICE_NAME, _V1_NAME), pool=_Pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (reflection.SERVICE_NAME, _V1_NAME)
        ]
    )
