"""A page as a browser shows it: Chromium without a window, asked through its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
PATIENCE_S = 120.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package: chromium)")


@dataclass
class Sight:
    """What a browser made of a page."""

    requests: list[str] = field(default_factory=list)
    """URLs that it asked for beside the page itself."""
    complaints: list[str] = field(default_factory=list)
    """Messages of its console, errors of scripts, dialogs."""
    answers: list[Any] = field(default_factory=list)
    """Values of the expressions."""


def look(path: Path, *, width: int, expressions: list[str], screenshot: Path) -> Sight:
    """Open a file in a window of ``width`` pixels (as on a phone below 600), evaluate JavaScript expressions in it, and
    take a picture of what is seen then."""
    return asyncio.run(asyncio.wait_for(_look(path, width, expressions, screenshot), PATIENCE_S))


async def _look(path: Path, width: int, expressions: list[str], screenshot: Path) -> Sight:
    sight = Sight()
    loaded = asyncio.Event()
    url = path.resolve().as_uri()

    def notice(event: dict[str, Any]) -> None:
        name, values = event["method"], event["params"]
        if name == "Network.requestWillBeSent" and values["request"]["url"] != url:
            sight.requests.append(values["request"]["url"])
        elif name in (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Page.javascriptDialogOpening",
        ):
            sight.complaints.append(json.dumps(values)[:500])
        elif name == "Page.loadEventFired":
            loaded.set()

    async with _page() as socket:
        session = _Session(socket, notice)
        for domain in ("Network", "Log", "Runtime", "Page"):
            await session.call(f"{domain}.enable")
        await session.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await session.call("Page.navigate", url=url)
        while not loaded.is_set():
            await session.read()
        for expression in expressions:
            found = await session.call("Runtime.evaluate", expression=expression, returnByValue=True)
            assert "exceptionDetails" not in found, found
            sight.answers.append(found["result"].get("value"))
        picture = await session.call("Page.captureScreenshot", format="png")
        screenshot.write_bytes(base64.b64decode(picture["data"]))
    return sight


class _Session:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse, notice: Any) -> None:
        self._socket, self._notice, self._number = socket, notice, 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self.read()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    async def read(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json()
        if "method" in message:
            self._notice(message)
        return message


@contextlib.asynccontextmanager
async def _page() -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The debugging socket of a new browser's empty page."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            while not (port.exists() and port.read_text().count("\n")):
                assert process.poll() is None, "chromium ended at once"
                await asyncio.sleep(0.05)
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as reply:
                    targets = await reply.json(content_type=None)
                (target,) = (target for target in targets if target["type"] == "page")
                async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield socket
        finally:
            process.terminate()
            process.wait(30)
