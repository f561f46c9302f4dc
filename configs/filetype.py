"""draft"""
import ml_collections
from kd import config as kd
def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = kd.defaults()
  config.study = "filetype"
  config.seeds = 3
  config.baseline = "hard"
  config.task.update(dict(name="file_types", train="train", validation="validation", test="test"))
  config.teacher.update(dict(name="magika", pretrained=True))
  config.signal.labelled = True
  config.student = dict(name="byte_cnn", embed=4, channels=16, block=4, first=4, hidden=96, dropout=0.5)
  config.train.update(dict(steps=500, batch_size=64, learning_rate=5e-3, schedule="cosine", log_every=50, checkpoint_every=500))
  config.evaluate.batch_size = 128
  config.arms = dict(
    hard=dict(objective="hard", target="answer"),
    truth=dict(objective="hard", target="truth"),
    soft=dict(objective="soft", temperature=1.0, divergence="forward_kl"),
  )
  return config.lock()
