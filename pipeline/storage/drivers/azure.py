"""Azure Blob Storage with short retries of its own: adlfs tries for 90 s."""

from __future__ import annotations

import re
from typing import Any

from adlfs import AzureBlobFileSystem

RETRIES = {"total_retries": 2, "initial_backoff": 1, "increment_base": 1, "random_jitter_range": 1}
"""Settings of Azure's retry policy, which adlfs has no arguments for."""

TIMEOUTS = {"connection_timeout": 20, "read_timeout": 60}
"""Time limits of a request in seconds; Azure's own are 300."""


class AzureFiles(AzureBlobFileSystem):  # type: ignore[misc]
    """adlfs's file system."""

    def __init__(self, account_name: str | None = None, sas_token: str | None = None, **options: Any) -> None:
        self._named = account_name
        self._signature = sas_token
        self.connection_string: str | None
        super().__init__(account_name=account_name, sas_token=sas_token, **TIMEOUTS | options)

    def do_connect(self) -> None:
        """Make the client. ValueError if the settings are incomplete, or are those of another account than the URL's."""
        connected = re.search(r"AccountName=([^;]+)", self.connection_string or "")
        if self._named and connected and connected[1] != self._named:
            raise ValueError(
                f"the URL names the account '{self._named}', and AZURE_STORAGE_CONNECTION_STRING names '{connected[1]}'"
            )
        if self._signature and self.connection_string:
            self.connection_string = _with_signature(self.connection_string, self._signature)
        super().do_connect()
        for policy in getattr(getattr(self.service_client, "_pipeline", None), "_impl_policies", ()):
            if hasattr(policy, "total_retries"):
                vars(policy).update({name: value for name, value in RETRIES.items() if hasattr(policy, name)})


def _with_signature(connection_string: str, signature: str) -> str:
    """A connection string that signs with the signature of a URL, in place of the keys that adlfs would prefer."""
    fields = [field for field in connection_string.split(";") if field]
    kept = [field for field in fields if not field.startswith(("AccountKey=", "SharedAccessSignature="))]
    return ";".join([*kept, f"SharedAccessSignature={signature.lstrip('?')}"])
