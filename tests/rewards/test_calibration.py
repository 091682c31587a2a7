"""What a stored calibration says, that it survives JSON, and that it changes nothing that guides."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.calibration import Calibration, CalibrationError
from midcourse.rewards.scalar import RewardModel

CALIBRATION = Calibration(2.0, 4.0, (1.0, 0.5, 0.25), -1.0)
WHOLE_TEXTS = Calibration(2.0, 4.0, (), -1.0)


@pytest.mark.parametrize(("finished", "temperature"), [(False, 2.0), (True, 4.0)])
def test_probability_by_hand(finished, temperature):
    def probability(margin: float) -> float | None:
        return CALIBRATION.probability(margin, finished=finished)

    assert probability(temperature * math.log(9)) == pytest.approx(0.9)
    assert probability(-temperature * math.log(9)) == pytest.approx(0.1)
    assert probability(0.0) == 0.5
    assert probability(1e300) == 1.0 and probability(-1e300) == 0.0


def test_no_temperature_gives_no_probability():
    assert replace(CALIBRATION, temperature=None).probability(1.0, finished=False) is None
    assert replace(CALIBRATION, finished_temperature=None).probability(1.0, finished=True) is None


def test_centred_by_hand():
    rewards = [1.0, 1.0, 1.0, 1.0, 1.0]
    assert CALIBRATION.centred(rewards, finished=False) == [0.0, 0.5, 0.75, 0.75, 0.75]
    assert CALIBRATION.centred(rewards, finished=True) == [0.0, 0.5, 0.75, 0.75, 2.0]
    assert replace(CALIBRATION, finished_mean=None).centred(rewards, finished=True)[-1] is None
    assert CALIBRATION.centred([], finished=True) == []


def test_a_reward_of_whole_texts_is_centred_at_their_ends_alone():
    assert WHOLE_TEXTS.centred([1.0, 2.0, 3.0], finished=True) == [None, None, 4.0]
    assert WHOLE_TEXTS.centred([1.0, 2.0], finished=False) == [None, None]
    assert WHOLE_TEXTS.against_mean([1.0, 3.0], finished=True) == [None, pytest.approx(1 / (1 + math.exp(-1)))]


def test_against_the_mean_by_hand():
    odds = [1 / (1 + math.exp(-x)) for x in (0.0, 0.5 / 2, 2.0 / 4)]
    assert CALIBRATION.against_mean([1.0, 1.0, 1.0], finished=True) == pytest.approx(odds)
    assert CALIBRATION.against_mean([1.0, 1.0], finished=False) == pytest.approx(odds[:2])
    assert replace(CALIBRATION, finished_mean=None).against_mean([1.0, 1.0], finished=True) == [0.5, None]


def test_a_calibration_survives_json():
    for calibration in (CALIBRATION, Calibration(None, None, (0.0,), None), WHOLE_TEXTS):
        assert Calibration.read(json.loads(json.dumps(calibration.stored()))) == calibration
    assert Calibration.read({}) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": "warm"},
        {"means": None},
        {"means": [math.inf]},
        {"finished_mean": math.nan},
    ],
)
def test_a_damaged_calibration_is_refused(damage):
    with pytest.raises(CalibrationError, match=r"damaged.*train the reward again"):
        Calibration.read({**CALIBRATION.stored(), **damage})
    with pytest.raises(CalibrationError, match="damaged"):
        Calibration.read({"temperature": 1.0})


@pytest.fixture
def folders(tmp_path, model_folder) -> tuple[str, str, str]:
    """A model and a reward saved without and with a calibration."""
    folder = model_folder(dtype=torch.float32)
    reward = RewardModel.create(folder, template="raw", tune="head")
    torch.nn.init.normal_(reward.head.weight)
    reward.save(tmp_path / "plain")
    reward.info = replace(reward.info, calibration=CALIBRATION.stored())
    reward.save(tmp_path / "calibrated")
    return folder, str(tmp_path / "plain"), str(tmp_path / "calibrated")


def test_guiding_and_raw_rewards_are_bit_identical_with_and_without(folders):
    lm = LanguageModel.load(folders[0], device="cpu", dtype="float32")
    plain, calibrated = (RewardModel.load(folder) for folder in folders[1:])
    assert plain.calibration is None and calibrated.calibration == CALIBRATION
    assert plain.score(["ab"], ["cde"]) == calibrated.score(["ab"], ["cde"])
    for method in ("pargs", "pargs-greedy"):
        have, want = (
            generate(lm, ["ab"], reward, reward_weight=3.0, method=method, max_new_tokens=8)[0]
            for reward in (calibrated, plain)
        )
        assert have == want


def test_folders_without_the_field_still_load(folders):
    path = Path(folders[1], "midcourse.json")
    fields = json.loads(path.read_text())
    assert fields.pop("calibration") == {}
    path.write_text(json.dumps(fields))
    assert RewardModel.load(folders[1]).calibration is None
