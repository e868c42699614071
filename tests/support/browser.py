"""Opens a page in headless Chromium and reports what it does, through Chromium's debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
TIMEOUT_S = 120.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package: chromium)")


@dataclass
class PageView:
    """Record of how a browser showed a page."""

    requests: list[str] = field(default_factory=list)
    """URLs that it requested, without the page itself."""
    errors: list[str] = field(default_factory=list)
    """Console messages, script errors and dialogs."""
    values: list[Any] = field(default_factory=list)
    """Results of the expressions."""


def open_page(path: Path, *, width: int, expressions: list[str], screenshot: Path) -> PageView:
    """Open a file in a window of ``width`` pixels, evaluate JavaScript expressions in it, and take a screenshot.

    Windows below 600 pixels behave like those of a phone.
    """
    return asyncio.run(asyncio.wait_for(_open_page(path, width, expressions, screenshot), TIMEOUT_S))


async def _open_page(path: Path, width: int, expressions: list[str], screenshot: Path) -> PageView:
    view = PageView()
    loaded = asyncio.Event()
    url = path.resolve().as_uri()

    def record(event: dict[str, Any]) -> None:
        name, values = event["method"], event["params"]
        if name == "Network.requestWillBeSent" and values["request"]["url"] != url:
            view.requests.append(values["request"]["url"])
        elif name in (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Page.javascriptDialogOpening",
        ):
            view.errors.append(json.dumps(values)[:500])
        elif name == "Page.loadEventFired":
            loaded.set()

    async with _new_page() as socket:
        session = _Session(socket, record)
        for domain in ("Network", "Log", "Runtime", "Page"):
            await session.call(f"{domain}.enable")
        await session.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await session.call("Page.navigate", url=url)
        while not loaded.is_set():
            await session.read()
        for expression in expressions:
            reply = await session.call("Runtime.evaluate", expression=expression, returnByValue=True)
            assert "exceptionDetails" not in reply, reply
            view.values.append(reply["result"].get("value"))
        picture = await session.call("Page.captureScreenshot", format="png")
        screenshot.write_bytes(base64.b64decode(picture["data"]))
    return view


class _Session:
    """Calls of the debugging protocol; events that arrive in between go to ``on_event``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._socket, self._on_event, self._number = socket, on_event, 0

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
            self._on_event(message)
        return message


@contextlib.asynccontextmanager
async def _new_page() -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Start a browser, and yield the debugging socket of its empty page."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            while not (port.exists() and port.read_text().count("\n")):
                assert process.poll() is None, "Chromium exited at once"
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
