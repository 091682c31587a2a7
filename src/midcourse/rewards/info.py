"""What midcourse.json records about a reward, and whether a reward may stand on a model's own weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midcourse.lm.language_model import (
    LanguageModel,
)
from midcourse.lm.load import (
    resolve_device,
    resolve_dtype,
)
from midcourse.lm.prompt import Template
from midcourse.lm.weights import loaded_fingerprint
from midcourse.rewards.contract import RewardError, check_rendering

FORMAT = 1


@dataclass(frozen=True)
class RewardInfo:
    """What midcourse.json records about a reward."""

    backbone: str
    backbone_fingerprint: str
    layers: int
    tune: str
    template: Template
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
    format: int = FORMAT

    @property
    def all_eos(self) -> list[int]:
        """Every token that ends a text, the one that training wrote first."""
        return [self.eos_token_id, *(i for i in self.eos_token_ids if i != self.eos_token_id)]

    @property
    def additive(self) -> bool:
        """Whether a text's reward is the sum of its tokens' rewards; otherwise it is that of its last token."""
        return self.objective in ("autoregressive", "implicit")


def check_sharing(
    folder: Path, info: RewardInfo, lm: LanguageModel, device: str, dtype: str, allow_other_weights: bool
) -> None:
    """Raise RewardError where a saved reward cannot stand on the weights of a language model in memory."""
    if info.tune == "all":
        raise RewardError(
            f"the reward in {folder} trained all of its weights (tune all) and has none to share with {lm.name}; "
            "leave share_with (guide: --share-weights) out"
        )
    model = lm.model
    for name, asked, has in (
        ("device", device if device == "auto" else resolve_device(device), model.device),
        ("dtype", dtype if dtype == "auto" else resolve_dtype(dtype, model.device), model.dtype),
    ):
        if asked not in ("auto", has):
            raise RewardError(
                f"the reward in {folder} cannot have {name} {asked} on the weights of {lm.name}, which have {has}; "
                f"leave {name} out"
            )
    found = None if allow_other_weights else loaded_fingerprint(model)
    if not allow_other_weights and found != info.backbone_fingerprint:
        which = f"fingerprint {found}" if found else "it was not loaded from files, or was changed since"
        remedy = ", or allow other weights (--allow-other-weights) if they are nearly the same"
        raise RewardError(
            f"the reward in {folder} was trained on the weights of {info.backbone} (fingerprint "
            f"{info.backbone_fingerprint}), and {lm.name} in memory has others ({which}); leave share_with "
            "(guide: --share-weights) out" + (remedy if info.head != "scalar" else "")
        )
    if info.backbone_layers and info.backbone_layers != model.get_decoder().config.num_hidden_layers:
        raise RewardError(
            f"the reward in {folder} was trained on {info.backbone} of {info.backbone_layers} layers, and {lm.name} "
            f"has {model.get_decoder().config.num_hidden_layers}; train one on {lm.name}"
        )
    if info.tokenizer == lm.tokens:  # load refuses others, as of any reward
        check_rendering(lm, info.backbone, info.template, info.chat_template, info.eos_token_ids)


def read_info(folder: Path) -> RewardInfo:
    """What midcourse.json says; RewardError where the folder holds no reward of this format."""
    path = folder / "midcourse.json"
    if not path.is_file():
        raise RewardError(
            f"{folder} is not a reward: it has no midcourse.json; name a folder that midcourse train wrote"
        )
    try:
        fields = json.loads(path.read_text())
        if fields.get("format") != FORMAT:
            raise RewardError(f"{path} has format {fields.get('format')}, this release reads {FORMAT}; train it again")
        tuples = {"eos_token_ids": tuple(fields["eos_token_ids"])}
        return RewardInfo(**{**fields, **tuples})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise RewardError(f"{path} is damaged ({error}); train the reward again") from error
