"""Bytes that are almost a request: messages of every method, mutated as protobuf, and raw HTTP/2 and TCP to a port."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from mmecg_pb.v1 import (  # noqa: F401  (each registers its services)
    admin_service_pb2,
    corpus_service_pb2,
    embedding_service_pb2,
    info_service_pb2,
    label_mining_service_pb2,
    prediction_service_pb2,
    search_service_pb2,
)
from small import make_study

from mmecg.client.messages import render_ecg, render_study

SERVICES = ("Embedding", "Search", "Corpus", "LabelMining", "Prediction", "Admin", "Info")
_DEPTH = 6
_WORDS = (
    "study-3",
    "study-4",
    "nobody",
    "site-0",
    "site-1",
    "sinus rhythm",
    "NORM",
    "study.report",
    "ecg",
    "",
    "é" * 9,
)
_NUMBERS = (0, 1, -1, 5, 1000, 2**31 - 1, -(2**31))
_SPECIALS = (0.0, -0.0, 60.0, 1e308, float("nan"), float("inf"), -1.0)


def methods() -> Iterator[tuple[str, Descriptor, bool]]:
    """Yield path, request and whether it is a stream of every method of mmecg.v1."""
    pool = descriptor_pool.Default()
    for name in SERVICES:
        service = pool.FindServiceByName(f"mmecg.v1.{name}Service")
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", method.input_type, method.client_streaming


class Mutator:
    """Draws requests and spoils them.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._study = render_study(make_study(4))
        self._study.subject_id = "subject-of-mine"
        self._study.ClearField("report")
        self._study.ClearField("notes")
        self._study.ClearField("attributes")
        self._ecg = render_ecg(make_study(4).ecg)
        self._kinds = (
            self._flip, self._cut, self._repeat, self._splice, self._retag, self._lengthen, self._not_utf8,
            self._nest, self._noise, self._unknown, self._many, self._nothing,
        )  # fmt: skip

    def request(self, kind: Descriptor) -> bytes:
        """Return the bytes of a request, most of them malformed."""
        content = self._draw(kind, 0).SerializePartialToString()
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            content = self.random.choice(self._kinds)(content)
        return content[: 2**20]

    def _draw(self, kind: Descriptor, depth: int) -> Message:
        message = GetMessageClass(kind)()
        if kind.full_name == "mmecg.v1.Study" and self.random.random() < 0.7:
            message.CopyFrom(self._study)
            return message
        if kind.full_name == "mmecg.v1.Ecg" and self.random.random() < 0.7:
            message.CopyFrom(self._ecg)
            return message
        for field in kind.fields:
            if depth < _DEPTH and self.random.random() < (0.7 if depth < 2 else 0.3):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        count = self.random.choice((1, 1, 2, 5)) if field.is_repeated else 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            for _ in range(count):
                getattr(message, field.name)[self._word()] = self._scalar(values)
        elif field.message_type is not None:
            for _ in range(count):
                drawn = self._draw(field.message_type, depth + 1)
                place = getattr(message, field.name)
                (place.add() if field.is_repeated else place).CopyFrom(drawn)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._scalar(field) for _ in range(count))
        else:
            setattr(message, field.name, self._scalar(field))

    def _word(self) -> str:
        return self.random.choice(_WORDS)

    def _scalar(self, field: FieldDescriptor) -> object:
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            word = self._word()
            return word.encode() * 40 if field.type == FieldDescriptor.TYPE_BYTES else word
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            value = self.random.choice(_SPECIALS)
            return min(value, 3e38) if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else value
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        number = self.random.choice(_NUMBERS)
        return abs(number) if "UINT" in str(field.cpp_type) else number

    def _at(self, content: bytes) -> int:
        return self.random.randrange(len(content) + 1)

    def _flip(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.random.randint(1, 4) if changed else 0):
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _cut(self, content: bytes) -> bytes:
        return content[: self._at(content)]

    def _repeat(self, content: bytes) -> bytes:
        start, end = sorted((self._at(content), self._at(content)))
        return content[:end] + content[start:end] * self.random.randint(1, 3) + content[end:]

    def _splice(self, content: bytes) -> bytes:
        at = self._at(content)
        return content[:at] + self.random.randbytes(self.random.randint(1, 24)) + content[at:]

    def _retag(self, content: bytes) -> bytes:
        """Give the first field another number or wire type."""
        return bytes([self.random.randrange(256)]) + content[1:]

    def _lengthen(self, content: bytes) -> bytes:
        """Let a length say more than there is."""
        at = self._at(content)
        length = self.random.choice((b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\x80" * 12))
        return content[:at] + length + content[at:]

    def _not_utf8(self, content: bytes) -> bytes:
        letters = [at for at, byte in enumerate(content) if 97 <= byte <= 122]
        if not letters:
            return content
        at = self.random.choice(letters)
        return content[:at] + self.random.choice((b"\xff", b"\xc0", b"\xed", b"\x00")) + content[at + 1 :]

    def _nest(self, content: bytes) -> bytes:
        """Wrap it in itself, again and again, or open groups that never end."""
        if self.random.random() < 0.3:
            return b"\x0b" * self.random.choice((50, 5000)) + content
        inner, tag = content[:64], bytes([self.random.choice((10, 18, 26, 34))])
        for _ in range(self.random.choice((10, 99, 101, 300))):
            inner = tag + _varint(len(inner)) + inner
        return inner

    def _noise(self, content: bytes) -> bytes:
        return self.random.randbytes(self.random.choice((0, 1, 7, 100, 4000)))

    def _unknown(self, content: bytes) -> bytes:
        number = self.random.choice((15, 99, 19_000, 2**29 - 1))
        return content + _varint(number << 3 | 2) + _varint(3) + b"abc"

    def _many(self, content: bytes) -> bytes:
        return content[:200] * self.random.choice((20, 300))

    def _nothing(self, content: bytes) -> bytes:
        return content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an HTTP/2 frame."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as HPACK literals, none of them indexed."""
    block = b""
    for name, value in fields:
        block += b"\x00" + _hpack_length(name) + name + _hpack_length(value) + value
    return block


def _hpack_length(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)])
    return b"\x7f" + _varint(len(text) - 127)


