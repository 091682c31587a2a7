"""What training begins at: a new head on a pretrained model, or a reward that was trained before."""

from pathlib import Path
from typing import Any

from midcourse.lm.load import load_config
from midcourse.lm.prompt import Arguments, Template
from midcourse.rewards.encoder import is_encoder
from midcourse.rewards.info import RewardError, place_of, read_info
from midcourse.rewards.named import KINDS, head_of, is_function, kind_of_head
from midcourse.rewards.trained import TrainedReward
from midcourse.train.objectives import Objective, check_head


def is_trained(name: str) -> bool:
    """Return whether a reward of that name was trained before: a folder that midcourse wrote, or a shipped one."""
    return (Path(place_of(name)) / "midcourse.json").is_file()


def begin(
    name: str,
    objective: Objective,
    *,
    head: str | None = None,
    layers: int | None = None,
    tune: str | None = None,
    template: Template | None = None,
    template_arguments: Arguments | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> TrainedReward:
    """Return the reward that training with an objective begins at.

    Args:
        name: of a shipped reward or a folder that midcourse train wrote, whose training goes on; or of a pretrained
            model ("smollm2", "minilm", folder, Hub id), which gets a new head.
        head: kind of a new one; by default the first that the objective trains.
        layers: how many of the model's a new head stands on; by default all.
        template: how a new one shows prompts to the model; "raw" by default.
        template_arguments: values by name for the model's chat template.
        tune: what is trained; by default last:2 with a new scalar or encoder head, the head alone with a new one of
            another kind, and what was trained before if training goes on. Then it may only be more than that.
        seed: of new weights.

    Raises:
        RewardError, ModelError: no such reward or model, or one that cannot be trained so.
        ObjectiveError: the objective does not train such a head.
    """
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    recorded: dict[str, Any] = {"objective": objective.name, "objective_settings": objective.settings}
    if is_trained(name):
        asked = {"head": head, "layers": layers, "template": template, "template-argument": template_arguments or None}
        for flag, value in asked.items():
            if value is not None:
                raise RewardError(f"the reward {name} has its {flag} from its training; leave --{flag} {value} out")
        return _go_on(name, objective, tune, seed, recorded, place)
    _check_trainable(name)
    kind, head = head_of(head or objective.heads[0], name)
    check_head(objective, head)
    tune = tune or ("last:2" if head in ("scalar", "encoder") else "head")
    recorded |= {"template": template or "raw", "layers": layers, "head": head, "tune": tune}
    recorded["template_arguments"] = template_arguments
    return kind.create(name, seed=seed, **recorded, **place)


def _go_on(
    name: str, objective: Objective, tune: str | None, seed: int, recorded: dict[str, Any], place: dict[str, Any]
) -> TrainedReward:
    """Load a reward that was trained before, to be trained further."""
    folder = Path(place_of(name))
    info = read_info(folder)
    if info.additive:
        raise RewardError(
            f"the rewards of {name} are of tokens (objective {info.objective}), which objective {objective.name} does "
            "not go on with; name a reward of another objective, or a model"
        )
    if info.head.partition(":")[0] not in KINDS:
        raise RewardError(f"the {info.head} head of {name} is not trained in steps; name another reward, or a model")
    check_head(objective, info.head)
    loaded = kind_of_head(info.head).load(folder, **place)
    loaded.name = name
    return loaded.to_train_on(folder, tune, seed, **recorded)


def _check_trainable(name: str) -> None:
    """Raise RewardError if what has that name is a reward that has nothing to train, or would lose its head."""
    if is_function(name):
        raise RewardError(f"{name} is a function, which is not trained; name a reward or a model, such as smollm2")
    config = load_config(name)
    kinds = getattr(config, "architectures", None) or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds) and not is_encoder(config):
        raise RewardError(
            f"{name} is a causal model with a classification head, which would be lost; name the reward that midcourse "
            "train wrote, or the model that it was trained from"
        )
