"""Reading lines: compression, files that break off, byte order marks."""

import gzip
import io
import pathlib
import tempfile

import pyarrow as pa
from absl.testing import absltest, parameterized
from pyarrow import parquet

from kd import lines
from kd.errors import UserError
from kd.lines import Line

BOM = b"\xef\xbb\xbf"
PACK = {
  "a.jsonl": bytes,
  "a.jsonl.gz": gzip.compress,
  "a.jsonl.zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
PACKED = ("a.jsonl.gz", "a.jsonl.zst")
ROWS = b"".join(b'{"id": "%d"}\n' % (i * 7919 % 10007) for i in range(5000))


class Files(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, data):
    (self.root / name).write_bytes(data)
    return str(self.root / name)


class LinesTest(Files):
  def read(self, name, data):
    return list(lines.lines(self.write(name, data)))

  @parameterized.parameters(*PACK)
  def test_numbers_values_and_the_last_newline(self, name):
    found = self.read(name, PACK[name](b"a\n\nb\r\nc"))
    values = [(x.number, x.value, x.whole) for x in found]
    self.assertEqual(
      values,
      [(1, b"a", True), (2, b"", True), (3, b"b\r", True), (4, b"c", False)],
    )

  @parameterized.product(name=[*PACK], block=[1, 7, 4096])
  def test_blocks_of_any_size(self, name, block):
    with absltest.mock.patch.object(lines, "BLOCK", block):
      found = self.read(name, PACK[name](ROWS[:1000]))
    self.assertEqual([x.value for x in found], ROWS[:1000].split(b"\n"))

  @parameterized.parameters(*PACKED)
  def test_files_that_were_put_together(self, name):
    half = ROWS.index(b"\n", len(ROWS) // 2) + 1
    data = PACK[name](ROWS[:half]) + PACK[name](ROWS[half:])
    self.assertLen(self.read(name, data), 5000)

  @parameterized.product(name=PACKED, left=[0, 1, 5, 0.5, 0.9, -9, -8, -4, -1])
  def test_a_file_that_breaks_off_is_refused(self, name, left):
    data = PACK[name](ROWS)
    left = int(left * len(data)) if isinstance(left, float) else left
    with self.assertRaisesRegex(UserError, "breaks off after|cannot be read"):
      self.read(name, data[:left])

  @parameterized.product(name=PACKED, count=[1, 100])
  def test_also_one_that_is_cut_at_the_end_of_a_line(self, name, count):
    """What is there unpacks to whole lines."""
    sink = io.BytesIO()
    code = {"gz": "gzip", "zst": "zstd"}[name.rpartition(".")[2]]
    packer = pa.CompressedOutputStream(sink, code)
    packer.write(b'{"id": 1}\n' * count)
    packer.flush()
    data = sink.getvalue()
    packer.close()
    with self.assertRaisesRegex(UserError, "breaks off|cannot be read"):
      self.read(name, data)

  @parameterized.parameters(*PACKED)
  def test_damage_within(self, name):
    data = bytearray(PACK[name](ROWS))
    data[len(data) // 2] ^= 255
    with self.assertRaisesRegex(UserError, "breaks off|cannot be read"):
      self.read(name, bytes(data))

  @parameterized.parameters(*PACK)
  def test_a_byte_order_mark_is_no_part_of_a_line(self, name):
    data = PACK[name](BOM + b"a\nb\n" + BOM + b"c\n")
    values = [x.value for x in self.read(name, data)]
    self.assertEqual(values, [b"a", b"b", b"c"])

  @parameterized.product(
    name=[*PACK], code=["utf-16", "utf-16-be", "utf-32", "utf-32-be"]
  )
  def test_other_encodings_are_named(self, name, code):
    data = "\ufeff{}\n".encode(code.removesuffix("-be") + "-be")
    if not code.endswith("-be"):
      data = "{}\n".encode(code)  # with its mark
    with self.assertRaisesRegex(UserError, f"is in {code[:6].upper()}, expec"):
      self.read(name, PACK[name](data))

  def test_a_line_that_is_too_long_is_a_fault(self):
    with (
      absltest.mock.patch.object(lines, "LONGEST", 10),
      absltest.mock.patch.object(lines, "BLOCK", 4),
    ):
      first, second = self.read("a", b"x" * 25 + b"\ny\n")
    self.assertEqual(first[:2], (1, None))
    self.assertEqual(first.fault, "too long: 25 bytes, expected at most 10")
    self.assertEqual(second, Line(2, b"y"))

  def test_parquet(self):
    path = str(self.root / "a.parquet")
    parquet.write_table(pa.Table.from_pylist([{"a": 1}, {"a": None}]), path)
    self.assertEqual(
      list(lines.lines(path)), [Line(1, {"a": 1}), Line(2, {"a": None})]
    )
    data = pathlib.Path(path).read_bytes()
    with self.assertRaisesRegex(UserError, "a.parquet: cannot be read"):
      self.read("a.parquet", data[: len(data) // 2])

  def test_no_file_and_a_folder(self):
    for path in (self.root / "nowhere", self.root):
      with self.assertRaisesRegex(UserError, f"{path}: cannot be read"):
        list(lines.lines(str(path)))


class EntriesTest(Files):
  def test_a_torn_last_line_is_left_out_and_cut_off(self):
    path = self.write("a.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": ')
    self.assertEqual(list(lines.entries(path)), [(1, {"a": 1}), (2, {"a": 2})])
    lines.mend(path)
    whole = b'{"a": 1}\n{"a": 2}\n'
    self.assertEqual(pathlib.Path(path).read_bytes(), whole)
    lines.mend(path)
    self.assertEqual(pathlib.Path(path).read_bytes(), whole)

  @parameterized.parameters(
    ("}", "not JSON"), ("", "empty line"), ("[1]", "schema: Expected `object`")
  )
  def test_a_broken_line_within_is_named(self, line, words):
    path = self.write("a.jsonl", b'{"a": 1}\n%s\n{"a": 2}\n' % line.encode())
    with self.assertRaisesRegex(UserError, f"a.jsonl:2: {words}"):
      list(lines.entries(path))

  @parameterized.parameters(
    (b"", b""), (b"abc", b""), (b"\n", b"\n"), (b"a\n" + b"b" * 50, b"a\n")
  )
  def test_mend(self, data, expected):
    path = self.write("a", data)
    with absltest.mock.patch.object(lines, "BLOCK", 7):
      lines.mend(path)
    self.assertEqual(pathlib.Path(path).read_bytes(), expected)


if __name__ == "__main__":
  absltest.main()
