"""Black-box answers: twelve kinds of damage, compression, refusals."""

import gzip
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
from absl.testing import absltest, parameterized
from pyarrow import parquet

from kd import lines
from kd.errors import UserError
from kd.teachers import answers, ingest


def good(i, **fields):
  return {
    "id": f"q{i}",
    "prompt": f"what is {i}?",
    "samples": [{"text": str(i), "score": 0.5, "logprob": -1.5}],
    **fields,
  }


def line(i, **fields):
  return json.dumps(good(i, **fields)).encode()


def sample(**fields):
  return [{"text": "a", **fields}]


def cpu_seconds():
  """Returns what the processes that have ended took, whatever else ran."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


# Kind of damage -> a line that has it, and what the reason must say.
DAMAGE = {
  "truncated": (line(0)[:-9], "not JSON"),
  "wrong type": (line(0, prompt=3), "Expected `str`, got `int`"),
  "not finite": (line(0).replace(b"0.5", b"NaN"), "not JSON"),
  "overflow": (line(0).replace(b"0.5", b"1e999"), "out of range"),
  "duplicate id": (line(1), "duplicate id: 'q1'"),
  "huge line": (line(0, prompt="x" * 2000), "too long"),
  "invalid UTF-8": (line(0).replace(b"what", b"wh\xff"), "UTF-8"),
  "empty samples": (line(0, samples=[]), '0 "samples", expected 1 to'),
  "unknown field": (line(0, samples=sample(logprobs=-1)), "unknown field"),
  "missing field": (b'{"id": "a", "prompt": "b"}', "missing required"),
  "empty line": (b"", "empty line"),
  "positive logprob": (line(0, samples=sample(logprob=0.1)), "at most 0"),
  "empty prompt": (line(0, prompt=" "), '"prompt" is empty'),
  "no object": (b"[1, 2]", "Expected `object`"),
  "blank id": (line(0, id=" "), '"id" is empty'),
  "huge number": (line(0, samples=sample(trace=10**30)), "cannot be stored"),
  "judge not finite": (
    line(0, samples=sample(rubric={"tone": [1, 2]})).replace(b"2]", b"9e999]"),
    "out of range",
  ),
}


class Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.out = str(self.root / "store")

  def file(self, lines, name="a.jsonl"):
    path = self.root / name
    data = b"\n".join(lines) + b"\n"
    if name.endswith(".gz"):
      data = gzip.compress(data)
    elif name.endswith(".zst"):
      data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return str(path)


class IngestTest(Folder):
  @parameterized.parameters("a.jsonl", "a.jsonl.gz", "a.jsonl.zst")
  def test_every_field_comes_back(self, name):
    full = good(
      1,
      samples=[
        {
          "text": "one",
          "score": 1.0,
          "logprob": -0.1,
          "rationale": "it is",
          "trace": [{"tool": "count", "arguments": {"to": 1}}],
          "rubric": {"tone": 3.0, "truth": [1.0, 0.0]},
        },
        {"text": "uno"},
      ],
      rejected=["two"],
      reference="one",
    )
    path = self.file([json.dumps(full).encode(), line(2)], name)
    made = ingest.ingest([path], self.out)
    self.assertEqual((made["examples"], made["rejected"]), (2, 0))
    first, second = ingest.read(self.out)
    self.assertEqual(answers.msgspec.to_builtins(first), full)
    self.assertEqual(second.id, "q2")
    self.assertNotEqual(first.key, second.key)

  @parameterized.parameters(*DAMAGE)
  def test_damage_is_rejected_with_its_line_and_reason(self, kind):
    bad, words = DAMAGE[kind]
    path = self.file([line(1), bad, line(2)])
    with absltest.mock.patch.object(lines, "LONGEST", 1000):
      made = ingest.ingest([path], self.out, max_bad=0.5)
    self.assertEqual(made["rejected"], 1)
    self.assertEqual([a.id for a in ingest.read(self.out)], ["q1", "q2"])
    text = pathlib.Path(self.out, "rejected.jsonl").read_text()
    (entry,) = map(json.loads, text.splitlines())
    self.assertEqual((entry["file"], entry["line"]), (path, 2))
    self.assertIn(words, entry["reason"])

  def test_mixed_damage_among_many_and_shards(self):
    rng = random.Random(0)
    rows, bad = [], {}
    kinds = sorted(DAMAGE)
    for i in range(1, 2001):
      if i > 1 and rng.random() < 0.01:
        bad[i] = DAMAGE[rng.choice(kinds)]
        rows.append(bad[i][0])
      else:
        rows.append(line(i))
    path = self.file(rows)
    with (
      absltest.mock.patch.object(lines, "LONGEST", 1000),
      absltest.mock.patch.object(ingest, "PER_SHARD", 300),
    ):
      made = ingest.ingest([path], self.out, max_bad=0.05)
    self.assertLen(made["shards"], 7)
    self.assertEqual(made["examples"] + made["rejected"], 2000)
    kept = [a.id for a in ingest.read(self.out)]
    self.assertEqual(kept, [f"q{i}" for i in range(1, 2001) if i not in bad])
    text = pathlib.Path(self.out, "rejected.jsonl").read_text()
    found = {e["line"]: e["reason"] for e in map(json.loads, text.splitlines())}
    self.assertEqual(found.keys(), bad.keys())
    for number, (_, words) in bad.items():
      self.assertIn(words, found[number])

  def test_parquet_with_nulls(self):
    rows = [good(1, reference="one"), good(2), good(1)]
    path = str(self.root / "a.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    made = ingest.ingest([path], self.out, max_bad=0.5)
    self.assertEqual(made["reasons"], {"duplicate id": 1})
    first, second = ingest.read(self.out)
    self.assertEqual((first.reference, second.reference), ("one", None))

  def test_byte_order_marks_cost_no_record(self):
    marked = [b"\xef\xbb\xbf" + line(1), line(2), b"\xef\xbb\xbf" + line(3)]
    for i, name in enumerate(("a.jsonl", "a.jsonl.gz", "a.jsonl.zst")):
      made = ingest.ingest([self.file(marked, name)], f"{self.out}{i}")
      self.assertEqual((made["examples"], made["rejected"]), (3, 0))


class RefusalTest(Folder):
  def test_too_many_bad_lines_leave_their_reasons_and_no_store(self):
    path = self.file([line(1), b"{", line(2)])
    with self.assertRaisesRegex(UserError, "1 of 3 lines are bad .1 not JSON"):
      ingest.ingest([path], self.out)
    self.assertFalse(os.path.exists(self.out))
    left = pathlib.Path(self.out + ".rejected.jsonl").read_text()
    self.assertEqual(json.loads(left)["line"], 2)

  @parameterized.parameters("a.jsonl.gz", "a.jsonl.zst")
  def test_a_file_that_breaks_off_whatever_is_allowed(self, name):
    path = self.file([line(i) for i in range(500)], name)
    data = pathlib.Path(path).read_bytes()
    for size in (len(data) // 2, len(data) - 1):
      pathlib.Path(path).write_bytes(data[:size])
      with (
        absltest.mock.patch.object(lines, "BLOCK", 1024),
        self.assertRaisesRegex(
          UserError, f"{name}: (breaks off after|cannot be) "
        ),
      ):
        ingest.ingest([path], self.out, max_bad=1.0)
      self.assertEqual(os.listdir(self.root), [name])

  @parameterized.parameters(
    "[]",
    "{}",
    '{"kind": "answers"}',
    '{"kind": "answers", "examples": 3, "sources": [], "shards": ["a"], '
    '"crc32": []}',
    '{"kind": "signal"}',
    "",
  )
  def test_metadata_that_is_none(self, text):
    os.mkdir(self.out)
    pathlib.Path(self.out, "metadata.json").write_text(text)
    with self.assertRaisesRegex(UserError, f"{self.out}/metadata.json: "):
      list(ingest.read(self.out))
    answers.is_store(self.out)  # raises nothing

  def test_a_signal_is_one_line_and_leaves_nothing(self):
    path = self.file([line(i) for i in range(200_000)], "b.jsonl")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
      command = [sys.executable, "-m", "kd.teachers.ingest"]
      process = subprocess.Popen(
        [*command, path, f"--out={self.out}"], stderr=subprocess.PIPE, text=True
      )
      while len(os.listdir(self.root)) < 2:  # its scratch folder
        time.sleep(0.01)
      process.send_signal(number)
      _, words = process.communicate()
      self.assertEqual(process.returncode, code, words)
      name = signal.Signals(number).name
      self.assertEqual(
        words.splitlines()[-1],
        f"interrupted ({name}): nothing was done; give the same command again",
      )
      self.assertNotIn("Traceback", words)
      self.assertEqual(os.listdir(self.root), ["b.jsonl"])

  def test_a_folder_that_cannot_be_made(self):
    path = self.file([line(1)])
    with self.assertRaisesRegex(UserError, "--out = .*: cannot be made"):
      ingest.ingest([path], f"{path}/store")

  def test_damaged_and_missing_shards(self):
    ingest.ingest([self.file([line(i) for i in range(20)])], self.out)
    (shard,) = pathlib.Path(self.out).glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with self.assertRaisesRegex(UserError, f"{shard}: damaged, CRC-32"):
      list(ingest.read(self.out))
    shard.unlink()
    with self.assertRaisesRegex(UserError, f"{shard}: cannot be read"):
      list(ingest.read(self.out))

  def test_from_the_command_line(self):
    def call(*arguments):
      command = [sys.executable, "-m", "kd.teachers.ingest", *arguments]
      run = subprocess.run(command, capture_output=True, text=True, check=False)
      return run.returncode, run.stdout + run.stderr

    path = self.file([line(1), line(2)])
    code, out = call(path, f"--out={self.out}")
    self.assertEqual(code, 0, out)
    self.assertIn("2 examples, 0 lines rejected", out)
    for arguments, words in (
      ((path, f"--out={self.out}"), "exists; expected a new folder"),
      ((f"--out={self.out}2",), "FILE is missing"),
      ((path,), "--out is missing"),
      (("/nowhere.jsonl", f"--out={self.out}2"), "/nowhere.jsonl: no such"),
      ((path, f"--out={self.out}2", "--max_bad=2"), "max_bad = 2.0: expected"),
      ((path, f"--out={self.out}2", "--max_bad=nan"), "max_bad = nan: expect"),
      ((path, f"--out={self.out}2", "--max_bad=x"), "flag --max_bad=x"),
      ((path, "--output=a"), "Unknown command line flag 'output'"),
    ):
      began = cpu_seconds()
      code, out = call(*arguments)
      self.assertEqual(code, 2, out)
      self.assertIn(words, out)
      self.assertStartsWith(out, "error: ")
      self.assertLen(out.splitlines(), 1)
      self.assertLess(cpu_seconds() - began, 2.0)


if __name__ == "__main__":
  absltest.main()
