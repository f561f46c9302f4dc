"""configs/instruct.py on checkpoints of one layer, from its command line."""

import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from flax import nnx

from kd import models, study
from kd.config import command_line
from kd.data import tokenizers

ROOT = pathlib.Path(__file__).parents[3]
LENGTH = 32


def write_checkpoint(folder: str, width: int) -> None:
  """Writes a language model of bytes, as transformers would."""
  tokenizer = tokenizers.of_bytes()
  model = models.create(
    "decoder",
    input_shape=(2, LENGTH),
    num_classes=tokenizer.vocab_size,
    layers=1,
    width=width,
    heads=2,
    rngs=nnx.Rngs(width),
  )
  models.save_pretrained(model, folder)
  tokenizer.save(folder)


class InstructTest(absltest.TestCase):
  def test_on_folders_of_a_users_own(self):
    parent = self.enterContext(tempfile.TemporaryDirectory())
    teacher, student, data = (
      os.path.join(parent, x) for x in ("teacher", "student", "data.jsonl")
    )
    write_checkpoint(teacher, 32)
    write_checkpoint(student, 16)
    lines = [
      json.dumps({"prompt": f"{i} + 1 = ", "completion": str(i + 1)})
      for i in range(40)
    ]
    pathlib.Path(data).write_text("\n".join(lines))
    config = command_line.read(str(ROOT / "configs" / "instruct.py"))
    config = command_line.override(
      config,
      [
        ("task.path", data),
        ("teacher.path", teacher),
        ("student.folder", student),
        ("task.tokens.length", str(LENGTH)),
        ("seeds", "1"),
        ("train.steps", "2"),
        ("train.log_every", "2"),
        ("train.batch_size", "4"),
        ("train.accumulate", "2"),
        ("train.warmup_steps", "1"),
      ],
    )
    results = study.run(config, os.path.join(parent, "workdir"))
    self.assertEqual([*results["arms"]], [*config.arms])
    losses = {
      name: arm["metrics"]["nll"]["mean"]
      for name, arm in results["arms"].items()
    }
    self.assertLen({*losses.values()}, len(losses))  # each learned its own
    folder = study.write_export(config, os.path.join(parent, "workdir"))
    about = json.loads(pathlib.Path(folder, "model.json").read_text())
    self.assertEqual(about["model"]["dtype"], "bfloat16")  # as it was published
    self.assertEqual(about["checked"]["compiled_and_run_on"], ["cpu"])


if __name__ == "__main__":
  absltest.main()
