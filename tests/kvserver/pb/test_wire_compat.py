"""Our messages are etcd's on the wire, under names of our own.

Three proofs: the committed list of etcd's fields equals ours; the list equals what an installed etcd carries in its own binary; bytes
written by hand from etcd's field numbers decode to the right fields. And our descriptors share a pool, and a process, with etcd's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message

from kvserver.pb import auth_pb2, debug_pb2, election_pb2, health_pb2, internal_pb2, kv_pb2, lock_pb2, peer_pb2, rpc_pb2

ETCD_BINARY = Path("/usr/bin/etcd")
CLIENT_MODULES = (kv_pb2, auth_pb2, rpc_pb2, lock_pb2, election_pb2, health_pb2)
ALL_MODULES = (*CLIENT_MODULES, debug_pb2, internal_pb2, peer_pb2)
ETCD_FILES = frozenset({"mvccpb", "authpb", "etcdserverpb", "v3lockpb", "v3electionpb", "grpc.health.v1"})
ETCD_NAMES = frozenset({"kv.proto", "auth.proto", "rpc.proto", "v3lock.proto", "v3election.proto", "grpc/health/v1/health.proto"})
HERE = Path(__file__).parent


_TYPE_NAMES = {value: name.removeprefix("TYPE_").lower() for name, value in FieldDescriptorProto.Type.items()}


def flatten(file: FileDescriptorProto) -> Iterator[str]:
    """One line per field (`Message.field number type`) and per enum value (`Message.Enum.VALUE number`), packages left out."""
    for message in file.message_type:
        yield from _message_lines(message, "", file.package)
    for enum in file.enum_type:
        yield from _enum_lines(enum, "")


def _message_lines(message: DescriptorProto, outer: str, package: str) -> Iterator[str]:
    name = outer + message.name
    yield f"message {name}"
    for field in message.field:
        yield f"{name}.{field.name} {field.number} {_type_of(field, package)}"
    for nested in message.nested_type:
        yield from _message_lines(nested, f"{name}.", package)
    for enum in message.enum_type:
        yield from _enum_lines(enum, f"{name}.")


def _type_of(field: FieldDescriptorProto, package: str) -> str:
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    if not field.type_name:
        return repeated + _TYPE_NAMES[field.type]
    return repeated + _strip_package(field.type_name)


def _strip_package(type_name: str) -> str:
    """`.etcdserverpb.WatchCreateRequest.FilterType` and `.kvserver.pb.WatchCreateRequest.FilterType` name the same thing."""
    parts = type_name.lstrip(".").split(".")
    return ".".join(part for part in parts if part[:1].isupper())


def _enum_lines(enum: EnumDescriptorProto, outer: str) -> Iterator[str]:
    for value in enum.value:
        yield f"{outer}{enum.name}.{value.name} {value.number}"


def file_proto(module: ModuleType) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(proto)
    return proto


def ours() -> set[str]:
    return {line for module in CLIENT_MODULES for line in flatten(file_proto(module))}


def sections() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in (HERE / "etcd_fields.txt").read_text().splitlines():
        if line.startswith("# Section"):
            current = found.setdefault(line.split()[2].rstrip(":"), set())
        elif not line.startswith("#"):
            current.add(line)
    return found


def test_every_message_field_and_enum_value_is_etcds() -> None:
    listed = set().union(*sections().values())
    assert ours() - listed == set()
    assert listed - ours() == set()


def _descriptors_inside(binary: Path) -> Iterator[FileDescriptorProto]:
    """The file descriptors that Go's protobuf keeps, gzipped, in a program's data."""
    data = binary.read_bytes()
    position = data.find(b"\x1f\x8b\x08")
    while position >= 0:
        with contextlib.suppress(zlib.error, DecodeError):
            yield FileDescriptorProto.FromString(zlib.decompressobj(31).decompress(data[position : position + 200_000]))
        position = data.find(b"\x1f\x8b\x08", position + 1)


@pytest.mark.etcd
@pytest.mark.skipif(not ETCD_BINARY.exists(), reason="etcd is not installed (Debian package etcd-server)")
def test_committed_list_is_what_the_installed_etcd_carries() -> None:
    carried = {
        line
        for proto in _descriptors_inside(ETCD_BINARY)
        if proto.package in ETCD_FILES and proto.name in ETCD_NAMES
        for line in flatten(proto)
    }
    assert "message RangeRequest" in carried
    listed = set().union(*sections().values())
    assert carried - listed == set()
    assert sections()["3.4"] - carried == set()


@pytest.mark.parametrize(
    ("message", "raw"),
    [
        (rpc_pb2.PutRequest(key=b"k", value=b"v", lease=7, prev_kv=True), b"\x0a\x01k\x12\x01v\x18\x07\x20\x01"),
        (rpc_pb2.Compare(result=3, target=4, key=b"k", lease=-1), b"\x08\x03\x10\x04\x1a\x01k\x40" + b"\xff" * 9 + b"\x01"),
        (rpc_pb2.Compare(key=b"k", range_end=b"\0"), b"\x1a\x01k\x82\x04\x01\x00"),
        (rpc_pb2.RangeRequest(key=b"a", range_end=b"\0", max_create_revision=5), b"\x0a\x01a\x12\x01\x00\x68\x05"),
        (rpc_pb2.WatchResponse(watch_id=1, events=[kv_pb2.Event(type=1)]), b"\x10\x01\x5a\x02\x08\x01"),
        (rpc_pb2.StatusResponse(dbSizeQuota=2, isLearner=True), b"\x50\x01\x60\x02"),
        (rpc_pb2.ResponseHeader(cluster_id=2**64 - 1), b"\x08" + b"\xff" * 9 + b"\x01"),
        (
            kv_pb2.KeyValue(key=b"k", create_revision=2, mod_revision=3, version=4, value=b"v", lease=5),
            b"\x0a\x01k\x10\x02\x18\x03\x20\x04\x2a\x01v\x30\x05",
        ),
    ],
)
def test_known_bytes(message: Message, raw: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == raw
    assert type(message).FromString(raw) == message


def _as_etcds(proto: FileDescriptorProto) -> FileDescriptorProto:
    """The same file under etcd's file name and package, as a stock client registers it."""
    packages = {"kv": "mvccpb", "auth": "authpb", "rpc": "etcdserverpb", "lock": "v3lockpb", "election": "v3electionpb"}
    home = {f".kvserver.pb.{m.name}": packages[stem] for stem in packages for m in _top_level(stem)}
    text = proto.SerializeToString()
    copy = FileDescriptorProto.FromString(text)
    stem = Path(proto.name).stem
    copy.name, copy.package = f"{stem}.proto", packages[stem]
    del copy.dependency[:]
    copy.dependency.extend(f"{Path(name).stem}.proto" for name in proto.dependency)
    for holder in copy.message_type:
        for field in _all_fields(holder):
            top = ".".join(field.type_name.split(".")[:4])
            if top in home:
                field.type_name = f".{home[top]}" + field.type_name.removeprefix(".kvserver.pb")
    for service in copy.service:
        for method in service.method:
            method.input_type = f".{home[method.input_type]}" + method.input_type.removeprefix(".kvserver.pb")
            method.output_type = f".{home[method.output_type]}" + method.output_type.removeprefix(".kvserver.pb")
    return copy


