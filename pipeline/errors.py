"""What can go wrong, by who has to act.

LatentmillError
  ConfigError       the command is wrong, or the output was made with another recipe: nothing has started (exit 2)
  StoreError        the output's store failed after retries: run the command again (exit 1)
  SourceChanged     a planned source is not what it was when it was planned (exit 1)
  IntegrityError    committed data is not what its metadata says (exit 1)
Rejected            one item or window is bad: becomes a row, the job goes on
"""

from __future__ import annotations


class LatentmillError(Exception):
    """Ends the job with a message for the user."""

    exit_code = 1


class ConfigError(LatentmillError):
    """The arguments cannot be used as they are."""

    exit_code = 2


class StoreError(LatentmillError):
    """The store that holds the output did not do what was asked."""


class SourceChanged(LatentmillError):
    """A source's size or entity tag differs from the plan."""


class IntegrityError(LatentmillError):
    """Committed bytes or counts differ from what was recorded at commit."""


class Rejected(Exception):
    """This item or window cannot be used; ``kind`` is a stable word to group by, ``message`` is for people."""

    def __init__(self, stage: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.kind = kind
        self.message = message
