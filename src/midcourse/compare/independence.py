"""Whether a judge is independent of a guide: neither weights nor training rows may be shared.

A judge that shares either with what it judges rewards the guide's own mistakes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from midcourse.data.formats import DataError
from midcourse.data.learned import read_learned_rows
from midcourse.files import as_json, write_text
from midcourse.lm.weights import files_fingerprint, matrix_hashes, weight_files
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import place_of, read_info
from midcourse.rewards.named import is_function, kind_of

PAID_BY = "paid_by.json"  # in a policy's folder: what the rewards are made of that it was trained to earn


@dataclass(frozen=True)
class Origin:
    """What a reward, a judge or a policy is made of.

    Attributes:
        name: for people.
        fingerprint: of all of it.
        matrices: hashes of its matrices and of those that it was trained from, to their names.
        rows: hashes of the rows that it learned from, sorted; None if it does not say.
        function: the name of the function that it is.
        paid_by: of a policy, the rewards that it was trained to earn.
    """

    name: str
    fingerprint: str
    matrices: Mapping[str, str] = field(default_factory=dict, repr=False)
    rows: np.ndarray | None = field(default=None, repr=False)
    function: str | None = None
    paid_by: tuple["Origin", ...] = ()


def of_function(name: str) -> Origin:
    """Return the origin of a function of the text: "vader", or "MODULE:FUNCTION"."""
    return Origin(name, name, rows=np.empty(0, dtype=np.int64), function=name)


def of_reward(source: str, name: str) -> Origin:
    """Return the origin of a reward that `load_reward` can load."""
    if is_function(source):
        return of_function(source)
    folder = Path(source := str(place_of(source)))
    if not (folder / "midcourse.json").is_file():
        files = weight_files(source)
        return Origin(name, files_fingerprint(files), matrix_hashes(files), read_learned_rows(folder))
    info = read_info(folder)
    if kind_of(source) is ImplicitReward:
        models = [info.backbone, info.objective_settings["reference"]]
        files = [file for model in models for file in weight_files(model)]
        rows = read_learned_rows(info.backbone)
        return Origin(name, files_fingerprint(files), matrix_hashes(files), rows)
    own = [folder / "reward.safetensors"]
    fingerprint = f"{files_fingerprint(own)}-{info.backbone_fingerprint}"
    return Origin(name, fingerprint, _with_parents(matrix_hashes(own), info.backbone), read_learned_rows(folder))


def of_policy(source: str, name: str) -> Origin:
    """Return the origin of a policy that `load_policy` can load."""
    folder, files = Path(source), weight_files(source)
    found = Origin(name, files_fingerprint(files), matrix_hashes(files), read_learned_rows(folder))
    return replace(found, paid_by=read_paid_by(folder))


def write_earned(folder: Path, lm: str, rewards: Sequence[Origin] = ()) -> tuple[Origin, ...]:
    """Write beside a policy what the rewards are made of that it was trained to earn, if any: `of_policy` reads it.

    Args:
        lm: the model that it began at. What that was trained to earn, it was trained to earn too.

    Returns:
        All of them.
    """
    earned = (*read_paid_by(Path(lm)), *rewards)
    if earned:
        write_paid_by(folder, earned)
    return earned


def write_paid_by(folder: Path, rewards: Sequence[Origin]) -> None:
    """Write what rewards are made of into a policy's folder."""
    rows = [{"name": one.name, "fingerprint": one.fingerprint, "matrices": dict(one.matrices)} for one in rewards]
    write_text(folder / PAID_BY, as_json(rows) + "\n")


def read_paid_by(folder: Path) -> tuple[Origin, ...]:
    """Return what `write_paid_by` wrote beside a policy; nothing if it wrote nothing.

    Raises:
        DataError: the file is damaged.
    """
    if not (folder / PAID_BY).is_file():
        return ()
    try:
        return tuple(Origin(**row) for row in json.loads((folder / PAID_BY).read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{folder / PAID_BY} is damaged ({error}); train the policy again") from error


def _with_parents(own: dict[str, str], backbone: str) -> dict[str, str]:
    """Return the matrices, with those of the model that they were trained from."""
    return {**matrix_hashes(weight_files(backbone)), **own}


def why_dependent(judge: Origin, guide: Origin) -> str | None:
    """Return what a judge shares with a guide, as the end of a sentence; None if nothing is known to be shared.

    What a policy was trained to earn is no judge of it.
    """
    for reward in guide.paid_by:
        if judge.fingerprint == reward.fingerprint:
            return f"is what the policy {guide.name} was trained to earn"
        if why := why_dependent(judge, reward):
            return f"{why}, which the policy {guide.name} was trained to earn"
    if judge.fingerprint == guide.fingerprint:
        return f"is the guide {guide.name} itself"
    shared = judge.matrices.keys() & guide.matrices.keys()
    if shared:
        example = sorted(judge.matrices[key] for key in shared)[0]
        return (
            f"shares weights with the guide {guide.name} ({len(shared)} matrices, {example} among them): "
            "one was trained from the other, or both from one model"
        )
    if judge.rows is None or guide.rows is None:
        return None
    common = len(np.intersect1d(judge.rows, guide.rows, assume_unique=True))
    return f"learned from {common} of the {len(guide.rows)} rows that {guide.name} learned from" if common else None


def unknown(judge: Origin, guides: Sequence[Origin]) -> list[str]:
    """Return what could not be checked, a sentence each."""
    silent = [one for one in (judge, *guides) if one.rows is None]
    if judge.function is not None or not silent:
        return []
    names = ", ".join(dict.fromkeys(one.name for one in silent))
    return [f"which rows {names} learned from is not recorded, so shared ones could not be looked for"]
