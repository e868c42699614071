"""Cleaning of captions: the rules of Open-Sora 1.2's dataset tool, and the shorter ones of other families.

A cleaning is a pure function of a string. ftfy and BeautifulSoup are imported when one is first called.
"""

# ruff: noqa: RUF001  the rules are about characters that look alike

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable
from urllib.parse import unquote_plus

MAX_CLEANED_CHARACTERS = 4096
"""Open-Sora's rules see the first characters of a caption only: some of them take time that grows with the square."""
FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
TOP_DOMAINS = "com|co|ru|net|org|edu|gov|it"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015"
    "\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
"""Every kind of dash. The first one is the plain one."""
CJK = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"
PUNCTUATION = r"#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*"

Rule = tuple[re.Pattern[str], str]
"""A pattern, and what its matches become."""


def _url(scheme: str) -> str:
    return rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:{TOP_DOMAINS})[\w/-]*\b/?(?!@))"


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


BEFORE_HTML = _rules(
    ("<person>", "person"),
    (_url("https?"), ""),
    (_url("www"), ""),
)
AFTER_HTML = _rules(
    (r"@\w+\b", ""),  # nicknames
    *((f"[{CJK[start : start + 3]}]+", "") for start in range(0, len(CJK), 3)),
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article ids
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILE_TYPES})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (f"[{PUNCTUATION}]+", " "),
    (r"\s+\.\s+", " "),
)
MAX_JOINTS = 3
"""Number of dashes and underscores that a caption may have before they all become spaces: this-is-my-cute-cat."""
JOINT = re.compile("[-_]")
LAST = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILE_TYPES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # sizes; the second letter is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_open_sora(caption: str) -> str:
    """Clean a caption as Open-Sora 1.2's dataset tool and its inference do: all rules, twice.

    The rules lowercase it and remove URLs, HTML, nicknames, CJK signs, numbers of articles and files, words of shops
    and most punctuation. They go back to DeepFloyd IF and serve PixArt and Allegro (``clean_caption``) too.
    """
    return _clean_once(_clean_once(caption[:MAX_CLEANED_CHARACTERS]))


def _clean_once(caption: str) -> str:
    import ftfy

    caption = _apply(BEFORE_HTML, unquote_plus(caption).strip().lower())
    caption = _apply(AFTER_HTML, _text_of_html(caption))
    if len(JOINT.findall(caption)) > MAX_JOINTS:
        caption = JOINT.sub(" ", caption)
    return _apply(LAST, html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


def _apply(rules: tuple[Rule, ...], caption: str) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


def _text_of_html(caption: str) -> str:
    """The text between tags; the caption itself if it is no HTML that can be read."""
    from bs4 import BeautifulSoup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about text that looks like the name of a file
            return str(BeautifulSoup(caption, features="html.parser").text)
    except Exception:  # the parser refuses broken declarations with errors of several kinds
        return caption


def clean_wan(caption: str) -> str:
    """Repair wrong encodings, replace HTML entities and join white space: what Wan and Kandinsky 5 do to every prompt."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption))).strip()).strip()


def clean_lowercase(caption: str) -> str:
    """Lowercase a caption and strip it: what Allegro and SANA do without ``clean_caption``."""
    return caption.lower().strip()


def keep(caption: str) -> str:
    """The caption as it is."""
    return caption


CLEANINGS: dict[str, Callable[[str], str]] = {"none": keep, "open-sora": clean_open_sora}
"""The choices of ``--clean``. What a family itself does to every prompt is in its row of the table, and comes after."""
