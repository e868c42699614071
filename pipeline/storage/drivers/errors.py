"""Errors of the clients of stores: which are transient, their HTTP status, and the sentence that describes them.

Every message about a store gets its words from ``describe_error``. No client is imported here: an exception of a client
can only come from one that is imported already.
"""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

CLIENT_ERRORS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError", "ChecksumError", "NonRetryableError"),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "httpx": ("HTTPError", "InvalidURL", "StreamError"),
    "httpx2": ("HTTPError", "InvalidURL", "StreamError"),
    "huggingface_hub.errors": ("HfHubHTTPError", "HfUriError", "HFValidationError", "EntryNotFoundError"),
    "obstore.exceptions": ("BaseError",),
    "requests.exceptions": ("RequestException",),
}
"""Exceptions of clients by module. Most are no OSErrors."""
CONNECTION_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"),
    "azure.core.exceptions": ("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError", "FlexibleChecksumError", "IncompleteReadError"),
    "gcsfs.retry": ("ChecksumError",),
    "google.auth.exceptions": ("TransportError",),
    "httpx": ("TransportError", "StreamError"),
    "httpx2": ("TransportError", "StreamError"),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError"),
}
"""Exceptions of clients that mean a failed connection or half an answer, which another try may not meet."""
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
        errno.ESTALE,
        errno.ETIMEDOUT,
        getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: 500; macOS and Windows have no such number
    }
)
KEY_ERRORS = frozenset(
    "ExpiredToken InvalidToken TokenRefreshRequired InvalidAccessKeyId SignatureDoesNotMatch RequestTimeTooSkewed "
    "AuthenticationFailed InvalidAuthenticationInfo NoAuthenticationInformation".split()
)
"""Codes of the errors of S3 and Azure about the keys of a request."""
EXPIRED_KEY_ERRORS = frozenset({"ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"})
"""Those of them that the same user's next keys, or a clock that is set, do not meet."""
KEY_EXCEPTIONS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"})
"""Exceptions of clients that have no keys."""
BUSY_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown"})
"""Codes of S3's errors that pass, although their status is 400 or 409."""
NOT_FOUND = (404, 410)
MAX_CHARACTERS = 400
"""Longest description of an error. Some clients quote whole pages."""
TAGS = re.compile(r"<(style|script|head)\b.*?</\1>|<[^>]*>", re.I | re.S)
"""Markup of a page that a server sends instead of a message."""
SECRET_FIELD = re.compile(r"\b(AccountKey|SharedAccessSignature|sig|signature|access_token|token)=[^\s;&'\",]+", re.I)
"""A field of a connection string or query, which may be quoted without the URL."""
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
BAD_CERTIFICATE = re.compile("certificate.?verify.?failed|certificate verify failed|UnknownIssuer", re.I)

OBSTORE_STATUS = re.compile(r"status code: (\d{3})")
OBSTORE_CONNECTION = "HTTP error:"
"""Words of obstore's errors, whose type is the same for all: a status, or a connection that failed."""


class ShortRead(OSError):
    """A read returned fewer bytes than the file has there."""


def remote_errors() -> tuple[type[Exception], ...]:
    """The exceptions of file systems: OSError, and those of the clients that are in use."""
    return (OSError, asyncio.TimeoutError, *_loaded(CLIENT_ERRORS))  # the latter is an OSError since Python 3.11


def is_transient(error: BaseException) -> bool:
    """Return whether the request may succeed later: after time-outs, broken connections, busy or failing servers."""
    if BAD_CERTIFICATE.search(str(error)) or BAD_CERTIFICATE.search(str(error.__cause__ or "")):
        return False
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, ConnectionError, ShortRead)):
        return True
    if isinstance(error, _loaded(CONNECTION_ERRORS)):
        return True
    status = http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500 or error_code(error) in BUSY_CODES
    if _is_of_obstore(error):
        return OBSTORE_CONNECTION in str(error)
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def note_tries(error: BaseException, tries: int, seconds: float) -> None:
    """Keep for ``describe_error`` how often, and for how long, a request was tried in vain."""
    if tries > 1:
        error.__dict__["tried"] = f"tried {tries} times in {seconds:.0f} s"


def is_missing(error: BaseException) -> bool:
    """Return whether an error of a client says that there is no such file, container or repository."""
    return isinstance(error, FileNotFoundError) or http_status(error) in NOT_FOUND


def http_status(error: BaseException) -> int | None:
    """The HTTP status in an error or in its cause; None if it has none."""
    for cause in _causes(error):
        response = _response(cause)
        given = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, Mapping)
            else getattr(response, "status_code", None) or getattr(response, "status", None)
        )
        for value in (getattr(cause, "status", None), getattr(cause, "status_code", None), given):
            if isinstance(value, int) and 100 <= value <= 599:
                return int(value)
        code = str(getattr(cause, "code", "")) if type(cause).__module__.startswith(("gcsfs", "google")) else ""
        if re.fullmatch(r"[1-5]\d\d", code):
            return int(code)
        if str(cause).startswith("Forbidden: "):  # gcsfs
            return 403
        if _is_of_obstore(cause) and (named := OBSTORE_STATUS.search(str(cause))):
            return int(named[1])
    return None


