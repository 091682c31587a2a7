"""What midcourse.json records about a reward, and which rewards come with midcourse.

Imports neither torch nor transformers, so that what only reads about rewards answers at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any

from midcourse.errors import MidcourseError, first_line, short_value

if TYPE_CHECKING:
    from midcourse.lm.prompt import Template

FORMAT = 1
HUGE = 2**31  # no count, number of a layer or token reaches it
LONG = 1000  # characters of a name
# Objectives whose rewards are those of tokens.
ADDITIVE = ("autoregressive", "implicit", "edited-tokens", "token-discriminator")


class RewardError(MidcourseError):
    """A reward that cannot be loaded, or does not fit the language model or the call."""


@dataclass(frozen=True)
class RewardInfo:
    """What midcourse.json records about a reward.

    Attributes:
        template_arguments: values by name that the chat template was given; see `lm.prompt.set_arguments`.
        centre: what is subtracted from each token's reward, so that those which no edit touched are 0 on average.
    """

    backbone: str
    backbone_fingerprint: str
    layers: int
    tune: str
    template: "Template"
    objective: str
    eos_token_id: int
    eos_token_ids: tuple[int, ...]
    tokenizer: str
    chat_template: str | None = None
    objective_settings: dict[str, Any] = field(default_factory=dict)
    reward_weight: float | None = None
    head: str = "scalar"
    backbone_layers: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    centre: float = 0.0
    template_arguments: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def all_eos(self) -> list[int]:
        """Return every token that ends a text, first the one that training wrote."""
        return [self.eos_token_id, *(i for i in self.eos_token_ids if i != self.eos_token_id)]

    @property
    def additive(self) -> bool:
        """Return whether a text's reward is the sum of its tokens' rewards; otherwise it is that of its last token."""
        return self.objective in ADDITIVE


# What each field of midcourse.json holds.
KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("backbone", "backbone_fingerprint", "tune", "template", "objective", "tokenizer", "head"), str),
    **dict.fromkeys(("layers", "eos_token_id", "backbone_layers"), int),
    **dict.fromkeys(("objective_settings", "training", "metrics", "calibration", "template_arguments"), dict),
    "chat_template": str | None,
    "reward_weight": int | float | None,
    "centre": int | float,
}


def check_arguments_used(template: str, arguments: Mapping[str, Any] | None, name: str) -> None:
    """Raise RewardError if a chat template is given arguments and another way to render prompts is taken."""
    if arguments and template not in ("chat", "mixed"):
        raise RewardError(
            f"{name} renders prompts without a chat template ({template}), which the template-argument "
            f"{', '.join(arguments)} is for; leave it out or use --template chat"
        )


def read_info(folder: Path) -> RewardInfo:
    """Read a reward's midcourse.json; RewardError if the folder holds no reward of this format."""
    path = folder / "midcourse.json"
    if not path.is_file():
        raise RewardError(
            f"{folder} is not a reward: it has no midcourse.json; name a folder that midcourse train wrote"
        )
    try:
        fields = json.loads(path.read_text())
        if (written := fields.get("format")) != FORMAT:
            raise RewardError(f"{path} has format {short_value(written)}, this release reads {FORMAT}; train it again")
        tuples = {"eos_token_ids": tuple(fields["eos_token_ids"])}
        for name in KINDS.keys() & fields.keys():
            # To Python, true and false are numbers.
            value = fields[name]
            if not isinstance(value, KINDS[name]) or isinstance(value, bool) or not _makes_sense(name, value):
                raise TypeError(f"{name} is {short_value(value)}")
        if any(type(token) is not int or not 0 <= token < HUGE for token in tuples["eos_token_ids"]):
            raise TypeError(f"eos_token_ids is {short_value(fields['eos_token_ids'])}")
        return RewardInfo(**{**fields, **tuples})
    except RewardError:
        raise
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, OSError) as error:
        raise RewardError(f"{path} is damaged ({first_line(error)}); train the reward again") from error


def _makes_sense(name: str, value: Any) -> bool:
    """Return whether a field may have a value: no negative or huge count, no NaN, no text of megabytes."""
    if name == "template":
        return value in ("chat", "raw", "mixed")
    if KINDS[name] is int:
        return 0 <= value < HUGE
    if isinstance(value, int | float):
        return -HUGE < value < HUGE
    return not isinstance(value, str) or len(value) < LONG


def shipped() -> dict[str, Path]:
    """Return the folders of the rewards that come with midcourse, by name; each has a README.md that is its card."""
    folder = Path(str(files("midcourse") / "shipped/rewards"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/midcourse.json"))}


def place_of(name: str | Path) -> str | Path:
    """Return where the reward of that name is: a folder here of that name comes before a shipped reward."""
    return name if Path(name).exists() else shipped().get(str(name), name)
