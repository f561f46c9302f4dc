"""A trained student as a Hugging Face folder, which transformers loads.

    python -m kd.study.export WORKDIR --arm=NAME [--seed=S] --out=FOLDER

The last weights, or with --best those that were best on validation; adapters
are added to what they belong to. With the tokenizer's files.
"""

import os
from typing import Any

import jax
from absl import flags
from flax import nnx

from kd import config, files
from kd.config import made
from kd.data.registry import load
from kd.errors import UserError
from kd.models import adapters, functional, pretrained
from kd.models.decoder import Decoder, build
from kd.study import replicates, students
from kd.teachers import answers, command, model
from kd.train import arms, checkpoint, loop
from kd.train.batches import Setup


def export(
  workdir: str, arm: str, seed: int | None, out: str, best: bool = False
) -> None:
  """Writes the student of one run.

  Args:
    workdir: of a study whose training has ended.
    arm: its name.
    seed: the run's; None is the study's first.
    out: the folder to write.
    best: the weights that were best on validation, not the last.

  Raises:
    UserError: no such run, one that diverged, no decoder, or one that knows a
      part of the tokenizer's ids, which no tokenizer of such a folder writes.
  """
  path = os.path.join(workdir, "config.json")
  found = files.read_json(path, "config of a study")
  settings = config.tuples(found["config"])
  if arm not in settings["arms"]:
    raise UserError(
      f"--arm={arm}: expected one of {', '.join(settings['arms'])}"
    )
  planned = replicates.of(settings, workdir)
  seed = planned[0].seeds[0] if seed is None else seed
  of = next((one for one in planned if seed in one.seeds), None)
  if of is None:
    raise UserError(
      f"--seed={seed}: expected {planned[0].seeds[0]} to "
      f"{planned[-1].seeds[-1]}"
    )
  folder = os.path.join(of.folder, "checkpoints")
  steps, done = settings["train"]["steps"], checkpoint.newest(folder)
  if done < steps:
    raise UserError(f"{folder}: at step {done} of {steps}; expected the last")
  leader = made.leaders(settings["arms"])[arm]
  if leader is None:
    raise UserError(f"--arm={arm}: trains nothing; expected an arm that does")
  task = load(of.settings["task"])
  asks = answers.is_black_box(settings["teacher"])
  groups = students.bind(
    arms.group(made.trained(settings["arms"]), black_box=asks),
    of.settings,
    task,
  )
  (group,) = (g for g in groups if leader in g.names)
  kind: Any = nnx.eval_shape(
    lambda: functional.create(group.student, task.signature, jax.random.key(0))
  )
  if not isinstance(kind, Decoder):
    raise UserError(
      f"--arm={arm}: its student is {group.student['name']!r}; expected a "
      "decoder"
    )
  assert task.tokens is not None
  if task.tokens.subset is not None:
    raise UserError(
      f"--arm={arm}: its student knows {len(task.tokens.subset)} of "
      f"{task.tokens.tokenizer.vocab_size} ids and one for all others, which "
      "no tokenizer.json can write; expected task.tokens.coverage = None"
    )
  teacher = None
  if group.start and "folder" not in group.start:
    kept = os.path.join(of.folder, "teacher")
    teacher = model.obtained(of.settings["teacher"], kept, task)
  setup = Setup(
    task=task,
    transfers={},
    seeds=of.seeds,
    train=settings["train"],
    start=students.Starts(workdir, of.number, task, teacher),
  )
  state = loop.read(groups, setup, folder, leader)
  run = list(of.seeds).index(seed)
  if state.diverged[run]:
    raise UserError(f"--seed={seed}: diverged at step {state.diverged[run]}")
  weights = functional.of_run(state.best if best else state.weights, run)
  every = {
    functional.dotted(at): x[...]
    for part in ("params", "frozen")
    for at, x in nnx.to_flat_state(weights.get(part, nnx.State({})))
  }
  if lora := group.student.get("lora"):
    every = adapters.merged(every, lora)
  plain = build(kind.spec, kind.numerics, lambda path, shape: every[path])
  pretrained.save_pretrained(plain, out)
  task.tokens.tokenizer.save(out)


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("arm", "", "Whose student.")
  flags.DEFINE_integer("seed", None, "Of the run; the first if not given.")
  flags.DEFINE_bool("best", False, "The weights best on validation.")
  flags.DEFINE_string("out", "", "The folder to write.")


def main(argv: list[str]) -> int:
  values = flags.FLAGS
  if len(argv) != 2 or not values.out:
    raise UserError("expected a workdir, --arm=NAME and --out=FOLDER")
  workdir, out = map(os.path.expanduser, (argv[1], values.out))
  export(workdir, values.arm, values.seed, out, values.best)
  print(f"{out}: arm {values.arm}")
  return 0


if __name__ == "__main__":
  define_flags()
  command.run(main)
