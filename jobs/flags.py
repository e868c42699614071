"""The flags of ``encode_dataset.py``, derived from the fields of ``Recipe`` and ``Run``.

A field's name, type, default and docstring become the flag's name, parser, default and help; ``pipeline.setting.Setting``
adds what these do not say. Command line, configuration files and ``--print-config`` all use ``FLAGS``. A flag's value is
None where its default applies, so that the default stands in the dataclass only.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.bucket import Bucket, split_buckets
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe, Run
from pipeline.setting import Setting

Reader = Callable[[str], Any]
"""Parses the text of one value. ValueError names what was expected; ConfigError has the whole message."""

COMPUTED = ("vae", "scene_detector", "origin", "imported_latents")
"""Fields of ``Recipe`` that the job fills in."""
PLACES = ("sources", "output", "vae")
"""Fields of ``Run`` that have a group of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """A field of ``Recipe`` or ``Run`` as users write it: ``--name`` on the command line, ``name:`` in a file."""

    name: str
    field: str
    owner: type
    read: Reader
    metavar: str
    """Placeholder of the value in the help."""
    is_list: bool
    """True if the field is a tuple."""
    default: Any
    """Value of the field where the flag is not given; ``dataclasses.MISSING`` where it must be given."""
    help: str
    setting: Setting

    @property
    def is_required(self) -> bool:
        """True if the field has no default."""
        return self.default is dataclasses.MISSING

    @property
    def is_switch(self) -> bool:
        """True if the command line takes it without a value: ``--name`` or ``--no-name``."""
        return self.read is read_switch

    @property
    def default_text(self) -> str:
        """The default in words, for the help; empty where there is nothing to say."""
        if self.setting.environment:
            return f"{self.setting.environment} if set, else {self.default}"
        if self.setting.default_word:
            return self.setting.default_word
        if self.is_required or self.is_switch or self.default in (None, ()):
            return ""
        return ",".join(str(self.to_plain(value)) for value in _as_tuple(self.default))

    def parse(self, texts: Sequence[str], place: str) -> Any:
        """The field's value from its texts, or None for the default. ConfigError names ``place``, expected and got."""
        if len(texts) != 1 and not self.is_list:
            raise ConfigError(f"{place}: expected one value, got {len(texts)}")
        if len(texts) == 1 and self._means_default(texts[0]):
            return None
        values = tuple(self._parse_one(text, place) for text in texts)
        return values if self.is_list else values[0]

    def split(self, text: str) -> list[str]:
        """The texts of the values that one text holds."""
        if self.setting.in_groups:
            return split_buckets(text)
        return [part.strip() for part in text.split(",")] if self.setting.comma_separated else [text]

    def to_plain(self, value: Any) -> Any:
        """One value as YAML writes it: a number, a truth value or a text."""
        if self.setting.unit != 1:
            return int(amount) if (amount := value / self.setting.unit) == int(amount) else amount
        return str(value) if isinstance(value, Bucket) else value

    def _means_default(self, text: str) -> bool:
        optional_text = self.read is read_text and not self.is_required and not self.is_list
        return text in (self.setting.default_word, self.setting.former_word) or (optional_text and not text)

    def _parse_one(self, text: str, place: str) -> Any:
        try:
            return self.read(text)
        except ValueError as error:
            word = f" or '{self.setting.default_word}'" if self.setting.default_word else ""
            raise ConfigError(f"{place}: expected {error}{word}, got '{text}'") from None
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None


def read_text(text: str) -> str:
    """Any text but an empty one."""
    if not text:
        raise ValueError("some text")
    return text


def read_switch(text: str) -> bool:
    """A truth value in any spelling of YAML 1.1."""
    word = text.lower()
    if word not in ("true", "false", "yes", "no", "on", "off"):
        raise ValueError("true or false")
    return word in ("true", "yes", "on")


def read_number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def read_whole_number(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


READERS: dict[Any, tuple[Reader, str]] = {
    str: (read_text, "TEXT"),
    bool: (read_switch, ""),
    float: (read_number, "N"),
    int: (read_whole_number, "N"),
    Bucket: (Bucket.parse, "HxWxT"),
}
"""The parser of one value and its placeholder, by the type of a field."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known name that is most like it, or where to find them all."""
    matches = difflib.get_close_matches(name.replace("_", "-"), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else "; --help lists them all"


def derive_flags(owner: type) -> list[Flag]:
    """One flag per field of ``owner``, in the order of the fields."""
    hints, docs = get_type_hints(owner, include_extras=True), _field_docs(owner)
    return [_derive_flag(owner, field, hints[field.name], docs[field.name]) for field in dataclasses.fields(owner)]


def _derive_flag(owner: type, field: dataclasses.Field[Any], hint: Any, doc: str) -> Flag:
    setting = Setting()
    if get_origin(hint) is Annotated:
        hint, setting = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    is_list = get_origin(hint) is tuple
    if is_list:
        hint = get_args(hint)[0]
    read, metavar = _reader(hint, setting)
    metavar = setting.metavar or metavar
    return Flag(
        name=setting.flag or field.name.replace("_", "-"),
        field=field.name,
        owner=owner,
        read=read,
        metavar=f"{metavar}|{setting.default_word}" if setting.default_word else metavar,
        is_list=is_list,
        default=field.default if field.default_factory is dataclasses.MISSING else None,
        help=" ".join(doc.partition("\n\n")[0].split()),
        setting=setting,
    )


def _reader(hint: Any, setting: Setting) -> tuple[Reader, str]:
    """The parser of one value of type ``hint`` and its placeholder. A number is multiplied by the setting's unit."""
    if get_origin(hint) is Literal:
        words = tuple(word for word in get_args(hint) if word not in setting.computed_words)
        return _read_one_of(words), "{" + ",".join(words) + "}"
    if setting.unit == 1:
        return READERS[hint]
    return lambda text: round(read_number(text) * setting.unit), "N"


def _read_one_of(words: tuple[str, ...]) -> Reader:
    def read_word(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return read_word


def _field_docs(owner: type) -> dict[str, str]:
    """The docstring behind each field of a dataclass, which Python itself does not keep."""
    tree = ast.parse(inspect.getsource(owner))
    statements = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    docs = {}
    for statement, following in itertools.pairwise(statements):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = inspect.cleandoc(doc)
    return docs


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _groups() -> dict[str, list[Flag]]:
    recipe = [flag for flag in derive_flags(Recipe) if flag.field not in COMPUTED]
    run = derive_flags(Run)
    return {
        "source, output and VAE": [flag for flag in run if flag.field in PLACES],
        "recipe (changes the output; an output keeps to one)": recipe,
        "run (free to change from one run to the next)": [flag for flag in run if flag.field not in PLACES],
    }


GROUPS = _groups()
"""Flags by the title of their group in the help and in printed files."""
FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}
