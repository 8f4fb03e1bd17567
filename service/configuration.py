"""The settings of this process, from `evergreen.toml` and the environment.

Defaults < `evergreen.toml` < `EVERGREEN_<SECTION>__<KEY>`. A key nobody knows is an error that names the nearest right
one; so is a value of the wrong type. After `load` every path is absolute, so that a process started in another
directory sees the same files.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from monitoring.nearest import did_you_mean
from service.settings import (
    CONFIG_VARIABLE,
    FILE_NAME,
    HOME_VARIABLE,
    PREFIX,
    RESERVED_VARIABLES,
    SAMPLE,
    SECTIONS,
    Settings,
    SettingsError,
)
from service.settings_problems import problems
from training.source import is_path

_KUBERNETES_LINK: Final = re.compile(
    # A Kubernetes Service called "evergreen" (or "evergreen-…") puts these into every pod of its namespace.
    r"_SERVICE_(HOST|PORT(_\w+)?)=|_PORT=(tcp|udp|sctp)://|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?="
)


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    `config` (else `EVERGREEN_CONFIG`, else `evergreen.toml` in `EVERGREEN_HOME` or the working directory when it is
    there) is read first, then the environment (`os.environ` unless given). Relative paths in the file are relative to
    the file, those in the environment to the working directory. Raises `SettingsError`.
    """
    environ = os.environ if environ is None else environ
    here = Path.cwd()
    home = here / Path(environ[HOME_VARIABLE]).expanduser() if environ.get(HOME_VARIABLE) else None
    file = _file(config, environ, home or here)
    home = home or (file.parent if file else here)

    values: dict[str, Any] = _read(file) if file else {}
    origin = {(section, key): str(file) for section, keys in values.items() for key in keys}
    for variable, section, key, value in _variables(environ):
        values.setdefault(section, {})[key] = value
        origin[section, key] = variable
    for section, key in (("data", "source"), ("store", "var")):
        value = values.get(section, {}).get(key)
        if isinstance(value, str) and value not in ("", SAMPLE) and is_path(value):
            from_file = file is not None and origin[section, key] == str(file)
            folder = file.parent if file is not None and from_file else here
            values[section][key] = os.path.normpath(folder / Path(value).expanduser())

    top: dict[str, Any] = {"home": os.path.normpath(home), "config_file": str(file) if file else None}
    if environ.get("BENTOML_HOME"):
        top["bentoml_home"] = os.path.normpath(here / Path(environ["BENTOML_HOME"]).expanduser())
    try:
        # As JSON: strict about types (`port = true` is no port), yet lists may become tuples and strings paths.
        return Settings.model_validate_json(json.dumps(top | values, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError("\n".join(problems(error, origin, str(file)))) from None


def _file(config: Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    if config is not None:
        asked, by = config, "--config"
    elif environ.get(CONFIG_VARIABLE):
        asked, by = Path(environ[CONFIG_VARIABLE]), CONFIG_VARIABLE
    else:
        usual = folder / FILE_NAME
        return Path(os.path.abspath(usual)) if usual.is_file() else None
    path = Path(os.path.abspath(asked.expanduser()))
    if not path.is_file():
        raise SettingsError(f"{by}: no file {path}; `evergreen init` writes one")
    return path


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    for section, keys in values.items():
        if section not in SECTIONS:
            inside = [f"[{name}] {section}" for name, model in SECTIONS.items() if section in model.model_fields]
            hint = f", did you mean {inside[0]}?" if inside else did_you_mean(section, SECTIONS)
            raise SettingsError(f"{file}: unknown section [{section}]{hint or '; known: ' + ', '.join(SECTIONS)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"{file}: {section} is a section: write [{section}] and its keys below it")
    return values


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    """(variable, section, key, value as JSON) of each setting in the environment."""
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in RESERVED_VARIABLES:
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
        model = SECTIONS.get(section)
        if model is None or key not in model.model_fields:
            if _KUBERNETES_LINK.search(f"{variable}={environ[variable]}"):
                continue
            hint = did_you_mean(variable, _known_variables()) or "; settings are EVERGREEN_<SECTION>__<KEY>"
            raise SettingsError(f"{variable}: no such setting{hint}")
        yield variable, section, key, _from_text(environ[variable], model.model_fields[key])


def _known_variables() -> Iterator[str]:
    for section, model in SECTIONS.items():
        yield from (f"{PREFIX}{section}__{key}".upper() for key in model.model_fields)
    yield from RESERVED_VARIABLES


def _from_text(text: str, field: FieldInfo) -> Any:
    """A variable's text as the JSON value of its field; what cannot be read stays text, and validation names it."""
    kinds = set(_kinds(field.annotation))
    if kinds & {list, tuple, set, frozenset} and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if type(None) in kinds and text.strip().lower() in ("", "none", "null"):
        return None
    if bool in kinds and text.strip().lower() in _SWITCHES:
        return _SWITCHES[text.strip().lower()]
    if kinds & {int, float, bool, list, tuple, dict, set, frozenset}:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return text if isinstance(value, str) else value
    return text


_SWITCHES: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _kinds(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif origin in (list, tuple, dict, set, frozenset):
        yield origin
    elif origin is not None:
        for argument in get_args(annotation):
            yield from _kinds(argument)
    elif isinstance(annotation, type):
        yield annotation
