"""Notices at the top of the report: what to look at before trusting an output."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.progress.captions import metadata_note
from pipeline.progress.formatting import number, percent
from pipeline.report.dataset_stats import DatasetStats
from pipeline.report.int8_loss import MAX_LOSS_DB, describe_loss, mean_loss_db
from pipeline.report.pictures import Picture

MAX_REJECT_SHARE = 0.05
"""Share of rejected windows above which the report has a notice."""


def list_notices(stats: DatasetStats, pictures: Sequence[Picture] = ()) -> list[str]:
    """Return one sentence or two for every reason to look closer."""
    notices = []
    if not stats.finished:
        notices.append(
            f"Not finished: {stats.num_committed:,} of {stats.num_units:,} units are committed. Run the same encode "
            "command again to continue. This page counts what is committed."
        )
    if stats.num_rejects > MAX_REJECT_SHARE * stats.num_windows:
        notices.append(
            f"{percent(stats.num_rejects / stats.num_windows)} of all windows were rejected. "
            "'Skips and rejects' below says what to do about each reason."
        )
    if stats.total.clips and not stats.num_captions:
        notices.append("No clip has a caption. The note in the summary of the job says where there may be some.")
    notices += [f"{metadata_note(name, count)}." for name, count in sorted(stats.notes.items())]
    if assumed := stats.dataset.card.assumed:
        notices.append(
            f"{stats.dataset.card.class_name} is not in the table of supported VAEs. This was assumed of it: "
            f"{'; '.join(assumed)}. Compare this with the pipeline of its model before you train."
        )
    if stats.dataset.card.declared:
        notices.append(
            f"The latents were imported. Nothing verifies that they were made by {stats.dataset.card.class_name}, or that "
            f"they were {stats.dataset.recipe.imported_latents} in their source, but for the statistics of channels below."
        )
    loss_db = mean_loss_db((picture.psnr_db, picture.float16_psnr_db) for picture in pictures)
    if loss_db is not None and loss_db > MAX_LOSS_DB:
        notices.append(f"In the gallery, {describe_loss(loss_db)}.")
    channels = stats.latents.odd_channels(stats.dataset.card) if stats.latents else []
    if channels:
        notices.append(
            f"Normalized latents of channel{'s' * (len(channels) > 1)} {', '.join(map(str, channels))} are far from "
            "mean 0 and standard deviation 1. Compare the VAE's shift and scale with those of this dataset."
        )
    if tiled := stats.encode_paths["tiled"]:
        notices.append(
            f"{tiled:,} clips did not fit in memory as a whole and were encoded in tiles, which blends seams."
        )
    if units := stats.totals.other_environments:
        notices.append(
            f"{units:,} units were encoded with other versions, threads or devices than those that began the output, so "
            "the last bits of their latents may differ. The metadata of each unit names its environment."
        )
    if stats.num_removed:
        notices.append(
            f"Removed, but still in the shards until a purge: {number(stats.num_removed, 'clip')}. Latent statistics, the "
            "size of shards and clips by device include them; all other numbers leave them out."
        )
    devices = stats.totals.samples_by_device(stats.dataset.environment)
    if len(devices) > 1:
        notices.append(f"Clips by device: {', '.join(f'{device}: {clips:,}' for device, clips in devices.items())}.")
    return notices
