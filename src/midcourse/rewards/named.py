"""A reward from its name, whatever kind it is of."""

from importlib.resources import files
from pathlib import Path

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import LoadError, ModelError, load_config, resolve
from midcourse.lm.prompt import Template
from midcourse.lm.weights import loaded_fingerprint
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Reward, RewardError
from midcourse.rewards.encoder import EncoderReward, is_encoder
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import read_info
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.rewards.trunk import TRUNK_RANK, TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward


def load_reward(
    name: str | Path,
    *,
    template: Template | None = None,
    device: str = "auto",
    dtype: str = "auto",
    share_with: LanguageModel | None = None,
    allow_other_weights: bool = False,
) -> Reward:
    """Load a shipped reward, what `midcourse train` wrote, a sequence classifier of one label, or a causal LM.

    A classifier becomes a reward of whole texts, and so does what was trained on an encoder; a causal LM one of the
    vocabulary whose rewards are its log-probabilities (GenARM's autoregressive reward).

    Args:
        template: how prompts were rendered in a causal LM's training, "raw" by default; or in that of a sequence
            classifier, by default its tokenizer's chat template where it has one. The others know theirs, and so does
            what `midcourse export` wrote.
        share_with: the language model whose weights the reward is to use instead of a second copy; for what
            `midcourse train` wrote. It saves memory, not passes.
        allow_other_weights: for a trunk reward that shares: see `RewardModel.load`.

    Raises:
        RewardError, ModelError: no reward of that name, or one that cannot share.
    """
    kind, name = kind_of(name), place_of(name)
    if issubclass(kind, RewardModel) and not issubclass(kind, EncoderReward):
        return kind.load(
            name, device=device, dtype=dtype, share_with=share_with, allow_other_weights=allow_other_weights
        )
    if share_with is not None:
        raise RewardError(
            f"{name} is a model of its own, not a reward that midcourse train wrote on an LM, and shares no weights "
            f"with {share_with.name}; leave share_with (guide: --share-weights) out"
        )
    if kind is EncoderReward:
        return EncoderReward.load(name, device=device, dtype=dtype).classifier(str(name))
    if issubclass(kind, ImplicitReward):
        return kind.load(name, device=device, dtype=dtype)
    if issubclass(kind, ClassifierReward):
        return kind.load(name, template=template, device=device, dtype=dtype)
    return kind.load(name, template=template or "raw", device=device, dtype=dtype)


def shipped() -> dict[str, Path]:
    """The folders of the rewards that come with midcourse, by name; each has a README.md that is its card."""
    folder = Path(str(files("midcourse") / "shipped/rewards"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/midcourse.json"))}


def place_of(name: str | Path) -> str | Path:
    """Where a reward of that name is: a folder here of that name comes before a shipped reward."""
    return name if Path(name).exists() else shipped().get(str(name), name)


def shareable(name: str | Path, lm: LanguageModel) -> bool:
    """Whether the reward of that name can stand on the language model's own weights (`share_with`)."""
    folder = Path(place_of(name))
    if not (folder / "midcourse.json").is_file():
        return False
    info = read_info(folder)
    if info.tune == "all" or info.head in ("implicit", EncoderReward.KIND):
        return False
    layers = lm.model.get_decoder().config.num_hidden_layers
    return info.backbone_layers in (0, layers) and loaded_fingerprint(lm.model) == info.backbone_fingerprint


def kind_of(
    name: str | Path,
) -> type[RewardModel] | type[ImplicitReward] | type[ClassifierReward] | type[VocabularyReward]:
    """What kind of reward has that name, its weights unread; RewardError for none."""
    folder = Path(name := place_of(name))
    if folder.is_dir() and not (folder / "config.json").is_file():
        head = read_info(folder).head
        return ImplicitReward if head == "implicit" else kind_of_head(head)
    try:
        config = load_config(resolve(str(name)))
    except LoadError:  # there is a model, and the sentence says what is wrong with it
        raise
    except ModelError as error:
        raise RewardError(
            f"{name} is no reward: neither a shipped one ({', '.join(shipped())}) nor a folder that midcourse train "
            "wrote nor a model of transformers; name one of these"
        ) from error
    kinds = getattr(config, "architectures", None) or []
    classifier = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if not classifier and is_encoder(config):
        raise RewardError(
            f"{name} is an encoder without a trained head; train one with midcourse train --backbone {name}"
        )
    return ClassifierReward if classifier else VocabularyReward


def head_of(name: str, backbone: str) -> tuple[type[RewardModel], str]:
    """The kind of reward with a head of that name on a backbone, and the name with its rank.

    Raises:
        RewardError: an unknown head, or one that the backbone cannot have.
    """
    if is_encoder(load_config(resolve(backbone))):
        if name not in ("scalar", EncoderReward.KIND):
            raise RewardError(
                f"{backbone} is an encoder, whose rewards are of whole texts, and has no {name} head; "
                "use --objective sequence without --head"
            )
        return EncoderReward, EncoderReward.KIND
    kind, _, rank = name.partition(":")
    if kind == "trunk" and (rank or str(TRUNK_RANK)).isdecimal() and rank != "0":
        return TrunkReward, f"trunk:{rank or TRUNK_RANK}"
    if name not in ("scalar", "vocabulary"):
        raise RewardError(f"head {name!r} is unknown; use scalar, vocabulary, trunk or trunk:RANK")
    return kind_of_head(name), name


def kind_of_head(head: str) -> type[RewardModel]:
    """The kind of reward that has such a head, as midcourse.json names it."""
    kinds: tuple[type[RewardModel], ...] = (RewardModel, TrainedVocabularyReward, TrunkReward, EncoderReward)
    for kind in kinds:
        if head.partition(":")[0] == kind.KIND:
            return kind
    raise RewardError(f"head {head!r} is unknown to this release; train the reward again")
