"""The gallery shows the source and the decoded latent, and says why a picture is missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.report import main
from pipeline.loader import LatentDataset
from pipeline.recipe import Run
from pipeline.report.pictures import read_pictures
from pipeline.report.round_trip import decode_back, psnr_db, source_frames
from pipeline.storage.store import Store
from stvae import load_vae
from tests.report.pages import page_of, text_of
from tests.support.golden import TINY


def test_the_gallery_shows_what_the_vae_makes_of_the_latents(output_with_gallery: Path, encoded_output: Path) -> None:
    pictures = {picture.id: picture for picture in read_pictures(Store(str(output_with_gallery)))}
    data = LatentDataset(str(output_with_gallery))
    ids = data.columns["id"].to_pylist()
    assert {picture.bucket for picture in pictures.values()} == {"32x56x17", "32x32x17", "32x56x1"}
    wide = [picture for picture in pictures.values() if picture.bucket == "32x56x17"]
    assert len({picture.key for picture in wide}) == len(wide) == 3, "pictures are of different videos"
    run = Run(
        output=str(output_with_gallery), vae=str(TINY), sources=(f"films={encoded_output.parent / 'videos'}",), cpus=2
    )
    vae = load_vae(str(TINY), only="decoder")
    shown_rows = [ids.index(picture.id) for picture in pictures.values() if not picture.error]
    assert len(shown_rows) == 4
    text = text_of((output_with_gallery / "report.html").read_text())
    for row, frames in zip(shown_rows, source_frames(run, data, shown_rows), strict=True):
        picture = pictures[ids[row]]
        decoded = decode_back(vae, data, row)
        assert picture.psnr_db == pytest.approx(psnr_db(frames, decoded), abs=0.01)
        assert f"{picture.psnr_db:.1f} dB" in text
        with Image.open(io.BytesIO(base64.b64decode(picture.webp))) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=float)
        expected = np.concatenate([frames[0], decoded[0]])
        assert np.abs(pixels[:, : expected.shape[1]] - expected).mean() < 16, "source above, decoded below"


def test_a_picture_whose_source_is_gone_is_replaced_by_the_reason(output_with_gallery: Path) -> None:
    text = text_of((output_with_gallery / "report.html").read_text())
    assert "No picture:" in text and "square.mp4 was there when it was planned and is gone now" in text


def test_a_report_without_the_vae_keeps_the_gallery(output_with_gallery: Path) -> None:
    before = page_of(output_with_gallery).count("data:image/webp")
    assert main([str(output_with_gallery)]) == 0
    assert before == (output_with_gallery / "report.html").read_text().count("data:image/webp") == 4


def test_a_named_source_needs_its_location(output: Path) -> None:
    assert main([str(output), "--vae", str(TINY), "--cpus", "2", "--samples", "1"]) == 0
    errors = {picture.error for picture in read_pictures(Store(str(output))) if picture.source == "films"}
    assert len(errors) == 1 and "where source 'films' is: give the same --source NAME=URL" in errors.pop()
