"""A config from a file and the command line's `--config.KEY=VALUE`s."""

import ast
import copy
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from kd.config.rules import Key
from kd.config.sections import IN_ARMS, SECTIONS
from kd.config.sweeps import is_sweep, sweep
from kd.errors import UserError

MOST = 300  # characters of an exception's words


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
  path, argument = _parts(os.path.expanduser(source))
  if not os.path.isfile(path):
    raise UserError(f"--config={source}: no file {path}")
  spec = importlib.util.spec_from_file_location("study_config", path)
  if spec is None or spec.loader is None:
    raise UserError(f"--config={source}: expected a file of Python, .py")
  module = importlib.util.module_from_spec(spec)
  # What the file defines, a TFDS builder say, is looked for there; and what
  # lies beside it can be imported.
  sys.modules[spec.name] = module
  sys.path.append(os.path.dirname(os.path.realpath(path)))
  try:
    spec.loader.exec_module(module)
    make = getattr(module, "get_config", None)
    takes = make is not None and bool(inspect.signature(make).parameters)
    if make is not None and (takes or not argument):
      config = make(argument) if takes else make()
  except BaseException as error:  # whatever it is: others' code
    raise UserError(f"{_place(error, path)}{_words(error)}") from error
  if make is None:
    raise UserError(f"{path}: has no function get_config")
  if argument and not takes:
    raise UserError(f"--config={source}: its get_config takes no argument")
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{path}: get_config returned {type(config).__name__}, expected the "
      "ConfigDict of kd.config.defaults"
    )
  return config


def _parts(source: str) -> tuple[str, str]:
  """Splits FILE:ARGUMENT at the first colon that leaves a file before it."""
  if os.path.isfile(source):
    return source, ""
  for i, letter in enumerate(source):
    if letter == ":" and os.path.isfile(source[:i]):
      return source[:i], source[i + 1 :]
  path, _, argument = source.partition(":")
  return path, argument


def _place(error: BaseException, path: str) -> str:
  """Says where in the config's file an exception comes from."""
  own = os.path.realpath(path)
  at_fault = isinstance(error, SyntaxError) and (error.filename or "")
  if at_fault and os.path.realpath(at_fault) == own:
    return f"{path}:{error.lineno}: "
  frames = traceback.extract_tb(error.__traceback__)
  frames = [f for f in frames if os.path.realpath(f.filename) == own]
  if not frames:
    return f"{path}: "
  return f"{path}:{frames[-1].lineno}, in {frames[-1].name}: "


def _words(error: BaseException) -> str:
  try:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(text.split())[:MOST]
  except Exception:  # of its own __str__
    text = ""
  if isinstance(error, ValueError | UserError) and text:
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
  try:
    config = _copy(copy.deepcopy(config))
  except (TypeError, RecursionError) as error:
    raise UserError(f"the config cannot be copied: {_words(error)}") from error
  for key, text in overrides:
    _set(config, key, text)
  return config


def _copy(node: ConfigDict) -> ConfigDict:
  """Copies a config, whose references stay what they are."""
  made = ConfigDict(type_safe=False)
  for key, value in node.items(preserve_field_references=True):
    made[key] = _copy(value) if isinstance(value, ConfigDict) else value
  return made


def _set(config: ConfigDict, key: str, text: str) -> None:
  path = key.split(".")
  grid = path[-1] == "sweep"
  names = path[:-1] if grid else path
  flag = f"--config.{key}={text}"
  if not all(names) or not names:
    raise UserError(f"{flag}: expected --config.KEY=VALUE, KEY of a section")
  node = config
  for depth, name in enumerate(names[:-1], 1):
    if name not in node:
      if not _may_begin(config, names[:depth]):
        raise UserError(
          f"{flag}: no key {'.'.join(names[:depth])}, expected one of "
          + ", ".join(node)
        )
      node[name] = ConfigDict(type_safe=False)
    node = node[name]
    if not isinstance(node, ConfigDict) or is_sweep(node):
      raise UserError(
        f"{flag}: {'.'.join(names[:depth])} is a value, not a section"
      )
  name, rule = names[-1], _rule(names)
  field = dict(node.items(preserve_field_references=True)).get(name)
  refers = isinstance(field, FieldReference)
  old = None if refers and field.empty() else node.get(name)
  if isinstance(old, ConfigDict) and is_sweep(old):
    old = (*old["sweep"], None)[0]
  elif isinstance(old, ConfigDict) and rule is None:
    raise UserError(f"{flag}: {key} is a section, expected a key of it")
  value = _literal(text) if grid else _value(text, old, rule)
  if grid and not isinstance(value, tuple | list):
    raise UserError(
      f"{flag}: expected a tuple of Python's literals, such as '(1.0, 2.0)'"
    )
  if grid:
    value = sweep(*(_like(old, v) for v in value))
  if refers and not grid:  # what is computed from it follows
    field.set(value, type_safe=False)
    return
  if name in node:  # or it would be made the old value's kind, if it can
    del node[name]
  node[name] = value


def _may_begin(config: ConfigDict, names: Sequence[str]) -> bool:
  """Whether a section may begin on the command line: those of an arm, and of
  what is tuned."""
  if list(names[:2]) == ["tune", "space"]:
    return True
  return len(names) >= 3 and names[0] == "arms" and names[1] in config.arms


def _value(text: str, old: Any, rule: Any) -> Any:
  """Reads a value: a text where the key has or wants one, else a literal."""
  value = _like(old, _literal(text))
  for read in (text, value) if rule is not None else ():
    if rule.accepts(read):
      return read
  return text if isinstance(old, str) else value


def _like(old: Any, value: Any) -> Any:
  """A whole number in a float's place is that float, so that 4 is 4.0."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  if isinstance(old, float) and whole and abs(value) < 2**53:
    return float(value)
  return value


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
