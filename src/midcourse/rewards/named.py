"""Any reward or function from its name.

A name is that of a folder that midcourse train or transformers wrote, of a shipped reward, of a function of the text
(vader, profanity, MODULE:FUNCTION), or of a model on the Hub. A folder of that name comes first.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import LoadError, ModelError, adapters_of, load_config
from midcourse.lm.prompt import Arguments, Template
from midcourse.lm.weights import loaded_fingerprint
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Reward
from midcourse.rewards.encoder import EncoderReward, is_encoder
from midcourse.rewards.gold import GOLDS
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import RewardError, place_of, read_info, shipped
from midcourse.rewards.pooled import PooledReward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.text import FunctionReward
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.rewards.trunk import TRUNK_RANK, TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward

Trained: TypeAlias = type[RewardModel] | type[EncoderReward]
# What midcourse train writes, by what comes first in the name of its head: a new kind is added here.
KINDS: dict[str, Trained] = {
    kind.KIND: kind for kind in (RewardModel, TrainedVocabularyReward, TrunkReward, EncoderReward)
}


def load_reward(
    name: str | Path,
    *,
    template: Template | None = None,
    template_arguments: Arguments | None = None,
    label: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    share_with: LanguageModel | None = None,
    allow_other_weights: bool = False,
) -> Reward:
    """Load the reward of that name.

    It names a shipped reward, a folder that `midcourse train` wrote, a function of the response ("vader", "profanity",
    "MODULE:FUNCTION"), a sequence classifier, or a causal LM; a folder of that name comes first. A
    classifier becomes a reward of whole texts, and so does what was trained on an encoder; a causal LM becomes a reward
    of the vocabulary whose rewards are its log-probabilities (GenARM's autoregressive reward).

    Args:
        template: how prompts were rendered in a causal LM's training, "raw" by default; or in that of a sequence
            classifier, by default its tokenizer's chat template if it has one. The others know theirs, and so does
            what `midcourse export` wrote.
        template_arguments: values by name for the chat template of a causal LM or a sequence classifier.
        label: which of a sequence classifier's labels is rewarded, by its log-odds, if it has several.
        share_with: the language model whose weights the reward is to use instead of a second copy; only for what
            `midcourse train` wrote. It saves memory, not passes.
        allow_other_weights: for a trunk reward that shares: see `RewardModel.load`.

    Raises:
        RewardError, ModelError: no reward of that name, or one that cannot share.
    """
    kind = kind_of(name)
    if template_arguments and not issubclass(kind, ClassifierReward | VocabularyReward):
        raise RewardError(f"{name} renders prompts as it was made to; leave the template-argument out")
    if label is not None and not issubclass(kind, ClassifierReward):
        raise RewardError(f"{name} is no classifier of several labels; leave --label {label} out")
    if issubclass(kind, FunctionReward):
        return kind.load(str(name))
    name = place_of(name)
    if issubclass(kind, RewardModel):
        return kind.load(
            name, device=device, dtype=dtype, share_with=share_with, allow_other_weights=allow_other_weights
        )
    if issubclass(kind, PooledReward):
        return kind.load(name, device=device, dtype=dtype, share_with=share_with)
    if share_with is not None:
        raise RewardError(
            f"{name} is a model of its own, not a reward that midcourse train wrote on an LM, and shares no weights "
            f"with {share_with.name}; leave share_with (guide: --share-weights) out"
        )
    if issubclass(kind, EncoderReward):
        return kind.load(name, device=device, dtype=dtype).classifier(str(name))
    if issubclass(kind, ImplicitReward):
        return kind.load(name, device=device, dtype=dtype)
    if issubclass(kind, ClassifierReward):
        return kind.load(
            name,
            template=template,
            label=label,
            device=device,
            dtype=dtype,
            template_arguments=template_arguments,
        )
    return kind.load(
        name, template=template or "raw", device=device, dtype=dtype, template_arguments=template_arguments
    )


def named_rewards(
    lm: LanguageModel,
    names: Sequence[str],
    functions: Sequence[str] = (),
    *,
    template: Template | None = None,
    template_arguments: Arguments | None = None,
    label: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    share_weights: bool = False,
    allow_other_weights: bool = False,
) -> list[Reward]:
    """Load rewards to guide a language model with, in the order of their names, the functions last.

    Args:
        functions: "vader", "profanity" or "MODULE:FUNCTION", even if a folder has that name.
        template_arguments: the language model's, which causal LMs among the rewards have too.
        label: what is rewarded of classifiers of several labels.
        share_weights: build all of them on the LM's own weights. A trunk reward stands on them anyway, if they are
            those of its training.
        allow_other_weights: let a trunk reward stand on the LM's weights even if they are not.

    Raises:
        RewardError, ModelError: as `load_reward`.
    """

    check_label(label, names)

    def load(name: str) -> Reward:
        trunk = kind_of(name) is TrunkReward
        other = trunk and allow_other_weights and other_backbone(name, lm) is not None
        share = share_weights or other or (trunk and other_backbone(name, lm) is None)
        return load_reward(
            name,
            template=template,
            **own_settings(name, template_arguments=template_arguments, label=label),
            device=device,
            dtype=dtype,
            share_with=lm if share else None,
            allow_other_weights=other,
        )

    return [load(name) for name in names] + [FunctionReward.load(name) for name in functions]


def weighted(
    rewards: Sequence[Reward], own: Sequence[float | None], common: float | None, *, tokenwise: bool
) -> tuple[list[tuple[Reward, float]], float | None]:
    """Return the rewards with their own weights, and the weight that multiplies all of them.

    The latter is None if it is left to a lone reward or to the method. A lone reward's weight becomes the common one,
    so that its rewards are reported as they are.

    Args:
        own: each reward's weight; None stands for 1, or for a lone reward's or the method's.
        common: what the user wants all of them multiplied by.
        tokenwise: the method guides every token; one of whole blocks takes the weights as they are.
    """
    pairs = [(reward, 1.0 if weight is None else weight) for reward, weight in zip(rewards, own, strict=True)]
    if not tokenwise:
        return pairs, common
    if common is None and any(weight is not None for weight in own):
        common = 1.0
    if len(pairs) == 1 and common is not None:
        return [(rewards[0], 1.0)], common * pairs[0][1]
    return pairs, common


def load_label(
    reward: str | None,
    function: str | None,
    *,
    template: Template | None = None,
    template_arguments: Arguments | None = None,
    label: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Reward | None:
    """Load what gives texts their numbers: a reward of any kind, or a function, by name; None without either.

    Raises:
        RewardError, ModelError: both are named, or as `load_reward`.
    """
    if reward is not None and function is not None:
        raise RewardError("a reward and a function cannot both give the numbers; leave one out")
    if function is not None:
        return FunctionReward.load(function)
    if reward is None:
        return None
    return load_reward(
        reward, template=template, template_arguments=template_arguments, label=label, device=device, dtype=dtype
    )


def own_settings(
    name: str | Path, *, template_arguments: Arguments | None = None, label: str | None = None
) -> dict[str, Any]:
    """Return for `load_reward` what the reward of that name takes of settings that are meant for several."""
    return {
        "template_arguments": template_arguments if kind_of(name) is VocabularyReward else None,
        "label": label if has_labels(name) else None,
    }


def check_label(label: str | None, names: Iterable[str]) -> None:
    """Raise RewardError if a label is given and none of these rewards has several."""
    if label is not None and not any(map(has_labels, names)):
        raise RewardError(f"no reward is a classifier of several labels; leave --label {label} out")


def has_labels(name: str | Path) -> bool:
    """Return whether the reward of that name is a classifier of several labels, of which one has to be named."""
    return kind_of(name) is ClassifierReward and load_config(str(place_of(name))).num_labels > 1


def is_function(name: str | Path) -> bool:
    """Return whether a name is that of a function of the text; a file or folder of that name comes first."""
    text = str(name)
    return not Path(name).exists() and "://" not in text and (text in GOLDS or ":" in text)


def shareable(name: str | Path, lm: LanguageModel) -> bool:
    """Return whether the reward of that name can stand on the language model's own weights (`share_with`)."""
    folder = Path(place_of(name))
    if not (folder / "midcourse.json").is_file():
        return False
    info = read_info(folder)
    if info.tune == "all" or info.head in ("implicit", EncoderReward.KIND):
        return False
    layers = lm.model.get_decoder().config.num_hidden_layers
    return info.backbone_layers in (0, layers) and loaded_fingerprint(lm.model) == info.backbone_fingerprint


def other_backbone(name: str | Path, lm: LanguageModel) -> str | None:
    """Return the model that a saved reward was trained on if the language model has other weights; None if the same."""
    info = read_info(Path(place_of(name)))
    return None if loaded_fingerprint(lm.model) == info.backbone_fingerprint else info.backbone


def kind_of(
    name: str | Path,
) -> (
    type[RewardModel]
    | type[EncoderReward]
    | type[ImplicitReward]
    | type[PooledReward]
    | type[ClassifierReward]
    | type[VocabularyReward]
    | type[FunctionReward]
):
    """Return the kind of reward that has that name, its weights unread; RewardError if there is none."""
    if is_function(name):
        FunctionReward.load(str(name))  # refuses what cannot be imported
        return FunctionReward
    folder = Path(name := place_of(name))
    if folder.is_dir() and not (folder / "config.json").is_file() and not adapters_of(str(name)):
        head = read_info(folder).head
        own: dict[str, type[ImplicitReward] | type[PooledReward]] = {
            "implicit": ImplicitReward,
            PooledReward.KIND: PooledReward,
        }
        return own.get(head) or kind_of_head(head)
    try:
        config = load_config(str(name))
    except LoadError:  # there is a model, and the sentence says what is wrong with it
        raise
    except ModelError as error:
        raise RewardError(
            f"{name} is no reward: neither a shipped one ({', '.join(shipped())}) nor a folder that midcourse train "
            f"wrote nor a function ({', '.join(GOLDS)}, MODULE:FUNCTION) nor a model of transformers; name one of these"
        ) from error
    kinds = getattr(config, "architectures", None) or []
    classifier = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if not classifier and is_encoder(config):
        raise RewardError(
            f"{name} is an encoder without a trained head; train one with midcourse train --backbone {name}"
        )
    return ClassifierReward if classifier else VocabularyReward


def head_of(name: str, backbone: str) -> tuple[Trained, str]:
    """Return the kind of reward with a head of that name on a backbone, and the name with its rank.

    Raises:
        RewardError: an unknown head, or one that the backbone cannot have.
    """
    if is_encoder(load_config(backbone)):
        if name not in ("scalar", EncoderReward.KIND):
            raise RewardError(
                f"{backbone} is an encoder, whose rewards are of whole texts, and has no {name} head; "
                "use --objective sequence without --head"
            )
        return EncoderReward, EncoderReward.KIND
    kind, _, rank = name.partition(":")
    if kind == TrunkReward.KIND and (rank or str(TRUNK_RANK)).isdecimal() and rank != "0":
        return TrunkReward, f"trunk:{rank or TRUNK_RANK}"
    if name not in KINDS or name in (TrunkReward.KIND, EncoderReward.KIND):
        raise RewardError(f"head {name!r} is unknown; use scalar, vocabulary, trunk or trunk:RANK")
    return KINDS[name], name


def kind_of_head(head: str) -> Trained:
    """Return the kind of reward that has such a head, as midcourse.json names it."""
    kind = KINDS.get(head.partition(":")[0])
    if kind is None:
        raise RewardError(f"head {head!r} is unknown to this release; train the reward again")
    return kind
