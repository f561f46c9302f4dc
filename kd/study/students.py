"""Students that begin with weights: published ones, or parts of a teacher's.

    student.name = "checkpoint"   all of a language model
    student.from_teacher          layers and widths of a decoder that teaches

Both become a decoder of the same kind, over the teacher's vocabulary or the
task's subset of it, where one more row stands for all other ids: the mean of
theirs. All arms and seeds begin alike; adapters are drawn for each seed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from kd.config import rules
from kd.errors import UserError
from kd.models import (
  adapters,
  checkpoints,
  config_json,
  functional,
  pretrained,
  quantized,
  slicing,
)
from kd.models.decoder import Decoder, arrays
from kd.teachers import answers
from kd.train.arms import Group

if TYPE_CHECKING:  # these take seconds to import
  from kd.data.task import Task
  from kd.teachers.model import Teacher

MANY = rules.tuple_of(rules.integer(0), least=1)
SIZE = rules.Check(
  "None, how many, or a tuple of which",
  lambda v: v is None or rules.integer(1).accepts(v) or MANY.accepts(v),
)
CUT = {
  "layers": rules.optional(MANY),
  "width": SIZE,
  "mlp": SIZE,
  "kv_heads": SIZE,
}
KEPT = ("dtype", "param_dtype", "remat", "attention", *adapters.OPTIONS)


def check(path: str, student: Mapping[str, Any], teacher: Mapping) -> None:
  """Checks what the config alone tells of a student's start.

  Args:
    path: of its section.
    student: that section, of options that its model takes.
    teacher: the config's section.

  Raises:
    UserError: naming the key.
  """
  adapters.check(path, student)
  if student["name"] == "checkpoint":
    if "folder" not in student:
      raise UserError(
        f"{path}.folder is missing: expected a Hugging Face folder, a .gguf "
        "file or the name of a published model"
      )
    if not checkpoints.is_checkpoint(student["folder"]):
      raise UserError(
        f"{path}.folder = {student['folder']!r}: no language model; expected a "
        "Hugging Face folder with a config.json, a .gguf file or a name"
      )
    return
  cut = student.get("from_teacher")
  if cut is None:
    for key in adapters.OPTIONS:
      if student.get(key):
        raise UserError(
          f"{path}.{key} = {student[key]}: of a student that begins with given "
          "weights; expected name = 'checkpoint', or from_teacher"
        )
    return
  rules.check_keys(f"{path}.from_teacher", dict.fromkeys(CUT) | cut, CUT)
  for key in student:
    if key not in ("name", "from_teacher", quantized.OPTION, *KEPT):
      raise UserError(
        f"{path}.{key} = {student[key]!r}: what {path}.from_teacher cuts has "
        f"the teacher's; expected no option but {', '.join(KEPT)}"
      )
  if answers.is_black_box(teacher):
    raise UserError(
      f"{path}.from_teacher: the teacher is a black box; expected a decoder"
    )


def bind(
  groups: Sequence[Group], settings: Mapping[str, Any], task: "Task"
) -> list[Group]:
  """Says of each group which decoder it trains, and what its runs begin with.

  Raises:
    UserError: a student that does not fit the task or the teacher.
  """
  bound = []
  for group in groups:
    path = f"arms.{group.names[0]}.student"
    student, start = resolve(path, group.student, settings, task)
    bound.append(dataclasses.replace(group, student=student, start=start))
  return bound


def resolve(
  path: str, student: Mapping[str, Any], settings: Mapping[str, Any], task
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
  """Returns (options, start): the model of a student's section, and where its
  weights come from; None where each seed draws them."""
  from kd.teachers import model

  if student["name"] == "checkpoint":
    if task.tokens is None:
      raise UserError(
        f"{path}.name = 'checkpoint': a language model, and the task "
        f"{task.name!r} has no tokens; expected task.tokens.length >= 2"
      )
    folder = checkpoints.folder(student["folder"])
    model.check_tokenizer(folder, task)
    spec, whole = pretrained.spec_of(folder), True
    start: dict[str, Any] = {"folder": folder}
  elif student.get("from_teacher") is not None:
    kind = model.kind(settings["teacher"])
    shell = nnx.eval_shape(
      lambda: functional.create(kind, task.signature, jax.random.key(0))
    )
    if not isinstance(shell, Decoder):
      raise UserError(
        f"{path}.from_teacher: the teacher is {kind['name']!r}; expected a "
        "decoder or a language model"
      )
    spec, start = shell.spec, {**student["from_teacher"]}
    whole = kind["name"] == "checkpoint"
  else:
    return student, None
  # A teacher that was trained on the task knows no other ids.
  start["subset"] = whole and task.tokens.subset is not None
  start["dtype"] = student.get("param_dtype", "float32")
  made = {
    "name": "decoder",
    **{k: student[k] for k in (*KEPT, quantized.OPTION) if student.get(k)},
    "config": json.dumps(
      config_json.write(slicing.smaller(spec, **_cut(start, task))),
      sort_keys=True,
    ),
  }
  shell = nnx.eval_shape(
    lambda: functional.create(made, task.signature, jax.random.key(0))
  )
  adapters.refuse_useless(path, made, [*arrays(shell)])
  return made, start


def _cut(start: Mapping[str, Any], task: "Task") -> dict[str, Any]:
  """Returns the arguments of kd.models.slicing."""
  cut = {k: v for k, v in start.items() if k in CUT}
  if start["subset"]:
    assert task.tokens is not None
    assert task.tokens.subset is not None
    cut |= {"vocab_ids": task.tokens.subset.ids, "other": True}
  return cut


@dataclasses.dataclass(frozen=True)
class Starts:
  """The weights that a replicate's groups begin with, as kd.train asks.

  Attributes:
    folder: the study's workdir, whose config.json keeps their fingerprints.
    replicate: its number.
    task: its own.
    teacher: its own; None where only answers are known.
  """

  folder: str
  replicate: int
  task: "Task"
  teacher: "Teacher | None"

  def __call__(self, groups: Sequence[Group]) -> list[dict[str, Array]]:
    """Returns {path: weights} of each group; arrays that several have are the
    same. Reads each source once.

    Raises:
      UserError: they are not those that the runs in the workdir began with.
    """
    from kd.study import workdir

    found: dict[str, dict[str, Array]] = {}
    begun: dict[str, str] = {}
    of_groups: list[dict[str, Array]] = []
    for group in groups:
      if group.start is None:
        of_groups.append({})
        continue
      key = json.dumps(group.start, sort_keys=True)
      if key not in found:
        found[key] = self._read(group.start)
      of_groups.append(found[key])
      begun |= dict.fromkeys(group.names, key)
    prints = {key: fingerprint(arrays) for key, arrays in found.items()}
    if begun:
      kept = {arm: prints[key] for arm, key in begun.items()}
      workdir.begin(self.folder, self.replicate, kept)
    return of_groups

  def _read(self, start: Mapping[str, Any]) -> dict[str, Array]:
    dtype = jnp.dtype(start["dtype"])
    if "folder" in start:
      source = pretrained.load_pretrained(start["folder"], dtype)
    else:
      assert self.teacher is not None
      kind = self.teacher.model
      source: Any = nnx.eval_shape(
        lambda: functional.create(kind, self.task.signature, jax.random.key(0))
      )
      nnx.update(source, self.teacher.weights["params"])
    if cut := _cut(start, self.task):
      source = slicing.from_teacher(source, **cut)
    return {k: jnp.asarray(x, dtype) for k, x in arrays(source).items()}


def fingerprint(arrays: Mapping[str, Array]) -> str:
  """Returns a hash of weights by path, 16 hexadecimal digits."""
  digest = hashlib.sha256()
  for path in sorted(arrays):
    x = np.asarray(arrays[path])
    digest.update(f"{path} {x.dtype} {x.shape}".encode())
    digest.update(np.ascontiguousarray(x).view(np.uint8))
  return digest.hexdigest()[:16]
