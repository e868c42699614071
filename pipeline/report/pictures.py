"""The gallery's pictures, kept in the output: a report that is made without the VAE shows them too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.int8_loss import describe_psnr
from pipeline.storage.store import Store

PATH = "previews/gallery.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One sample of the gallery: its picture, or the reason why there is none."""

    id: str
    bucket: str
    key: str
    source: str
    caption: str | None
    start_s: float
    end_s: float
    num_frames: int
    group: str | None = None
    """Group of buckets, if there are groups."""
    psnr_db: float = 0.0
    float16_psnr_db: float | None = None
    """PSNR of the same clip if it were stored as float16; for outputs of type int8."""
    webp: str = ""
    """The picture as WebP in base64."""
    width: int = 0
    height: int = 0
    error: str = ""

    @property
    def bucket_name(self) -> str:
        """The bucket with its group, as a recipe writes it."""
        return f"{self.group}={self.bucket}" if self.group else self.bucket

    @property
    def psnr_text(self) -> str:
        """PSNR for people; a picture without any difference has none."""
        return describe_psnr(self.psnr_db, self.float16_psnr_db)


def write_pictures(store: Store, pictures: Sequence[Picture]) -> None:
    """Write the gallery's pictures; replaces earlier ones."""
    store.put(PATH, json.dumps([dataclasses.asdict(picture) for picture in pictures]).encode())


def read_pictures(store: Store) -> list[Picture]:
    """Read the pictures that were written last; empty if there are none."""
    try:
        return [Picture(**values) for values in json.loads(store.get(PATH))]
    except FileNotFoundError:
        return []
