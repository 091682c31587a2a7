"""Verdicts of a detector whose scores are known: how often a text says "indeed"."""

import json
from dataclasses import replace

import numpy as np
import pytest

from midcourse.detect.calibrate import calibrate, odds, thresholds
from midcourse.detect.detector import Detector, DetectorError
from midcourse.detect.humans import LENGTHS, Scored, length_of
from midcourse.detect.texts import LabelledText
from midcourse.detect.unfamiliar import Familiar
from midcourse.detect.verdicts import write_verdicts
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.contract import Alone
from midcourse.rewards.text import FunctionReward
from tests.rewards.test_pooled import pooled


def share(text: str) -> float:
    words = text.split()
    return words.count("indeed") / max(len(words), 1)


def text_of(number: int, times: int, words: int = 60) -> str:
    """A text of so many words, of which "indeed" is said so many times, evenly."""
    said = [f"word{number}x{i}" for i in range(words)]
    for i in range(times):
        said[i * words // max(times, 1)] = "indeed"
    return " ".join(said)


HUMANS = [LabelledText(text_of(i, i % 4), "human", domain="news") for i in range(120)]
MACHINES = [LabelledText(text_of(i, 2 + i % 9), "machine", domain="news") for i in range(1000, 1120)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return calibrate(FunctionReward(share), [*HUMANS, *MACHINES])


def test_verdicts(detector):
    machine, human, neither = detector.score([text_of(900, 20), text_of(901, 0), text_of(902, 3)], fpr=0.05)
    assert [one.verdict for one in (machine, human, neither)] == ["machine", "human", "cannot tell"]
    assert machine.threshold == pytest.approx(3 / 60)
    assert machine.texts == 120
    assert machine.words == 60
    assert machine.probability > 0.9 > 0.5 > human.probability
    assert machine.reason == "higher than all but 5.00% of human texts, on average, judging by 120"
    assert neither.reason == "people and machines both write texts with such a score"
    assert machine.score == pytest.approx(20 / 60)


def test_what_no_calibration_resolves_is_not_told(detector):
    (strict,) = detector.score([text_of(1, 40)], fpr=0.001)
    assert strict.verdict == "cannot tell"
    assert strict.reason == "not resolvable at this rate: 120 calibration texts of 50 to 74 words, 999 needed"
    assert strict.threshold is None
    (sure,) = detector.score([text_of(1, 40)], fpr=0.01, guarantee="confidence")
    assert sure.reason.endswith("299 needed")
    (short,) = detector.score(["indeed indeed"], fpr=0.05)
    assert short.reason == "not resolvable at this rate: 0 calibration texts of under 25 words, 19 needed"


def test_disguises_are_taken_off_and_reported(detector):
    plainly, hidden = detector.score([text_of(3, 20), text_of(3, 20).replace("indeed", "ind\u200be\u0435d")], fpr=0.05)
    assert plainly.score == hidden.score
    assert (hidden.unseen, hidden.lookalikes) == (20, 20)


def test_rates_and_groups_that_make_no_sense_are_refused(detector):
    with pytest.raises(DetectorError, match=r"fpr 0.5 is no rate between 0 and 0.5; use 0.01 for 1%, say"):
        detector.score(["a"], fpr=0.5)
    with pytest.raises(DetectorError, match="group 'essays' was not calibrated; use one of: news, or leave it out"):
        detector.score(["a"], group="essays")
    with pytest.raises(DetectorError, match="texts is one text; give a list of them"):
        detector.score("The ferry was late.")
    unnamed = calibrate(FunctionReward(share), [replace(text, domain="") for text in HUMANS])
    with pytest.raises(
        DetectorError, match="group 'none' was not calibrated; leave it out, since the detector has none"
    ):
        unnamed.score(["a"], group="none")
    with pytest.raises(DetectorError, match="there is no human text to calibrate on"):
        calibrate(FunctionReward(share), MACHINES)


def test_without_machine_texts_nothing_is_called_human():
    detector = calibrate(FunctionReward(share), HUMANS)
    (one,) = detector.score([text_of(901, 0)], fpr=0.05)
    assert one.verdict == "cannot tell"
    assert one.reason.endswith("0 machine texts of 50 to 74 words are too few to call it a person's")
    assert one.probability is None


def test_a_text_counts_once(detector):
    """A human text beside several machines' is one text, however it is spaced."""
    again = [replace(text, text=text.text.replace(" ", "\n"), domain="more") for text in HUMANS]
    later = calibrate(FunctionReward(share), [*HUMANS, *again, *MACHINES])
    assert later.humans.scores.tolist() == detector.humans.scores.tolist()
    assert later.humans.group_names == ["news"]


def test_people_who_name_no_group_are_one_beside_others():
    """Those without a group write more like machines: a text of no known group has to lie above theirs too."""
    others = [LabelledText(text_of(i, 20 + i % 4), "human") for i in range(500, 620)]
    detector = calibrate(FunctionReward(share), [*HUMANS, *others])
    assert detector.humans.group_names == ["news", "no group"]
    (unknown,) = detector.score([text_of(900, 22)], fpr=0.05)
    (known,) = detector.score([text_of(900, 22)], fpr=0.05, group="news")
    assert (unknown.verdict, known.verdict) == ("cannot tell", "machine")
    assert unknown.rests_on == ("news, 50 to 74 words", "news", "no group, 50 to 74 words", "no group")
    assert calibrate(FunctionReward(share), others).humans.group_names == []


def test_of_nothing_nothing_is_said(detector):
    (one,) = detector.score(["\u200b \u200b"], fpr=0.05)
    assert (one.verdict, one.reason, one.probability) == ("cannot tell", "there is nothing to read", None)


def test_a_later_calibration_keeps_the_machine_texts(detector):
    own = [LabelledText(text_of(i, 8 + i % 2), "human", domain="letters") for i in range(60)]
    later = calibrate(detector.reward, own, earlier=detector)
    assert later.humans.group_names == ["letters"]
    assert len(later.machines) == len(detector.machines)
    (one,) = later.score([text_of(7, 8)], fpr=0.05)
    assert one.verdict != "machine"  # where these people write, it is nothing special


def test_beginnings_are_calibrated_too(detector):
    """60 words reach the lengths of 25 and 50 words: a short text has a threshold."""
    (short,) = detector.score([text_of(5, 15, words=30)], fpr=0.05)
    assert short.verdict == "machine"
    rows = thresholds(detector, 0.05)
    assert [(row["group"], row["length"], row["texts"]) for row in rows] == [
        (group, length, 120) for group in ("", "news") for length in ("", "25 to 49 words", "50 to 74 words")
    ]
    row = rows[2]
    assert row["rate"] == 6 / 121
    assert row["interval"][0] < 0.05 < row["interval"][1]


def test_thresholds_hold_the_rate_on_other_people(detector):
    fresh = [text_of(i, i % 4) for i in range(500, 900)]
    flagged = sum(one.verdict == "machine" for one in detector.score(fresh, fpr=0.05))
    assert flagged / len(fresh) <= 0.05


def test_odds_are_even_where_both_are_as_likely():
    random = np.random.default_rng(0)

    def of(centre, n):
        return Scored(random.normal(centre, 1, n), np.full(n, 60), np.full(n, ""), np.ones(n, dtype=bool))

    lengths = odds(of(-1.0, 3000), of(1.0, 500))  # however many there are of each
    slope, intercept = lengths[length_of(60)]
    assert np.isnan(lengths).sum() == 2 * len(LENGTHS)  # no other length has texts
    assert slope == pytest.approx(2.0, abs=0.25)  # the log-odds of two Gaussians of spread 1 at -1 and 1: 2 x
    assert intercept == pytest.approx(0.0, abs=0.25)
    assert np.isnan(odds(of(0, 100), Scored())).all()
    assert np.isnan(odds(of(0, 100), of(1, 19))).all()


def test_what_is_no_text_or_no_setting_is_refused_at_once(detector, types_unchecked):
    for texts, message in (
        ("one", "texts is one text"),
        (None, "texts is an object of type NoneType; give a list of texts"),
        ((text for text in ["a"]), "texts is an object of type generator"),
        (["a", None], "text 2 is an object of type NoneType; give a text"),
        ([b"a"], "text 1 is an object of type bytes"),
    ):
        with pytest.raises(DetectorError, match=message):
            detector.score(texts)
    for settings, message in (
        ({"fpr": 5e-324}, "fpr 5e-324 is no rate between 0 and 0.5"),
        ({"fpr": "0.05"}, "fpr 0.05 is no rate"),
        ({"guarantee": "x"}, "guarantee 'x' is unknown; use average or confidence"),
    ):
        with pytest.raises(DetectorError, match=message):
            detector.score(["a"], **settings)


def test_groups_are_part_of_the_calibration(detector, tmp_path):
    (tmp_path / "midcourse.json").write_text("{}")
    detector.save(tmp_path)
    record = json.loads((tmp_path / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps({**record, "groups": ["letters"]}))
    with pytest.raises(DetectorError, match="its two files are of two calibrations"):
        Detector.load(tmp_path)
    (tmp_path / "detector.json").write_text("[" * 200_000)
    with pytest.raises(DetectorError, match="is damaged"):
        Detector.load(tmp_path)


def test_a_text_of_which_nothing_is_seen_is_not_calibrated_on():
    blank = LabelledText("\u200b\u200c", "human", domain="news")
    assert calibrate(FunctionReward(share), [*HUMANS, blank]).about["humans"] == len(HUMANS)


def test_verdicts_are_gone_on_with(detector, tmp_path):
    texts, out = [*HUMANS[:5], *MACHINES[:5]], tmp_path / "verdicts.jsonl"
    assert write_verdicts(out, detector, texts, {"fpr": 0.05}) == (10, 0)
    whole = out.read_text()
    out.write_text("".join(line + "\n" for line in whole.splitlines()[:4]) + '{"torn')
    assert write_verdicts(out, detector, texts, {"fpr": 0.05}, resume=True) == (6, 4)
    assert out.read_text() == whole
    assert [json.loads(line)["row"] for line in whole.splitlines()] == list(range(10))
    with pytest.raises(Exception, match=r"holds rows with fpr 0.05, not 0.01"):
        write_verdicts(out, detector, texts, {"fpr": 0.01}, resume=True)
    with pytest.raises(Exception, match="is about another text than text 0"):
        write_verdicts(out, detector, texts[::-1], {"fpr": 0.05}, resume=True)
    with pytest.raises(Exception, match="exists already"):
        write_verdicts(out, detector, texts, {"fpr": 0.05})
    other = calibrate(detector.reward, [*HUMANS[:-1], replace(HUMANS[-1], text=text_of(999, 5)), *MACHINES])
    assert other.about == detector.about
    with pytest.raises(Exception, match=r"holds rows with calibration '\w+', not '\w+'"):
        write_verdicts(out, other, texts, {"fpr": 0.05}, resume=True)


def test_few_texts_of_ones_own_do_not_make_every_text_familiar():
    """What a calibration of too few texts cannot tell is left to the earlier one."""
    far = FunctionReward(share)
    words, random = [60, 60, 10], np.random.default_rng(0)
    wide = Familiar.of(random.normal(size=(400, 8)), np.full(400, 60), [str(i) for i in range(400)])
    few = Familiar.of(random.normal(size=(100, 8)), np.full(100, 60), [str(i) for i in range(100)])
    features = np.concatenate([np.zeros((1, 8)), np.full((2, 8), 99.0)])
    far.rate_alone = lambda texts, advance: Alone([0.0] * len(texts), features, [1] * len(texts))
    for calibrations in ((wide,), (wide, few), (few, wide)):
        detector = replace(calibrate(FunctionReward(share), HUMANS), reward=far, familiar=calibrations)
        _, strange = detector.read(["word " * count for count in words])
        assert strange == [False, True, False]  # of texts of 10 words neither tells


def test_a_saved_detector_says_the_same(model_folder, tmp_path):
    """Scores, groups, odds and what is familiar come back from the folder, beside the reward."""
    folder = model_folder()
    lm = LanguageModel.load(folder, dtype="float32")
    reward = pooled(lm)
    reward.info = replace(reward.info, backbone=folder, backbone_fingerprint=weights_fingerprint(folder))
    texts = [
        LabelledText(text_of(i, i % 4, 26), label, domain="news" if i % 2 else "letters")
        for label, numbers in (("human", range(120)), ("machine", range(200, 320)))
        for i in numbers
    ]
    detector = calibrate(reward, texts)
    assert len(detector.familiar) == 1
    reward.save(tmp_path / "detector")
    with pytest.raises(DetectorError, match="has no calibration"):
        Detector.load(tmp_path / "detector")
    detector.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector", dtype="float32")
    assert loaded.humans.group_names == ["letters", "news"]
    fresh = [text_of(i, i % 7, 26) for i in range(400, 440)] + ["!? " * 30]
    have, want = (list(one.score(fresh, fpr=0.05)) for one in (loaded, detector))
    assert [one.verdict for one in have] == [one.verdict for one in want]
    assert [one.reason for one in have] == [one.reason for one in want]
    assert [one.score for one in have] == pytest.approx([one.score for one in want], rel=1e-4)
    assert [one.probability for one in have] == pytest.approx([one.probability for one in want], abs=1e-3)
    assert [one.texts for one in have] == [one.texts for one in want]
    assert loaded.fingerprint == detector.fingerprint
    record = json.loads((tmp_path / "detector" / "detector.json").read_text())
    calibrate(reward, texts[:-1]).save(tmp_path / "detector")
    (tmp_path / "detector" / "detector.json").write_text(json.dumps(record))
    with pytest.raises(DetectorError, match=r"damaged \(its two files are of two calibrations\)"):
        Detector.load(tmp_path / "detector")
    detector.save(tmp_path / "detector")
    other = pooled(lm)
    other.head.difference[0] += 1
    other.info = reward.info
    other.write(tmp_path / "detector")
    with pytest.raises(DetectorError, match="holds another reward than the one that was calibrated"):
        Detector.load(tmp_path / "detector", dtype="float32")
    (tmp_path / "detector" / "detector.json").write_text('{"format": 7}')
    with pytest.raises(DetectorError, match="has format 7, this release reads 1"):
        Detector.load(tmp_path / "detector")
    (tmp_path / "detector" / "detector.json").write_text("{")
    with pytest.raises(DetectorError, match=r"the calibration in .* is damaged .*; remove detector.json"):
        Detector.load(tmp_path / "detector")
