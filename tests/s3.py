"""A real S3 server (moto) on loopback, which counts requests and can be made to fail or to be slow."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

ERROR = b"<Error><Code>%s</Code><Message>made by a test</Message></Error>"
STATUS = {"SlowDown": "503 Slow Down", "InternalError": "500 Internal Server Error", "AccessDenied": "403 Forbidden",
          "ExpiredToken": "400 Bad Request"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    query: str
    fault: str | float | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


@dataclass
class S3:
    """The server; ``fault`` says what happens to a request: an error of S3, seconds to wait, or

    - ``drop``: the connection ends before an answer,
    - ``cut``: it ends in the middle of the answer's body.
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], str | float | None] = lambda request: None

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def client(self) -> Any:
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def uri(self, path: str, user: str = "") -> str:
        return f"s3://{user}{path}?endpoint_override={self.host}&scheme=http&region=us-east-1"

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of the objects, without the markers of empty folders; no request, so no fault either."""
        return sorted(key for key in dict(_objects(bucket)) if key.startswith(prefix) and not key.endswith("/"))

    def get(self, bucket: str, key: str) -> bytes:
        """The content of an object, without a request."""
        return bytes(_objects(bucket)[key].value)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, if it is there, without a request."""
        dict.pop(_objects(bucket), key, None)

    @contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """The requests of the block."""
        begin = len(self.requests)
        seen: list[Request] = []
        yield seen
        seen += self.requests[begin:]


def _objects(bucket: str) -> Any:
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys


def fails_first(times: int, error: str, wanted: Callable[[Request], bool] = lambda _: True) -> Callable[[Request], Any]:
    """Each wanted key's first ``times`` requests fail."""
    seen: dict[tuple[str, str], int] = {}
    guard = threading.Lock()

    def fault(request: Request) -> str | None:
        if not wanted(request):
            return None
        with guard:
            at = (request.method, request.key)
            seen[at] = seen.get(at, 0) + 1
            return error if seen[at] <= times else None

    return fault


def cut(answer: Iterable[bytes], connection: socket.socket) -> Iterator[bytes]:
    """The first half of an answer, whose header states its full length."""
    body = b"".join(answer)
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving() -> Iterator[S3]:
    """A server with an empty bucket ``bucket``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"].removeprefix("/bucket").lstrip("/")
        query = environ["QUERY_STRING"]
        request = Request(environ["REQUEST_METHOD"], path or "".join(parse_qs(query).get("prefix", [])), query)
        fault = s3.fault(request)
        s3.requests.append(replace(request, fault=fault))
        if fault == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if fault in STATUS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(STATUS[fault], [("Content-Type", "application/xml")])
            return [ERROR % str(fault).encode()]
        if isinstance(fault, float):
            time.sleep(fault)
        answer = moto(environ, start_response)
        return cut(answer, environ["werkzeug.socket"]) if fault == "cut" else answer

    server = make_server("127.0.0.1", 0, application, threaded=True)
    s3 = S3(f"http://127.0.0.1:{server.port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3.client.create_bucket(Bucket="bucket")
    try:
        yield s3
    finally:
        server.shutdown()