def retry_after_s(error: BaseException) -> float | None:
    """Seconds that the server asks a client to wait before the next request; None if it names none."""
    for cause in _causes(error):
        response = _response(cause)
        if isinstance(response, Mapping):
            headers: Any = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        else:
            headers = getattr(response, "headers", None) or getattr(cause, "headers", None)
        if not isinstance(headers, Mapping):
            continue
        lower = {str(name).lower(): str(value) for name, value in headers.items()}
        if "retry-after" in lower:
            return _seconds(lower["retry-after"])
        limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", lower.get("ratelimit", ""))  # the Hub's: no requests left for t s
        if limit and http_status(cause) == 429:
            return float(limit[1])
    return None


def describe_error(error: BaseException) -> str:
    """One line with the HTTP status and the store's own words, without signatures, passwords and control characters."""
    status, words = http_status(error), _words(error)
    text = f"{status} {words}" if status is not None and not re.match(rf"\W*{status}\b", words) else words
    tried = f"; {error.__dict__['tried']}" if "tried" in error.__dict__ else ""
    return (tidy(text.strip()) or type(error).__name__) + tried + _advice_on_settings(error)


def tidy(text: str) -> str:
    """A text of a client in one line of bounded length, without the secrets that URLs may hold."""
    if text.lstrip().startswith("<"):
        text = TAGS.sub(" ", text)
    printable = "".join(character if character.isprintable() else " " for character in without_secrets(text))
    line = " ".join(printable.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."


def without_secrets(text: str) -> str:
    """Remove queries and user names from the URLs in an error's text, and tokens: they are signatures and passwords."""
    text = re.sub(r"\?\S+", "?...", re.sub(r"://[^/\s@]+@", "://", text))
    return SECRET_FIELD.sub(r"\1=...", HUB_TOKEN.sub("hf_...", text))


def is_about_keys(error: BaseException) -> bool:
    """Return whether a store refuses the keys themselves, and so every request, for example as a token has expired."""
    names = {type(cause).__name__ for cause in _causes(error)}
    return bool(names & KEY_EXCEPTIONS) or error_code(error) in KEY_ERRORS


def is_about_expired_keys(error: BaseException) -> bool:
    """Return whether a store refuses keys that it accepted before and the client could not renew."""
    is_not_renewed = any(type(cause).__name__ == "RefreshError" for cause in _causes(error))
    return is_not_renewed or error_code(error) in EXPIRED_KEY_ERRORS


def error_code(error: BaseException) -> str | None:
    """The code in the answer of S3 or Azure that caused an error, such as ``AccessDenied``; None if there is none."""
    for cause in _causes(error):
        response = _response(cause)
        code = response.get("Error", {}).get("Code") if isinstance(response, Mapping) else _azure_code(cause)
        if code:
            return str(code)
    return None


def _azure_code(error: BaseException) -> Any:
    code = getattr(error, "error_code", None)
    return getattr(code, "value", code)


def _advice_on_settings(error: BaseException) -> str:
    """The setting that helps against an error, as the end of a sentence about it; empty if there is none."""
    if type(error).__name__ == "FlexibleChecksumError":
        return "; set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, since this server sends the checksum of the whole file"
    return ""


def _words(error: BaseException) -> str:
    """Words of the store or its client, without the status."""
    for cause in _causes(error):
        response = _response(cause)
        if isinstance(response, Mapping) and response.get("Error"):  # botocore
            code, message = response["Error"].get("Code", ""), response["Error"].get("Message", "")
            return f"{'' if str(code).isdigit() else code}: {message}".removeprefix(": ")
        if code := _azure_code(cause):
            return f"{code}: {_azure_words(cause)}"
        if _response(cause) is not None and hasattr(cause, "server_message"):  # the Hub
            first = str(cause).partition("Client Error.")[2] or str(cause)
            return str(cause.server_message or _first_line(first))
        if hasattr(cause, "request_info") and getattr(cause, "status", None):  # aiohttp: its text quotes the whole URL
            return str(getattr(cause, "message", ""))
    if type(error).__module__.startswith("azure."):
        return _azure_words(error)
    if type(error).__module__.startswith("gcsfs."):
        return str(error).removesuffix(f", {http_status(error)}")
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        return error.strerror
    if isinstance(error, TimeoutError) and not str(error):
        return "the server did not answer in time"
    if _is_of_obstore(error):  # the server's page comes after the colon, and the client's own structures below
        words = str(error).partition(": <")[0].partition("\n\n")[0]
        return "the server did not answer in time" if "kind: Timeout" in str(error) else words
    return str(error.args[0]) if isinstance(error, ShortRead) else str(error)


def _azure_words(error: BaseException) -> str:
    """The message without the lines on request and time after it, unless it is a page."""
    text = str(getattr(error, "message", error)).strip()
    return text if text.startswith("<") else text.partition("\n")[0]


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("(Request ID", "For more details"))), "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that it was raised from."""
    cause: BaseException | None = error
    for _ in range(5):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _is_of_obstore(error: BaseException) -> bool:
    return type(error).__module__.startswith("obstore")


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _loaded(names_by_module: dict[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    """The classes among these that can have been raised, since their modules are imported."""
    modules = [(sys.modules.get(module), names) for module, names in names_by_module.items()]
    return tuple(getattr(module, name) for module, names in modules for name in names if hasattr(module, name))


def _seconds(header: str) -> float | None:
    """The value of a ``Retry-After`` header: a number of seconds or a date."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
