"""Opens file systems by URI, with the retries and time-outs of object stores."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

from idc_ray.errors import BadRequest, IdcError

#: Attempts of one request. Waits double up to 20 s and are drawn at random: about 35 s in all on average.
ATTEMPTS = 8
#: Seconds to connect, and without a byte before a request is tried again; pyarrow's 1 and 3 are too short for a
#: store that is asked for much.
CONNECT_S, REQUEST_S = 10.0, 30.0
#: A request for a header has no text of its answer: an expired token is a status of 400 only.
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE",
            "UNRECOGNIZED_CLIENT", "INVALID_CLIENT_TOKEN", "HTTP status 400", "HTTP status 401",
            "HTTP status 403")  # fmt: skip


class StoreUnavailable(IdcError, OSError):
    """An object store refused a request, or failed to answer it in all attempts.

    Also an OSError: code that can go on without the answer, such as a heartbeat, handles it like an error of a disk.
    """

    __str__ = Exception.__str__  # OSError's would look for a number


def open_uri(uri: str) -> tuple[FileSystem, str]:
    """The file system of a URI and the path in it.

    S3: ``endpoint_override`` and ``region`` of the URI, else ``AWS_ENDPOINT_URL`` and the usual AWS settings, are fixed
    here and travel to the workers; credentials travel only if they are in the URI. A file below 10 MiB is one PUT.

    Raises:
        ValueError, OSError, NotImplementedError, pyarrow.ArrowException: as pyarrow; the text may quote credentials.
    """
    filesystem, path = FileSystem.from_uri(uri)
    if type(filesystem) is S3FileSystem:
        settings: dict[str, Any] = filesystem.__reduce__()[1][0]
        # delayed: only then pyarrow knows at the end that the file is small, and spares two requests of three.
        settings |= {"allow_delayed_open": True, "connect_timeout": CONNECT_S, "request_timeout": REQUEST_S}
        filesystem = _open_s3(settings)
    return filesystem, path


def explain(error: Exception) -> str:
    """What to do about an object store's error."""
    if any(mark in str(error) for mark in _REFUSED):
        return (
            "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role), "
            "that they have not expired, and that they may list, read, write and delete there; then run the same "
            "command again: finished images are kept"
        )
    tried = f"it was tried {attempts()} times (AWS_MAX_ATTEMPTS); " if "AWS Error" in str(error) else ""
    return f"{tried}once the store is available, run the same command again: finished images are kept"


def attempts() -> int:
    """Attempts of one request: ``AWS_MAX_ATTEMPTS``, as in Amazon's own tools, or `ATTEMPTS`.

    Raises:
        BadRequest: it is no number from 1 on.
    """
    text = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if not text.isdecimal() or int(text) < 1:
        raise BadRequest(f"AWS_MAX_ATTEMPTS is {text!r}; expected a number of attempts, 1 or more")
    return int(text)


def waits() -> Iterator[float]:
    """Seconds between the attempts where pyarrow makes only one."""
    for attempt in range(attempts() - 1):
        yield random.uniform(0.5, 1.0) * min(2.0**attempt, 20.0)


class _S3(S3FileSystem):
    """pyarrow's loses the retry strategy when it is pickled, and with it every worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, (super().__reduce__()[1][0],)


def _open_s3(settings: dict[str, Any]) -> S3FileSystem:
    return _S3(**settings, retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts()))
