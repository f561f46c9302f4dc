"""Runs a study. Kept short, so that all the rest can be imported and tested.

python main.py [--config=configs/digits.py[:smoke]] [--workdir=DIR]
               [--config.KEY=VALUE ...] [--config.KEY.sweep='(V, W)' ...]
               [--phase=PHASE | --phase=FROM:TO] [--compilation_cache=DIR]
python main.py --config=... --phase=export [--arm=NAME] [--seed=S] [--out=DIR]
"""

import contextlib
import os
import sys

from kd import interrupts

if __name__ == "__main__":
  interrupts.watch()  # first of all: other imports take a third of a second

from absl import app, flags, logging

from kd.config import command_line
from kd.errors import UserError
from kd.parallel import compilation_cache

DEFAULT = os.path.join(os.path.dirname(__file__), "configs", "digits.py")


def define_flags() -> None:
  flags.DEFINE_string(
    "config",
    os.path.relpath(DEFAULT),
    "The study: a file with get_config(arg), as FILE or FILE:arg. "
    "--config.KEY=VALUE sets a key of it.",
  )
  flags.DEFINE_string(
    "workdir", "", "Where the study is kept; default runs/STUDY-HASH."
  )
  flags.DEFINE_string(
    "phase",
    "",
    "Run up to this phase (teacher, label, train, evaluate, report); FROM: "
    "runs from one on, FROM:TO those between. `export` writes a run of a "
    "finished study as a folder that needs jax alone.",
  )
  flags.DEFINE_string("arm", "", "Of --phase=export; '' is the best.")
  flags.DEFINE_integer(
    "seed", None, "Of --phase=export; the first if not given."
  )
  flags.DEFINE_string(
    "out", "", "Of --phase=export; default WORKDIR/export/ARM-seed_S."
  )
  flags.DEFINE_string(
    "compilation_cache",
    compilation_cache.default(),
    "Where compiled programs are kept for other runs; '' keeps none. The "
    "variable JAX_COMPILATION_CACHE_DIR goes before it.",
  )


def main(argv: list[str]) -> None:
  arguments, overrides = command_line.split(argv)
  define_flags()
  rest = flags.FLAGS(arguments)
  if len(rest) > 1:
    raise UserError(f"unknown argument {rest[1]!r}: expected flags alone")
  values = flags.FLAGS
  compilation_cache.use(values.compilation_cache)
  config = command_line.override(command_line.read(values.config), overrides)
  from kd import study  # after the flags: a typo need not wait for jax
  from kd.train import logs

  logging.use_absl_handler()
  logs.listen()
  # No shell does it after a =.
  workdir, out = map(os.path.expanduser, (values.workdir, values.out))
  which = {"arm": values.arm, "seed": values.seed, "out": out}
  if values.phase == "export":
    folder = study.write_export(config, workdir or None, **which)
    print(f"{folder}: a model of its own", flush=True)
    return
  for name, value in which.items():
    if value not in ("", None):
      raise UserError(f"--{name}={value}: of --phase=export alone")
  results = study.run(config, workdir or None, phase=values.phase)
  if results is not None:
    with contextlib.suppress(OSError):  # nobody reads it; the report has it
      print(study.verdict(results), flush=True)


def run() -> None:
  if any(a in ("-h", "--help", "-help", "--helpfull") for a in sys.argv[1:]):
    define_flags()
    app.run(main, argv=[sys.argv[0], "--help"])  # which shows it and exits
  try:
    main(sys.argv)
  except (UserError, flags.Error) as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    # Not sys.exit: on a full disk, libraries' exit hooks would only add their
    # own failures to write.
    os._exit(2)


if __name__ == "__main__":
  run()