def _top_level(stem: str) -> list[DescriptorProto | EnumDescriptorProto]:
    module = {"kv": kv_pb2, "auth": auth_pb2, "rpc": rpc_pb2, "lock": lock_pb2, "election": election_pb2}[stem]
    proto = file_proto(module)
    return [*proto.message_type, *proto.enum_type]


def _all_fields(message: DescriptorProto) -> Iterator[FieldDescriptorProto]:
    yield from message.field
    for nested in message.nested_type:
        yield from _all_fields(nested)


def test_our_descriptors_and_etcds_live_in_one_pool_and_speak_to_each_other() -> None:
    pool = descriptor_pool.DescriptorPool()
    for module in ALL_MODULES:
        pool.Add(file_proto(module))
    for module in CLIENT_MODULES[:-1]:
        pool.Add(_as_etcds(file_proto(module)))
    theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("etcdserverpb.RangeResponse"))
    answer = theirs(count=3)
    answer.kvs.add(key=b"k", value=b"v", mod_revision=9)
    decoded = rpc_pb2.RangeResponse.FromString(answer.SerializeToString())
    assert (decoded.count, decoded.kvs[0].key, decoded.kvs[0].mod_revision) == (3, b"k", 9)


def test_a_process_may_register_etcds_files_in_the_default_pool_and_then_import_ours() -> None:
    """What happens in a process that imports a stock client first: one `rpc.proto` and one `etcdserverpb.PutRequest` exist already."""
    program = textwrap.dedent(
        """
        from google.protobuf import descriptor_pool
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        for name, package in (("kv.proto", "mvccpb"), ("rpc.proto", "etcdserverpb"), ("auth.proto", "authpb")):
            proto = FileDescriptorProto(name=name, package=package, syntax="proto3")
            for message in ("KeyValue", "PutRequest", "Permission"):
                proto.message_type.add(name=message)
            descriptor_pool.Default().Add(proto)
        import kvserver.pb.rpc_pb2, kvserver.pb.lock_pb2, kvserver.pb.election_pb2, kvserver.pb.health_pb2, kvserver.pb.peer_pb2
        import kvserver.pb.internal_pb2
        assert kvserver.pb.rpc_pb2.PutRequest.DESCRIPTOR.full_name == "kvserver.pb.PutRequest"
        print("fine")
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_every_message_has_a_name_of_our_own_package() -> None:
    for module in ALL_MODULES:
        assert module.DESCRIPTOR.package == "kvserver.pb"
        assert module.DESCRIPTOR.name.startswith("kvserver/pb/")


def test_generated_code_is_up_to_date() -> None:
    pytest.importorskip("grpc_tools", reason="the dependency group `proto` is not installed")
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
