"""A reward from its name, whatever kind it is of."""

from pathlib import Path

from midcourse.language_model import ModelError, load_config, resolve
from midcourse.prompt import Template
from midcourse.reward import Reward, RewardError
from midcourse.reward_model import RewardModel
from midcourse.text_reward import ClassifierReward
from midcourse.vocabulary_reward import VocabularyReward


def load_reward(
    name: str | Path, *, template: Template | None = None, device: str = "auto", dtype: str = "auto"
) -> Reward:
    """Load what `midcourse train` wrote, a sequence classifier of one label, or a causal LM.

    A classifier becomes a reward of whole texts, a causal LM one of the vocabulary whose rewards are its
    log-probabilities (GenARM's autoregressive reward).

    Args:
        template: how prompts were rendered in a causal LM's training; "raw" by default. The others know theirs.

    Raises:
        RewardError, ModelError: no reward of that name.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return RewardModel.load(folder, device=device, dtype=dtype)
    try:
        config = load_config(resolve(str(name)))
    except ModelError as error:
        raise RewardError(
            f"{name} is no reward: neither a folder that midcourse train wrote nor a model of transformers; "
            "name one of these"
        ) from error
    kinds = getattr(config, "architectures", None) or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return ClassifierReward.load(name, device=device, dtype=dtype)
    return VocabularyReward.load(name, template=template or "raw", device=device, dtype=dtype)
