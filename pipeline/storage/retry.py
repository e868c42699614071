"""Tries requests again that may succeed later: a bounded number of times, with growing random pauses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import tenacity

TRIES = 6
LONGEST_PAUSE_S = 20.0
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # s3fs: 409, 503 and SlowDown
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,  # s3fs: every status without a name of its own, such as 502 and 504
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.EREMOTEIO,  # s3fs: 500
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
KEY_ERRORS = frozenset(
    "ExpiredToken InvalidToken TokenRefreshRequired InvalidAccessKeyId SignatureDoesNotMatch".split()
)
"""Codes of S3's errors about the keys of a request."""

T = TypeVar("T")


class ShortRead(OSError):
    """A read returned fewer bytes than the file has there."""


class RangesIgnored(OSError):
    """A server sent more than the range of a file that a request named."""


def check_length(data: bytes, size_bytes: int) -> bytes:
    """The data. ShortRead if they are not as long as the file."""
    if len(data) != size_bytes:
        raise ShortRead(f"got {len(data)} of {size_bytes} bytes")
    return data


def check_range(data: bytes, length: int) -> bytes:
    """The data of a range. ShortRead if they are shorter, RangesIgnored if they are longer."""
    if len(data) > length:
        raise RangesIgnored(
            f"the server sent {len(data)} bytes for a range of {length}: it does not answer requests for ranges, so its "
            "files must be copied to a disk or another store before they are read"
        )
    return check_length(data, length)


def retried(call: Callable[[], T], *, also: tuple[type[Exception], ...] = ()) -> T:
    """Call up to ``TRIES`` times while it fails with a transient error. Raises the last error.

    ``also``: further errors to treat as transient. A failed call may have taken effect and lost its answer, so calling
    twice must be safe.
    """
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_S),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, also) or is_transient(error)),
        reraise=True,
    )(call)


def is_transient(error: BaseException) -> bool:
    """Return whether the request may succeed later: after time-outs, broken connections, busy or failing servers."""
    if isinstance(error, (TimeoutError, ConnectionError, ShortRead)):
        return True
    status = _http_status(error)
    if status is not None:
        return status == 429 or status >= 500
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_ERRNOS
    return isinstance(error, remote_errors()) and not _is_refusal(error)


def is_about_keys(error: BaseException) -> bool:
    """Return whether S3 refuses the keys themselves, and so every request, for example because a token has expired."""
    return error_code(error) in KEY_ERRORS


def error_code(error: BaseException) -> str | None:
    """The code in the answer of S3 that caused an error, such as ``AccessDenied``; None if there is none."""
    response = getattr(error.__cause__ or error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else None


def remote_errors() -> tuple[type[Exception], ...]:
    """The exceptions of file systems. The clients of remote ones have their own, which are no OSErrors."""
    return (OSError, *_http_errors(), *_s3_errors())


def _http_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (aiohttp.ClientError,)


def _s3_errors() -> tuple[type[Exception], ...]:
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return ()
    return (BotoCoreError, ClientError)


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in an error; None if it has none."""
    status = getattr(error, "status", None)
    if status is None:
        response = getattr(error, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return status if isinstance(status, int) else None


def _is_refusal(error: BaseException) -> bool:
    """Return whether an S3 client refused to send the request: it has no credentials, or wrong parameters."""
    try:
        from botocore.exceptions import BotoCoreError, HTTPClientError
        from botocore.exceptions import ConnectionError as ConnectionFailed
    except ImportError:
        return False
    return isinstance(error, BotoCoreError) and not isinstance(error, (HTTPClientError, ConnectionFailed))


def advice_on_settings(error: BaseException) -> str:
    """Return the setting that helps against an error, as the end of a sentence about it; empty if there is none."""
    if type(error).__name__ == "FlexibleChecksumError":
        return "; set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, since this server sends the checksum of the whole file"
    return ""
