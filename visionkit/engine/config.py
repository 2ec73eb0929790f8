"""Configs: reading them, and one clear line for what is wrong in them."""

from __future__ import annotations

import inspect
import pprint
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from visionkit.checks import check_keys, nearest
from visionkit.errors import VisionKitError


class RunConfig(Config):
    """A Config with a plain text: mmengine's goes through yapf, which takes seconds each time a Runner asks for it."""

    @property
    def pretty_text(self) -> str:
        """The config as Python code, one top-level key after another."""
        return "".join(
            f"{key} = {pprint.pformat(plain(value), width=120, sort_dicts=False)}\n" for key, value in self.items()
        )


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config file. A config is Python code: only give a path that you trust.

    Args:
        path: A ``.py`` file.
        options: ``{"stages.target.epochs": 5}``: values to put in.

    Returns:
        The config, without the stages that are None.

    Raises:
        VisionKitError: there is no such file, it fails when it is run, or an option names a part that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise VisionKitError(f"{path}: no such config{nearest(str(path), map(str, path.parent.glob('*.py')))}")
    beside = str(path.resolve().parent)
    if beside not in sys.path:  # where custom_imports finds modules, after all that is installed
        sys.path.append(beside)
    try:
        cfg = Config.fromfile(str(path), lazy_import=False)  # else an import makes it one
    except SyntaxError as error:
        raise VisionKitError(
            f"{path}, line {error.lineno}: not valid Python ({error.msg}); correct the line"
        ) from error
    except Exception as error:
        if isinstance(error, KeyError) and "__name__" in str(error):  # of an import from ., which read_base() takes
            raise VisionKitError(
                f"{path}: read_base() is not known here; name the base by _base_ = ['base.py'], in a base too"
            ) from error
        raise VisionKitError(f"{path}: cannot be read as a config ({_one_line(error)})") from error
    for key in options or {}:
        _check_option(cfg, key)
    cfg.merge_from_dict(options or {})
    if isinstance(cfg.get("stages"), dict):  # a config that takes over another's stages leaves one out by None
        cfg.stages = {name: stage for name, stage in cfg.stages.items() if stage is not None}
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    """An option may add settings to a stage, whose constructor checks them, but not name a part that is not there."""
    here: Any = cfg
    parts = key.split(".")
    for part in parts[:2] if parts[0] == "stages" else parts[:-1]:
        if isinstance(here, (list, tuple)):
            here = here[int(part)] if part.isdigit() and int(part) < len(here) else None
            continue
        if not isinstance(here, dict) and not isinstance(here, Config):
            break
        if part not in here:
            raise VisionKitError(f"--cfg-options {key}: there is no {part!r}{nearest(part, here.keys())}")
        here = here[part]


def build(registry: Registry, cfg: dict[str, Any], where: str) -> Any:
    """Build an object; a misspelt type or key is a VisionKitError that offers the nearest names."""
    cfg = dict(cfg)
    name = cfg.get("type")
    if name is None:
        raise VisionKitError(f"{where}: has no type; expected one of {', '.join(known_names(registry))}")
    cls = find(registry, name, where) if isinstance(name, str) else name
    check_settings(cfg, cls, where)
    missing = _missing(cls, cfg)
    if missing:
        raise VisionKitError(f"{where}: {name} needs {', '.join(missing)}, which the config must give")
    cfg.pop("type")
    with building(where):
        return cls(**cfg)


@contextmanager
def building(where: str) -> Iterator[None]:
    """What goes wrong while a part is built is about its settings: a VisionKitError, that says where they stand."""
    try:
        yield
    except (VisionKitError, OSError, MemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise VisionKitError(f"{where}: cannot be built from its settings ({what}); correct them") from error


def find(registry: Registry, name: str, where: str) -> Any:
    """The class of a name, or an error that offers the nearest names."""
    cls = None
    try:
        cls = registry.get(name)
    except (KeyError, ImportError):
        pass
    if cls is None:
        raise VisionKitError(f"{where}: no {registry.name} is called {name!r}{nearest(name, known_names(registry))}")
    return cls


def known_names(registry: Registry) -> list[str]:
    """All names of a registry, with our scope."""
    registry.import_from_location()
    return sorted(f"visionkit.{name}" for name in registry.module_dict)


def check_types(cfg: Any, where: str = "config") -> None:
    """Refuse ``type`` names in a nested config that nothing has and, with our scope, keys that they do not take."""
    if isinstance(cfg, dict):
        name = cfg.get("type")
        if isinstance(name, str):
            ours = {f"visionkit.{each}": cls for each, cls in _classes("visionkit").items()}
            if name not in ours and not _is_elsewhere(name):
                raise VisionKitError(
                    f"{where}: nothing is called {name!r}{nearest(name, [*ours, *_classes('mmengine')])}"
                )
            if name in ours:
                check_settings(cfg, ours[name], where)
        for key, value in cfg.items():
            check_types(value, f"{where}.{key}" if where != "config" else str(key))
    elif isinstance(cfg, (list, tuple)):
        for i, value in enumerate(cfg):
            check_types(value, f"{where}[{i}]")


def _classes(library: str) -> dict[str, Any]:
    """Every class of the registries of ``visionkit`` or of ``mmengine``, whose names need no scope, by its name."""
    registries = vars(import_module(f"{library}.registry")).values()
    found = [each for each in registries if isinstance(each, Registry) and each.scope == library]
    for registry in found:
        registry.import_from_location()
    return {name: cls for registry in found for name, cls in registry.module_dict.items()}


def _is_elsewhere(name: str) -> bool:
    """Whether a name is mmengine's, or of a scope that another installed library may have."""
    scope, _, rest = name.rpartition(".")
    if scope in ("", "mmengine"):
        return rest in _classes("mmengine")
    return scope != "visionkit" and find_spec(scope.partition(".")[0]) is not None


def check_settings(cfg: dict[str, Any], cls: Any, where: str) -> None:
    """Refuse keys that a class or a function does not take, and switches that are neither True nor False, as 'no'."""
    known = _parameters(cls)
    settings = {key: value for key, value in cfg.items() if key != "type"}
    check_keys(settings, known, where)
    for name, value in settings.items():
        if (known or {}).get(name) in (bool, "bool") and not isinstance(value, bool):
            raise VisionKitError(f"{where}: {name}={value!r}; expected True or False")


def _parameters(cls: Any) -> dict[str, Any] | None:
    """What a class takes, with its types, through our own bases where it has ``**kwargs``; None where it takes any."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        init = base.__dict__.get("__init__") if inspect.isclass(cls) else base
        if init is None or base is object:
            continue
        if found and not base.__module__.startswith("visionkit."):
            return None  # the rest may go to a part instead
        parameters = inspect.signature(init).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        own = {p.name: p.annotation for p in parameters if p.kind in named and p.name != "self"}
        found = own | found  # bases may name an option again
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found
    return None


def _missing(cls: Any, cfg: dict[str, Any]) -> list[str]:
    return [
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in cfg
    ]


def plain(value: Any) -> Any:
    """Plain containers of a config's."""
    if isinstance(value, (dict, ConfigDict, Config)):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
