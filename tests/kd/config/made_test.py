"""Which arms train, and which take another's training or none."""

from absl.testing import absltest

from kd import config
from kd.config import made
from tests.kd import small
from tests.kd.study.phases_test import options


class LeadersTest(absltest.TestCase):
  def test_what_training_does_not_read_is_no_other_arm(self):
    arms = config.resolve(
      options(
        soft=small.SOFT,
        soft_again=dict(small.SOFT, baseline="hard"),
        hard=small.HARD,
        faster=dict(small.SOFT, train=dict(learning_rate=0.1)),
        fewer=dict(small.SOFT, signal=dict(size=9)),
        teacher=dict(objective="teacher"),
      )
    )["arms"]
    own = {"hard": "hard", "faster": "faster", "fewer": "fewer"}
    self.assertEqual(
      made.leaders(arms),
      {"soft": "soft", "soft_again": "soft", "teacher": None, **own},
    )
    self.assertCountEqual(made.trained(arms), ["soft", *own])


if __name__ == "__main__":
  absltest.main()
