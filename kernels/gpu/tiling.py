"""How the GPU kernel cuts a row: into CTAs, chunks of registers and copies."""

import dataclasses

THREADS = 128  # of a CTA: one warpgroup, see kernels.gpu.kernel
ALIGN = 16  # bytes, of a bulk copy's address and size
COMFORT = 72 << 10  # bytes of rows per CTA: three CTAs fit an SM's 227 KiB
LIMIT = 220 << 10  # bytes of rows per CTA at most
CLUSTERS = (1, 2, 4, 8)  # 8 is the largest portable cluster


@dataclasses.dataclass(frozen=True)
class Tile:
  """How a row is cut.

  Attributes:
    cluster: C, CTAs per row.
    width: W = V / C, columns of one CTA.
    vector: columns of one thread at a time.
    piece: columns of one bulk copy.
  """

  cluster: int
  width: int
  vector: int
  piece: int

  @property
  def chunk(self) -> int:
    """Columns that the CTA's threads have in registers at a time."""
    return THREADS * self.vector

  @property
  def held(self) -> int:
    """Columns in shared memory: W, filled up to whole chunks."""
    return -(-self.width // self.chunk) * self.chunk

  def pieces(self) -> list[tuple[int, int, int]]:
    """Returns (column, place in shared memory, columns) of each bulk copy.

    Mosaic GPU copies multiples of 128 columns. Where chunks do not divide W the
    last chunk holds W's last columns, some of them for the second time: they
    come from L2, and copies do not overlap in shared memory.
    """
    main = self.width // self.chunk * self.chunk
    starts = range(0, main, self.piece)
    out = [(s, s, min(self.piece, main - s)) for s in starts]
    if main != self.width:
      out.append((self.width - self.chunk, main, self.chunk))
    return out


def padded(v: int, itemsizes) -> int:
  """Returns V, or the next multiple of 128 if copies cannot cut V as it is."""
  if v % (ALIGN // min(itemsizes)) == 0 and v >= THREADS:
    return v
  return -(-v // THREADS) * THREADS


def tiling(v: int, itemsizes, cluster=None, vector=None) -> Tile | str:
  """Returns how to cut a row of V columns, or why it cannot be.

  C is the smallest that leaves at most 72 KiB of both rows per CTA, so that
  three CTAs share an SM and one's copies hide behind another's arithmetic.

  Args:
    v: columns.
    itemsizes: bytes per logit of student and teacher (one, if there is none).
    cluster, vector: to override the rules, in tests and tuning.
  """
  align = ALIGN // min(itemsizes)
  clusters = [cluster] if cluster else CLUSTERS
  fits = [c for c in clusters if v % (align * c) == 0]
  size = lambda c: v // c * sum(itemsizes)
  good = [c for c in fits if size(c) <= COMFORT] or fits[-1:]
  if not good or v < THREADS:
    raise ValueError(f"V = {v}: pad it to {padded(v, itemsizes)}")
  if size(good[0]) > LIMIT and cluster is None:
    return (
      f"'auto' or 'xla' for V = {v}: a row takes {size(good[0])} bytes of"
      f" shared memory in each of {good[0]} CTAs, more than {LIMIT}"
    )
  width = v // good[0]
  vectors = [vector] if vector else [4, 2, 1]
  vectors = [n for n in vectors if n * THREADS <= width]
  if not vectors:
    raise ValueError(f"cluster {cluster}: V = {v} leaves {width} columns")
  chunk = vectors[0] * THREADS
  piece = min(4096, width) // chunk * chunk
  return Tile(good[0], width, vectors[0], piece)
