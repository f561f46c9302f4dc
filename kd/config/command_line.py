"""A config from a file and the command line's `--config.KEY=VALUE`s."""

import ast
import importlib.util
import inspect
import os
import traceback
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from kd.config.rules import Key
from kd.config.sections import IN_ARMS, SECTIONS
from kd.config.sweeps import is_sweep, sweep
from kd.errors import UserError


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Returns the other arguments, and (KEY, VALUE) of each `--config.KEY`.

  Raises:
    UserError: an override without its value.
  """
  rest, overrides = [], []
  words = iter(argv)
  for word in words:
    bare = word.lstrip("-")
    if not (word.startswith("-") and bare.startswith("config.")):
      rest.append(word)
      continue
    key, equals, value = bare.removeprefix("config.").partition("=")
    if not equals:
      following = next(words, None)
      if following is None:
        raise UserError(f"--config.{key} has no value: expected KEY=VALUE")
      value = following
    overrides.append((key, value))
  return rest, overrides


def read(source: str) -> ConfigDict:
  """Makes the config of FILE, or of FILE:ARGUMENT.

  Raises:
    UserError: there is no such file, or it makes no config; says where in the
      file that is.
  """
  path, _, argument = source.partition(":")
  if not os.path.isfile(path):
    raise UserError(f"--config={source}: no file {path}")
  try:
    spec = importlib.util.spec_from_file_location("study_config", path)
    if spec is None or spec.loader is None:
      raise UserError(f"--config={source}: expected a file of Python, .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "get_config", None)
    if make is None:
      raise UserError(f"{path}: has no function get_config")
    takes = bool(inspect.signature(make).parameters)
    if argument and not takes:
      raise UserError(f"--config={source}: its get_config takes no argument")
    config = make(argument) if takes else make()
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
  except (Exception, SystemExit) as error:
    raise UserError(f"{_place(error, path)}{_words(error)}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{path}: get_config returned {type(config).__name__}, expected the "
      "ConfigDict of kd.config.defaults"
    )
  return config


def _place(error: BaseException, path: str) -> str:
  """Says where in the config's file an exception comes from."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if os.path.realpath(f.filename) == _real(path)]
  if not own:
    return f"{path}: "
  return f"{path}:{own[-1].lineno}, in {own[-1].name}: "


def _real(path: str) -> str:
  return os.path.realpath(path)


def _words(error: BaseException) -> str:
  text = " ".join(str(error).split())
  if isinstance(error, ValueError):
    return text
  return f"{type(error).__name__}: {text}".rstrip(": ")


def override(
  config: ConfigDict, overrides: Sequence[tuple[str, str]]
) -> ConfigDict:
  """Returns the config with some of its keys set anew, in their order.

  A value is read as Python's literals are, and is a text where the key has
  one. KEY.sweep makes a grid of the key whatever it was; a plain value takes a
  grid's place. Names and values are checked with the rest of the config.

  Raises:
    UserError: a key of no section or arm.
  """
  config = ConfigDict(config.to_dict(), type_safe=False)
  for key, text in overrides:
    _set(config, key, text)
  return config


def _set(config: ConfigDict, key: str, text: str) -> None:
  path = key.split(".")
  grid = path[-1] == "sweep"
  node, *names = config, *(path[:-1] if grid else path)
  flag = f"--config.{key}={text}"
  for depth, name in enumerate(names[:-1]):
    if name not in node or node[name] is None:
      if not _may_begin(names[: depth + 1]):
        raise UserError(
          f"{flag}: no key {'.'.join(names[: depth + 1])}, expected one of "
          + ", ".join(node)
        )
      node[name] = ConfigDict(type_safe=False)
    node = node[name]
    if not isinstance(node, ConfigDict) or is_sweep(node):
      raise UserError(
        f"{flag}: {'.'.join(names[: depth + 1])} is a value, not a section"
      )
  name = names[-1]
  old = node.get(name)
  if is_sweep(old):
    old = (*old["sweep"], None)[0]
  elif isinstance(old, ConfigDict):
    raise UserError(f"{flag}: {key} is a section, expected a key of it")
  value = _literal(text) if grid else _value(text, old, names)
  if grid and not isinstance(value, tuple | list):
    raise UserError(f"{flag}: expected a tuple, such as '(1.0, 2.0)'")
  if name in node:  # or it would be made the old value's kind, if it can
    del node[name]
  node[name] = sweep(*value) if grid else value


def _may_begin(names: Sequence[str]) -> bool:
  """Whether a section may begin on the command line: an arm's own."""
  return len(names) == 3 and names[0] == "arms" and names[2] in IN_ARMS


def _value(text: str, old: Any, names: Sequence[str]) -> Any:
  """Reads a value: a text where the key has or wants one, else a literal."""
  value = _literal(text)
  rule = _rule(names)
  for read in (text, value) if rule is not None else ():
    if rule.accepts(read):
      return read
  return text if isinstance(old, str) else value


def _rule(names: Sequence[str]) -> Any:
  if names[0] == "arms" and len(names) > 3 and names[2] in IN_ARMS:
    names = names[2:]
  node: Any = SECTIONS
  for name in names:
    if not isinstance(node, dict) or name not in node:
      return None
    node = node[name]
  return node.rule if isinstance(node, Key) else None


def _literal(text: str) -> Any:
  words = {"true": True, "false": False, "none": None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text