class RawPort:
    """Talks to a port below gRPC.

    Parameters
    ----------
    port : int
    seed : int
    """

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._mutator = Mutator(seed)
        self._random = self._mutator.random
        self._methods = list(methods())
        self._kinds = {
            "tcp garbage": self._garbage,
            "http/1": self._http1,
            "frames": self._frames,
            "wrong content-type": self._wrong_type,
            "bad headers": self._bad_headers,
            "wrong lengths": self._wrong_lengths,
            "half-open": self._half_open,
            "cut": self._cut,
        }

    def send(self) -> tuple[str, str, bytes]:
        """Open a connection, send something, and close it; return what it was, how it was answered, and the bytes."""
        kind = self._random.choice(list(self._kinds))
        answer = b""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=20) as connection:
                connection.sendall(self._kinds[kind]())
                if kind == "half-open":
                    connection.settimeout(0.05)
                else:
                    connection.settimeout(0.3)
                    if self._random.random() < 0.5:
                        connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    answer += part
        except TimeoutError:
            return kind, _status(answer) or "open", answer
        except OSError:
            return kind, _status(answer) or "reset", answer
        return kind, _status(answer) or "closed", answer

    def _garbage(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 24, 300, 20_000)))

    def _http1(self) -> bytes:
        path = self._random.choice(("/", "/metrics", "/mmecg.v1.InfoService/GetServerInfo", "/" + "a" * 9000))
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX: {'y' * self._random.choice((1, 70_000))}\r\n\r\n".encode()

    def _frames(self) -> bytes:
        content = PREFACE + frame(4, 0, 0, b"")
        for _ in range(self._random.randint(1, 20)):
            payload = self._random.randbytes(self._random.choice((0, 1, 4, 8, 100, 20_000)))
            lie = self._random.choice((None, None, 2**24 - 1, 0))
            stream = self._random.choice((0, 1, 2, 3, 2**31))
            content += frame(self._random.randrange(14), self._random.randrange(256), stream, payload, lie)
        return content

    def _call(self, message: bytes, *, end: bool = True, **changes: bytes | None) -> bytes:
        path, *_ = self._random.choice(self._methods)
        fields = {
            ":method": b"POST", ":scheme": b"http", ":path": path.encode(), ":authority": b"localhost",
            "te": b"trailers", "content-type": b"application/grpc",
        } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
        listed = [(name.encode(), value) for name, value in fields.items() if value is not None]
        start = PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers(listed))
        return start + frame(0, int(end), 1, message[:16_000])

    def _message(self) -> bytes:
        content = self._mutator.request(self._random.choice(self._methods)[1])[:15_000]
        return b"\x00" + struct.pack(">I", len(content)) + content

    def _wrong_type(self) -> bytes:
        kinds = (b"text/html", b"application/json", b"application/grpc-web", b"application/grpc+json", b"", None)
        kind = self._random.choice(kinds)
        return self._call(self._message(), content_type=kind)

    def _bad_headers(self) -> bytes:
        random = self._random
        values = (
            b"99999999999S",
            b"-1S",
            b"0n",
            b"x",
            b"\xff\xfe",
            b"a" * 9000,
            b"Bearer ",
            b"Bearer " + b"\xc3\xa9" * 20,
        )
        names = ("grpc_timeout", "authorization", "x_request_id", "grpc_encoding", "traceparent", "user_agent", "x_bin")
        changes: dict[str, bytes | None] = {random.choice(names): random.choice(values)}
        if random.random() < 0.3:
            changes |= {random.choice((":path", ":method", "te", ":scheme")): random.choice((None, b"", b"/x", b"GET"))}
        return self._call(self._message(), **changes)

    def _wrong_lengths(self) -> bytes:
        message = self._message()
        length = self._random.choice((0, 1, len(message), 2**31, 2**32 - 1, 65 * 2**20))
        flag = self._random.choice((0, 0, 1, 2, 255))
        return self._call(bytes([flag]) + struct.pack(">I", length) + message[5:])

    def _half_open(self) -> bytes:
        return self._call(self._message() * self._random.randint(0, 3), end=False)

    def _cut(self) -> bytes:
        content = self._call(self._message())
        return content[: self._random.randrange(len(content))]


def _status(answer: bytes) -> str:
    """Return the grpc-status that stands in an answer; the server writes it as a literal, once a connection."""
    at = answer.find(b"grpc-status")
    if at < 0:
        return ""
    size = answer[at + 11] if at + 11 < len(answer) else 0
    digits = answer[at + 12 : at + 12 + (size & 127)]
    return f"status {digits.decode()}" if size < 3 and digits.isdigit() else ""
