"""A finished run taken out of its study, as a folder.

    python main.py --config=... --phase=export [--arm=A] [--seed=S] [--out=OUT]
    python -m kd.study.export WORKDIR --arm=A [--seed=S] [--best] --out=OUT

The first writes what kd.compress.export describes, of any model, with ONNX
where it converts and a model card (kd.report.card). It has the weights that the
study's metric is of, and is there only if it answers as the study's own program
does. The second writes a decoder as a Hugging Face folder, which transformers
loads: the last weights, or with --best those that were best on validation;
adapters are added to what they belong to.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from flax import nnx

from kd import config, files
from kd.compress import export as standalone
from kd.compress import onnx_graph, predict
from kd.errors import UserError, why
from kd.evaluate import registry, verdict
from kd.models import adapters, functional, pretrained, quantized
from kd.models.decoder import Decoder, build
from kd.report import card, page
from kd.study import finished, workdir
from kd.study.finished import Finished
from kd.teachers import command

ROWS = 64  # of the test split, that are compared
LOGITS = 2**22  # that they may have, where they have many
LARGEST = 1e-5  # difference of probabilities
SENTENCE = "To be, or not to be, that is the question."


def write(
  settings: Mapping[str, Any],
  folder: str,
  arm: str = "",
  seed: int | None = None,
  out: str = "",
) -> str:
  """Writes a run as a folder that needs jax alone.

  Args:
    settings: the resolved config.
    folder: the workdir of the study, which has been evaluated.
    arm: whose run; "" is the verdict's best.
    seed: the run's; None is the study's first.
    out: the folder to write, new or of an earlier export; "" is
      WORKDIR/export/ARM-seed_S.

  Returns:
    The folder.

  Raises:
    UserError: no such run, or none that can be exported; the study is not
      finished, or its checkpoints are gone; or the folder's model does not
      answer as the study's does.
  """
  path = os.path.join(folder, "results.json")
  if not os.path.exists(path):
    raise UserError(
      f"--phase=export: needs {path}, which phase 'evaluate' leaves; expected "
      "the same command without --phase first"
    )
  workdir.of_the_same(os.path.join(folder, "config.json"), settings)
  results, kept = page.read(folder)
  best = registry.selection(results["metric"]) == "best"
  run = finished.read(folder, settings, arm or _best(results), seed, best)
  name = re.sub(r"[^\w.+=,()\[\]-]", "_", f"{run.arm}-seed_{run.seed}")
  target = pathlib.Path(out or os.path.join(folder, "export", name))
  if target.exists() and not (target / standalone.ABOUT).exists():
    raise UserError(f"--out={target}: holds something else; expected a new one")
  scratch = target.with_name(f"{target.name}.tmp")
  shutil.rmtree(scratch, ignore_errors=True)
  about = _about(run, registry.selection(results["metric"]))
  about["study"]["fingerprint"] = workdir.fingerprint(settings)
  made = _program(run)
  logging.info("export of arm %s, seed %d to %s", run.arm, run.seed, target)
  try:
    standalone.write(made, about, str(scratch))
    about = files.read_json(str(scratch / standalone.ABOUT), "description")
    about |= _checked(run, made, scratch)
    files.write_json(str(scratch / standalone.ABOUT), about)
    if run.task.tokens is not None:
      run.task.tokens.tokenizer.save(str(scratch))
    text = card.write(results, {**kept, "config": settings}, about)
    files.write_text(str(scratch / "README.md"), text)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
  except OSError as error:
    raise UserError(f"{target}: cannot be written ({why(error)})") from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return str(target)


def _best(results: Mapping[str, Any]) -> str:
  """Returns the arm of best mean; of several budgets, of the first, which the
  verdict is of."""
  best = verdict.judge(results)[0].best
  if best is None:
    raise UserError(
      "--phase=export: no arm finished all its runs; expected --arm= one of "
      f"{', '.join(results['arms'])}"
    )
  return best


def _program(run: Finished) -> standalone.Program:
  tokens, places = run.task.tokens, None
  if tokens is not None and tokens.subset is not None:
    other = run.task.num_classes - 1
    every = np.arange(tokens.tokenizer.vocab_size)
    places = tokens.subset.to_student(every, other).astype(np.int32)
  return standalone.program(
    run.student,
    run.task.signature,
    run.weights,
    run.task.test.form.dtype,
    places,
  )


def _about(run: Finished, weights: str) -> dict[str, Any]:
  """Returns what model.json says that only the study knows."""
  task = run.task
  classes: Any = list(task.class_names)
  if task.tokens is not None:
    classes = "the tokenizer's ids"
    if task.tokens.subset is not None:
      classes = {"ids": task.tokens.subset.ids.tolist(), "last": "any other id"}
  trained = run.weights["params"], run.weights.get("frozen")
  return {
    "study": {
      "name": run.settings["study"],
      "arm": run.arm,
      "seed": run.seed,
      "weights": weights,
    },
    "model": {
      **run.student,
      "parameters": sum(x.size for x in jax.tree.leaves(trained)),
    },
    "input": _input(run),
    "classes": classes,
    "task": {
      "name": task.name,
      "version": task.version,
      "slices": list(task.slices),
      "fingerprint": task.fingerprint,
      "about": task.about,
    },
    "versions": workdir.facts(run.settings)["versions"],
  }


def _input(run: Finished) -> dict[str, Any]:
  """Returns what becomes of raw inputs, here and in the program."""
  tokens, form = run.task.tokens, run.task.test.form
  if tokens is not None:
    tokenizer = tokens.tokenizer
    return {
      "range": [0, tokenizer.vocab_size - 1],
      "raw": {
        "kind": "token ids",
        "of": "tokenizer.json",
        "row": "one document from its start; what fills it up on the right "
        "changes nothing before it",
        "begins_with": tokenizer.bos if tokenizer.add_bos else None,
        "ends_with": tokenizer.eos,
      },
    }
  raw = dict(form.recipe)
  if form.text:
    counts = form.pack([SENTENCE])[0]
    at = np.flatnonzero(counts)
    said = {int(i): float(counts[i]) for i in at}
    raw["example"] = {"text": SENTENCE, "counts": said}
  return {
    "range": [0, 255] if form.dtype is np.uint8 else None,
    "raw": raw,
    "scale": {"factor": form.scale, "by": "the program"},
  }


def _checked(
  run: Finished, made: standalone.Program, folder: pathlib.Path
) -> dict[str, Any]:
  """Compares what a folder answers with what the study does.

  Raises:
    UserError: the probabilities differ by more than LARGEST.
  """
  inputs, logits = _asked(run)
  found = predict.Model(folder).logits(inputs)
  difference = onnx_graph.largest_difference(found, logits)
  if not difference <= LARGEST:
    raise UserError(
      f"--arm={run.arm}: the exported program's probabilities differ from the "
      f"study's by {difference:.2g}; expected at most {LARGEST:g}"
    )
  platform = jax.default_backend()
  path = str(folder / "model.onnx")
  return {
    "checked": {
      "against": "the study's program, on the first rows of the test split",
      "rows": len(inputs),
      "largest_difference": {
        "probabilities": difference,
        "logits": float(np.abs(found - logits).max()),
      },
      "lowered_for": list(standalone.PLATFORMS),
      "compiled_and_run_on": [platform],
    },
    "onnx": onnx_graph.write(made, inputs, logits, path),
  }


def _asked(run: Finished) -> tuple[np.ndarray, np.ndarray]:
  """Returns inputs of the program, and what the study's says of them: rows of
  tokens are one document each, to both."""
  task, test = run.task, run.task.test
  each = task.positions * task.num_classes
  # One batch of the study's: in bfloat16 the size of a batch changes more.
  batch = run.settings["evaluate"]["batch_size"]
  count = min(ROWS, batch, test.filled, max(1, LOGITS // each))
  x = test.read(np.arange(count))
  forward = functional.forward(run.student, task.signature, batch)
  if task.tokens is None:
    return x, np.asarray(forward(run.weights, x))
  x[:, 1] = 1
  ids = np.ascontiguousarray(x[:, 0 if x.shape[1] == 2 else 2])
  return ids, np.asarray(forward(run.weights, x)).reshape(*ids.shape, -1)


def hugging_face(run: Finished, out: str) -> None:
  """Writes a decoder as a Hugging Face folder, with the tokenizer's files.

  Args:
    run: whose.
    out: the folder to write.

  Raises:
    UserError: it is no decoder, or one whose weights are rounded, or that knows
      a part of the tokenizer's ids, which no tokenizer of such a folder writes.
  """
  kind: Any = nnx.eval_shape(
    lambda: functional.create(
      run.student, run.task.signature, jax.random.key(0)
    )
  )
  if not isinstance(kind, Decoder):
    raise UserError(
      f"--arm={run.arm}: its student is {run.student['name']!r}; expected a "
      "decoder"
    )
  if how := run.student.get(quantized.OPTION):
    raise UserError(
      f"--arm={run.arm}: its weights are rounded to {how['weights']}, which no "
      "such folder says; expected main.py --phase=export"
    )
  tokens = run.task.tokens
  assert tokens is not None
  if tokens.subset is not None:
    raise UserError(
      f"--arm={run.arm}: its student knows {len(tokens.subset)} of "
      f"{tokens.tokenizer.vocab_size} ids and one for all others, which "
      "no tokenizer.json can write; expected task.tokens.coverage = None"
    )
  every = {
    functional.dotted(at): x[...]
    for part in ("params", "frozen")
    for at, x in nnx.to_flat_state(run.weights.get(part, nnx.State({})))
  }
  if lora := run.student.get("lora"):
    every = adapters.merged(every, lora)
  plain = build(kind.spec, kind.numerics, lambda path, shape: every[path])
  pretrained.save_pretrained(plain, out)
  tokens.tokenizer.save(out)


def export(
  folder: str, arm: str, seed: int | None, out: str, best: bool = False
) -> None:
  """Writes the student of one run of a workdir by `hugging_face`.

  Raises:
    UserError: as of kd.study.finished.read and `hugging_face`.
  """
  path = os.path.join(folder, "config.json")
  found = files.read_json(path, "config of a study")
  settings = config.tuples(found["config"])
  hugging_face(finished.read(folder, settings, arm, seed, best), out)


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
  folder, out = map(os.path.expanduser, (argv[1], values.out))
  export(folder, values.arm, values.seed, out, values.best)
  print(f"{out}: arm {values.arm}")
  return 0


if __name__ == "__main__":
  define_flags()
  command.run(main)
