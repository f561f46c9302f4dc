"""A study's folder: claimed before any compute, and never another study's."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from kd import files, interrupts
from kd.config import compression, leaves, made, sections
from kd.errors import UserError, why
from kd.objectives import terms
from kd.train import checkpoint

TRIALS = "trials.json"  # of a search, in a replicate's folder
WORDS = ("licence",)  # sections that no number depends on
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def default(config: Mapping[str, Any]) -> str:
  """Returns runs/STUDY-HASH: the same config finds its folder again."""
  return os.path.join("runs", f"{config['study']}-{fingerprint(config)}")


def fingerprint(config: Mapping[str, Any]) -> str:
  """Returns the digest of what a config says of a study's numbers."""
  return digest({k: v for k, v in config.items() if k not in WORDS})


def digest(section: Mapping[str, Any]) -> str:
  """Hashes JSON-safe settings to 8 hexadecimal digits."""
  text = json.dumps(section, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextlib.contextmanager
def claim(
  workdir: str, config: Mapping[str, Any], need_bytes: int, again: bool = False
) -> Generator[None]:
  """Makes a folder a study's own while it runs.

  Args:
    workdir: created if needed.
    config: the resolved config; a folder that holds another is refused.
    need_bytes: how much the study will write at most.
    again: whether its evaluation is done again: then the sections `evaluate`
      and `cost` and `contrasts` may differ from the folder's, whose config
      takes them.

  Raises:
    UserError: the folder can't be written, has too little room, holds another
      study, or is in use by another process.
  """
  path = os.path.join(workdir, "config.json")
  # JSON has no tuples: compare what would be read back.
  config = json.loads(json.dumps(config))
  made: Mapping[str, Any] = {}
  try:
    os.makedirs(workdir, exist_ok=True)
    if os.path.exists(path):
      made = of_the_same(path, config, again)
    lock = open(os.path.join(workdir, ".lock"), "a")  # noqa: SIM115
    room = shutil.disk_usage(workdir).free
    if room < need_bytes:
      raise UserError(
        f"workdir = {workdir!r}: {room / 2**20:.1f} MiB free, the study needs "
        f"{need_bytes / 2**20:.1f} MiB"
      )
  except OSError as error:
    raise UserError(
      f"workdir = {workdir!r}: cannot be written ({why(error)})"
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f"workdir = {workdir!r}: in use by another process"
      ) from error
    if made.get("config") != config:
      words = {name: said(arm) for name, arm in config["arms"].items()}
      new = {"config": config, "words": words, "command": _command()}
      files.write_json(path, {**facts(config), **made, **new})
    yield


def said(arm: Mapping[str, Any]) -> str:
  """Says what an arm trains on, or is made of, and how it is compressed."""
  made_of = ""
  if made.is_made(arm):
    made_of = made.MADE[arm["objective"]].words.format(**arm)
  then = compression.words(arm["compress"]) if "compress" in arm else ""
  return ", then ".join(x for x in (made_of or terms.words(arm), then) if x)


def begin(workdir: str, replicate: int, weights: Mapping[str, str]) -> None:
  """Keeps in config.json which weights a replicate's arms began with.

  Args:
    workdir: the study's, which it has claimed.
    replicate: its number.
    weights: {arm: fingerprint}.

  Raises:
    UserError: other ones are kept there.
  """
  path = os.path.join(workdir, "config.json")
  made = files.read_json(path, "config of a study")
  starts, key = made.get("starts", {}), str(replicate)
  for arm, found in weights.items():
    kept = starts.get(key, {}).get(arm, found)
    if kept != found:
      raise UserError(
        f"{path}: the runs of arm {arm!r} began with weights of fingerprint "
        f"{kept}, those of its student are now {found}; expected the same "
        "weights, or another workdir"
      )
  new = {**starts, key: {**starts.get(key, {}), **weights}}
  if new != starts:
    files.write_json(path, {**made, "starts": new})


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what is known of the making: versions, device, commit, command."""
  device = jax.devices()[0]
  return {
    "versions": {name: metadata.version(name) for name in PACKAGES}
    | {"python": platform.python_version()},
    "device": f"{jax.device_count()} x {device.device_kind} "
    f"({device.platform})",
    "host": f"{platform.machine()}, {os.cpu_count()} cores",
    "commit": _commit(),
    "seed": config["seed"],
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
  }


class Clock:
  """Adds up the seconds of each phase over all processes of a study.

  Args:
    workdir: the study's.
    places: the folders of its replicates.
  """

  def __init__(self, workdir: str, places: Sequence[str]):
    self._folder, self._places = workdir, places
    self._path = os.path.join(workdir, "seconds.json")
    try:
      with open(self._path) as f:
        found = dict(json.load(f))
    except (OSError, ValueError, TypeError):
      found = {}
    self.seconds = {k: v for k, v in found.items() if isinstance(v, float)}

  @contextlib.contextmanager
  def phase(self, name: str) -> Generator[None]:
    """Counts the seconds of a phase, and is what a signal says it stopped."""
    interrupts.say(lambda: _stopped(self._folder, self._places, name))
    began = time.monotonic()
    yield
    spent = time.monotonic() - began
    self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
    files.write_json(self._path, self.seconds)


def _stopped(folder: str, places: Sequence[str], phase: str) -> str:
  """Says where the same command would go on."""
  kept = {"teacher": "teacher/checkpoints", "train": "checkpoints"}
  whence = "begins that phase again, with what is done of it"
  if phase in kept:
    steps = [checkpoint.newest(os.path.join(p, kept[phase])) for p in places]
    searched = [os.path.exists(os.path.join(p, TRIALS)) for p in places]
    begun = [i for i, s in enumerate(steps) if s or searched[i]] or [0]
    there = begun[-1]
    whence = f"goes on from step {steps[there]}"
    if phase == "train" and searched[there] and not steps[there]:
      whence = "goes on with the trials"
    if len(places) > 1 and phase == "train":
      whence += f" of replicate {there}"
  return f"phase {phase} of {folder}; the same command {whence}"


def of_the_same(
  path: str, config: Mapping[str, Any], again: bool = False
) -> Mapping[str, Any]:
  """Returns what config.json holds, which may differ in WORDS, and in
  `evaluate`, `cost` and `contrasts` where the evaluation is done again.

  Raises:
    UserError: it is of another study, or no config.
  """
  config = json.loads(json.dumps(config))  # which has no tuples
  found = files.read_json(path, "config of a study")
  if not isinstance(found, Mapping) or not isinstance(
    found.get("config"), Mapping
  ):
    raise UserError(f"{path}: not a study's config")
  ours, theirs = (
    dict(leaves({k: v for k, v in c.items() if k not in WORDS}))
    for c in (config, _completed(found["config"]))
  )
  keys = [k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k)]
  free = ("evaluate", "cost", "contrasts")
  other = [k for k in keys if k.partition(".")[0] not in free]
  if other or (keys and not again):
    key = (other or keys)[0]
    mend = "" if other else ", or --phase=evaluate: to evaluate it again"
    raise UserError(
      f"{path}: the workdir holds another study: {key} = {theirs.get(key)!r} "
      f"there, {ours.get(key)!r} here ({len(keys)} keys differ); choose "
      f"another --workdir{mend}"
    )
  return found


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(sections.completed(config)))


def _command() -> str:
  """Returns the command of the whole study, less what is this machine's: the
  workdir, the cache; and less the phase."""
  words = iter(sys.argv[1:])
  kept = []
  for word in words:
    name, equals, _ = word.lstrip("-").partition("=")
    if word.startswith("-") and name in (
      "workdir",
      "phase",
      "compilation_cache",
    ):
      if not equals:
        next(words, None)
      continue
    kept.append(os.path.relpath(word) if os.path.isabs(word) else word)
  return shlex.join(["python", os.path.basename(sys.argv[0]), *kept])


def _commit() -> str:
  here = os.path.dirname(os.path.abspath(__file__))

  def git(*args):
    return subprocess.run(
      ["git", "-C", here, *args], capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    dirty = "+changes" if git("status", "--porcelain", "-uno") else ""
    return git("rev-parse", "--short=12", "HEAD") + dirty
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
