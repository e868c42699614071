"""Texts about the activities of encoders: labels for the report, and advice where encoders are idle."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.encode.utilization import NO_UNIT, Activity

MIN_ENCODER_S = 60.0
"""Encoder time below which no advice is given: the start of a job says little."""
MIN_IDLE_SHARE = 0.1
"""Share of the encoder time below which idle time gets no advice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivityText:
    """Texts about one activity of a unit."""

    label: str
    """Name of the activity in the report's breakdown of time."""
    awaited: str = ""
    """Thing that an idle encoder waits for. Empty for ``ENCODE``, during which the device is not idle."""
    remedy: str = ""
    """How to make that idle time shorter."""


ACTIVITY_TEXTS: dict[str, ActivityText] = {
    Activity.ENCODE: ActivityText(label="in the VAE"),
    Activity.DECODE: ActivityText(
        label="waiting for decoded clips",
        awaited="decoded clips",
        remedy="give each encoder more --cpus (machines with more CPUs per GPU), or use sources whose size is closer "
        "to the buckets",
    ),
    Activity.DEVICE: ActivityText(
        label="waiting for the other unit on the device",
        awaited="the device to start a call of the VAE",
        remedy="the machine is overloaded",
    ),
    Activity.FETCH: ActivityText(
        label="fetching videos",
        awaited="the bytes of the sources",
        remedy="move the sources closer (same region, faster disk), give each encoder more --cpus to read ahead, or "
        "use fewer --actors if they share one link",
    ),
    Activity.PACK: ActivityText(
        label="packing pixels and latents",
        awaited="pixels and latents to be packed",
        remedy="the CPUs are overloaded; give each encoder more --cpus, or use a larger --micro-batch in a new output",
    ),
    Activity.COMMIT: ActivityText(
        label="uploading and committing",
        awaited="the output's store",
        remedy="move the output closer, or make units larger (--unit-clips or larger tars, in a new output)",
    ),
    NO_UNIT: ActivityText(
        label="without a unit",
        awaited="units to work on",
        remedy="use fewer --actors or smaller units, so that every encoder has work until the end",
    ),
}
"""Texts by ``Activity`` or ``NO_UNIT``; the same words stand in reports and cause labels of idle time."""


def activity_label(name: str) -> str:
    """Return the label of an activity; the name itself for an activity of another version."""
    return ACTIVITY_TEXTS[name].label if name in ACTIVITY_TEXTS else name


def idle_advice(encoder_s: float, idle_s: dict[str, float]) -> str:
    """Return what to do about the idle seconds by cause out of ``encoder_s``; empty if they are too few to matter."""
    total_idle_s = sum(idle_s.values())
    if encoder_s < MIN_ENCODER_S or total_idle_s < MIN_IDLE_SHARE * encoder_s:
        return ""
    cause = max(idle_s, key=lambda name: idle_s[name])
    text = ACTIVITY_TEXTS.get(cause, ActivityText(label=cause))
    remedy = f": {text.remedy}" if text.remedy else ""
    return f"the encoders waited {total_idle_s / encoder_s:.0%} of the time, mostly for {text.awaited or cause}{remedy}"
