"""Errors and rejects, grouped by who has to act.

LatentmillError
  ConfigError       the command is wrong, or the output was made with another recipe: nothing has started (exit 2)
    Purged          what is to be read was removed for good (exit 2)
  StoreError        the output's store failed after retries: run the command again (exit 1)
  SourceChanged     a planned source is not what it was when it was planned (exit 1)
  IntegrityError    committed data is not what its metadata says (exit 1)
Rejected            one item or window is bad: becomes a row, the job goes on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stvae.card import UnknownVAE
from stvae.weights import WeightsError


class LatentmillError(Exception):
    """Ends the job with a message for the user."""

    exit_code = 1

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *details]))
        self.lines = (message, *details)
        """The message, and lines to print below it. Line breaks inside of them come from others."""


class ConfigError(LatentmillError):
    """The arguments cannot be used as they are."""

    exit_code = 2


class Purged(ConfigError):
    """A purge has removed what is to be read. Its message names the purge."""


class StoreError(LatentmillError):
    """The store that holds the output did not do what was asked."""


class StoreRefusal(StoreError):
    """A store refused a request, for example because a key is missing or lacks a right. Trying again cannot help."""


class KeyRefusal(StoreError):
    """A store refused the keys of a request, and so refuses every request with them."""


class SourceChanged(LatentmillError):
    """A source's size or entity tag differs from the plan."""

    @classmethod
    def between(cls, name: str, planned: object, found: object | None) -> SourceChanged:
        """The error that says what planning saw of ``name`` and what is there now; None where it is gone."""
        if found is None:
            return cls(f"{name} was there when it was planned and is gone now")
        return cls(f"{name} was {planned} when it was planned and is {found} now")


class IntegrityError(LatentmillError):
    """Committed bytes or counts differ from what was recorded at commit."""


USER_ERRORS = (LatentmillError, WeightsError, UnknownVAE)
"""Errors that a command reports in one sentence, with an exit code."""


def exit_code(error: Exception) -> int:
    """Exit code for one of ``USER_ERRORS``. A VAE that cannot be used counts as a wrong argument."""
    return error.exit_code if isinstance(error, LatentmillError) else ConfigError.exit_code


NAME_SEPARATOR = "/"
"""Between stage and reason in a reject's name."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Why an item or a window became no sample."""

    stage: str
    """Where it arose: read, fetch, probe, decode, encode or import."""
    reason: str
    """A stable word to group by."""
    message: str
    """One sentence for people."""

    @property
    def name(self) -> str:
        """``stage/reason``: the key under which rejects are counted and retried."""
        return f"{self.stage}{NAME_SEPARATOR}{self.reason}"

    @staticmethod
    def parse_name(name: str) -> tuple[str, str]:
        """The stage and the reason in a ``name``; a bare reason has an empty stage."""
        stage, _, reason = name.rpartition(NAME_SEPARATOR)
        return stage, reason


class Rejected(Exception):
    """Raised where an item or a window cannot be used; carries its ``Reject``."""

    def __init__(self, stage: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.reject = Reject(stage, reason, message)

    @classmethod
    def because(cls, reject: Reject) -> Rejected:
        """The exception that carries ``reject``."""
        return cls(reject.stage, reject.reason, reject.message)


def refuse_unknown_fields(what: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise IntegrityError, which names them, if ``values`` has fields that are not ``known``."""
    unknown = sorted(name for name in values if name not in known)
    if unknown:
        raise IntegrityError(
            f"{what} has fields that this program does not know: {', '.join(unknown)}; "
            "use the newer Latentmill that wrote it"
        )


def refuse_unknown_words(what: str, values: Mapping[str, Any], record_type: type) -> None:
    """Raise IntegrityError if a field that takes one of several words (``Literal``) has another one in ``values``."""
    for name, hint in get_type_hints(record_type).items():
        if get_origin(hint) is Literal and name in values and values[name] not in get_args(hint):
            raise IntegrityError(f"{what} has {name} '{values[name]}', which this program does not know")


def check_recorded(what: str, values: Mapping[str, Any], record_type: Any) -> None:
    """Raise IntegrityError unless ``values`` make a record of this dataclass: no unknown fields or words, none missing."""
    fields = {field.name: field for field in dataclasses.fields(record_type)}
    refuse_unknown_fields(what, values, fields)
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise IntegrityError(f"{what} lacks {', '.join(missing)}")
    refuse_unknown_words(what, values, record_type)
