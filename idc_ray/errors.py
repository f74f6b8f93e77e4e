"""Errors that end a job, with the exit code of the command that each one means, and the one that sets an image aside.

Example:
    >>> import idc_ray
    >>> try:
    ...     idc_ray.condense("photos/", "out/", ratoi=0.1)
    ... except idc_ray.errors.BadRequest as error:
    ...     print(error)
    unknown setting 'ratoi'; did you mean 'ratio'?
"""

from __future__ import annotations

from idc_ray.redact import printable, redact_within

__all__ = ["BadRequest", "IdcError", "Interrupted", "Locked", "QuarantinedImages", "RejectedImage"]


class IdcError(Exception):
    """A command failed; the message names the value, what was expected and the fix.

    Args:
        message: credentials in it are removed, and control characters escaped but for line feeds.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(redact_within(message), kept="\n\t"))


class BadRequest(IdcError):
    """What was asked for cannot be done: a wrong setting, no images, a teacher of another scale."""

    exit_code = 2


class QuarantinedImages(IdcError):
    """The work is done, some images were quarantined, and ``--strict`` was given."""

    exit_code = 3


class Locked(IdcError):
    """Another process is working on the same output; the message names it."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; what was finished is kept. No ``except Exception`` on the way may swallow it."""

    exit_code = 130


class RejectedImage(Exception):
    """One image cannot be used. It is quarantined and the job goes on.

    Args:
        code: short, stable slug of the kind of fault, such as ``truncated``.
        reason: a sentence that a person understands, with the numbers; credentials in it are removed.
    """

    def __init__(self, code: str, reason: str) -> None:
        reason = redact_within(reason)
        super().__init__(code, reason)  # both positional: the exception survives pickling between processes
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"
