"""Runs a study. Kept short, so that all the rest can be imported and tested.

python main.py [--config=configs/digits.py[:smoke]] [--workdir=DIR]
               [--config.KEY=VALUE ...] [--phase=PHASE | --phase=FROM:TO]
"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

from kd.errors import UserError

DEFAULT = os.path.join(os.path.dirname(__file__), "configs", "digits.py")


def define_flags() -> None:
  """Defines the flags; ml_collections reads the config's overrides here."""
  config_flags.DEFINE_config_file(
    "config",
    os.path.relpath(DEFAULT),
    "The study: a file with get_config(arg), as FILE or FILE:arg.",
  )
  flags.DEFINE_string(
    "workdir", "", "Where the study is kept; default runs/STUDY-HASH."
  )
  flags.DEFINE_string(
    "phase",
    "",
    "Run up to this phase (teacher, label, train, evaluate, report); FROM: "
    "runs from one on, FROM:TO those between.",
  )


def parse(argv: list[str]) -> list[str]:
  """Parses the flags and sees that there is a config, and nothing more."""
  rest = flags.FLAGS(argv)
  if len(rest) > 1:
    raise UserError(f"unknown argument {rest[1]!r}: expected flags alone")
  flags.FLAGS.config.keys()  # raises where the file could not be loaded
  return rest


def main(argv: list[str]) -> None:
  del argv
  from kd import study
  from kd.train import logs  # after the flags: a typo need not wait for jax

  logs.listen()
  study.log_devices()
  study.run(
    flags.FLAGS.config, flags.FLAGS.workdir or None, phase=flags.FLAGS.phase
  )


def run() -> None:
  try:
    # What a config file or a flag's parser raises is about the user's input.
    try:
      define_flags()
      if any(a.lstrip("-").startswith("help") for a in sys.argv[1:]):
        app.run(main)  # which shows the help and exits
      parse(sys.argv)
    except Exception as error:
      raise UserError(_brief(error)) from error
    app.run(main, flags_parser=lambda argv: argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    # Not sys.exit: on a full disk, libraries' exit hooks would only add their
    # own failures to write.
    os._exit(2)


def _brief(error: Exception) -> str:
  """Returns an exception's words, of a traceback in them the end alone."""
  words = str(error).strip()
  if isinstance(error, AttributeError | KeyError):  # from ml_collections
    words = words.replace("\\n", ". ").replace("\\'", "").strip("\"'")
    return f"--config.KEY=VALUE: the config has no key {words!r}"
  before, traceback, _ = words.partition("Traceback")
  return before + " " + words.splitlines()[-1] if traceback else words


if __name__ == "__main__":
  run()
