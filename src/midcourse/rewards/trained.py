"""What every reward has that `midcourse train` writes: a backbone, a head, and files that hold what was trained.

A saved reward is a folder of safetensors and JSON:

    midcourse.json       how it was trained, its template and EOS ids, the backbone's name and fingerprint
    reward.safetensors   the head and whatever else was trained (adapter, last layers, or everything)
    rows.safetensors     hashes of the rows it learned from; see data.learned
    backbone/            config of the backbone, only if all of it was trained
"""

from abc import abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerBase

from midcourse.errors import short_value
from midcourse.files import as_json, whole_file, whole_folder, write_text
from midcourse.lm.language_model import tokenizer_fingerprint
from midcourse.lm.load import check_tokens, largest_size, stored_shapes
from midcourse.lm.prompt import Prompt, Template
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.backbone import Backbone, Tuning
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import RewardError, RewardInfo


class TrainedReward(nn.Module, Reward):
    """A backbone with a head, and what is recorded about both.

    Attributes:
        KIND: what comes first in the name of the head.
        HEAD_LEARNING_RATE: the peak learning rate that suits the head if it is trained alone.
        begun_at: the folder of the reward that its training begins at; None if its head is new. See `to_train_on`.
    """

    KIND = ""
    HEAD_LEARNING_RATE = 3e-3
    name = "reward"
    begun_at: Path | None = None
    backbone: Backbone

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, info: RewardInfo):
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.info = info
        self.name = f"the reward on {info.backbone}"
        self.head = self.make_head()
        check_tokens(self.backbone, tokenizer, self.name)
        set_trainable(self)

    @abstractmethod
    def make_head(self) -> nn.Module:
        """Return a new head."""

    @abstractmethod
    def top(self, layers: nn.Module | None) -> nn.Module:
        """Return what is trained, behind frozen states: the head, after these layers of the backbone if there are any.

        Its forward takes states, of a reward that speaks for the vocabulary those before tokens and the tokens too.
        """

    @abstractmethod
    def encode_within(
        self, prompt: Prompt, response: str, *, finished: bool, max_tokens: int
    ) -> tuple[list[int], list[int], bool]:
        """Return (prompt ids, response ids, whether the response is finished) of a row of at most `max_tokens`."""

    @abstractmethod
    def prompt_problem(self, prompt: Prompt, max_tokens: int) -> str | None:
        """Return what is wrong with a prompt of a row of at most `max_tokens`; None if nothing is."""

    @classmethod
    @abstractmethod
    def with_adapters(cls, backbone: Backbone, tuning: Tuning) -> Backbone:
        """Return a backbone of this kind, with fresh LoRA adapters if the tuning asks for them."""

    def to_train_on(self, folder: Path, tune: str | None, seed: int, **recorded: Any) -> "TrainedReward":
        """Return this reward, which was loaded from `folder`, to be trained further: nothing measured is left of it.

        Args:
            tune: another tuning, if it is to train more than it did; see `Tuning.covers`.
            seed: of new adapters.
            recorded: other fields of `RewardInfo`.

        Raises:
            RewardError: a tuning that would not store what was trained before.
        """
        old, new = Tuning.parse(self.info.tune), Tuning.parse(tune or self.info.tune)
        if not new.covers(old):
            raise RewardError(
                f"{folder} was trained with --tune {old}, and tune {new} would not store all of what that changed; "
                f"leave --tune out{', or raise its number' if old.kind == new.kind == 'last' else ''}"
            )
        new.check_depth(self.backbone.config.num_hidden_layers)
        info = replace(self.info, tune=str(new), training={}, metrics={}, calibration={}, centre=0.0, **recorded)
        torch.manual_seed(seed)
        backbone = self.backbone if new == old else self.with_adapters(self.backbone.requires_grad_(True), new)
        made = type(self)(backbone, self.tokenizer, info)
        made.head.load_state_dict(self.head.state_dict())
        made.name, made.begun_at = self.name, folder
        return made

    def last_parts(self, amount: int) -> list[nn.Module]:
        """Return the backbone's last layers and what follows them."""
        raise RewardError(f"a reward of kind {type(self).__name__} has no last layers to train; use --tune head")

    @property
    def template(self) -> Template:
        """Return how prompts were rendered in training, and must be here."""
        return self.info.template

    @property
    def calibration(self) -> Calibration | None:
        """Return what turns rewards into probabilities for a reader; None if the reward was saved without it."""
        return Calibration.read(self.info.calibration)

    @property
    def soft_value_weight(self) -> float | None:
        """Return the weight w at which the reward is exact, (1/w) log E exp(w R); None if it is no soft value."""
        return self.info.objective_settings.get("value_weight")

    @property
    def reward_weight(self) -> float | None:
        """Return the weight to guide at if none is asked for; None if nothing speaks for one."""
        return self.info.reward_weight

    @property
    def additive(self) -> bool:
        """Return whether a text's reward is the sum of its tokens' rewards."""
        return self.info.additive

    def rewards_of(self, raw: Float[Tensor, "*place"]) -> Float[Tensor, "*place"]:
        """Return the rewards that the head's numbers stand for.

        They are these numbers themselves but for rewards that were learned from edits, which are centred on the tokens
        that no edit touched. A token discriminator's number is the log-odds of p, its reward 2 p - 1 (TLCR, Yoon et
        al., 2024). With double_softmax it is what the authors' code makes of p, 2 sigmoid(2 p - 1) - 1.
        """
        if self.info.objective == "token-discriminator":
            raw = torch.tanh(raw / 2)
            if self.info.objective_settings.get("double_softmax"):
                raw = torch.tanh(raw / 2)
        return raw - self.info.centre if self.info.centre else raw

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    # Saving

    def save(self, folder: str | Path) -> None:
        """Write the reward to `folder`, whole or not at all; an earlier one there is replaced."""
        with whole_folder(Path(folder)) as work:
            self.write(work)

    def write(self, folder: Path) -> None:
        """Write the reward's files into an existing folder, each whole, midcourse.json last."""
        with whole_file(folder / "reward.safetensors") as temporary:
            save_file(self.trained_state(), temporary)
        if Tuning.parse(self.info.tune).kind == "all":
            self.backbone.config.save_pretrained(folder / "backbone")
            self.tokenizer.save_pretrained(folder / "backbone")
        write_text(folder / "midcourse.json", as_json(asdict(self.info), indent=2) + "\n")

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes: all that has to be stored beside the backbone's name."""
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        return {name: whole_tensor(p).cpu().contiguous() for name, p in trained.items()}

    def load_trained(self, path: Path) -> None:
        """Read the trained tensors back; every one must be there and fit."""
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RewardError(f"{path} cannot be read ({error}); train the reward again") from error
        wanted = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if {name: tensor.shape for name, tensor in state.items()} != {name: p.shape for name, p in wanted.items()}:
            raise RewardError(f"{path} holds other tensors than its midcourse.json announces; train the reward again")
        if broken := [name for name, tensor in state.items() if not (tensor.is_floating_point() and _finite(tensor))]:
            raise RewardError(f"{path} holds what is no finite number in {broken[0]}; train the reward again")
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.requires_grad:
                    p.copy_(part_of(state[name], p))


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


class Top(nn.Module):
    """The trained part of a reward with a backbone of its own; it shares the reward's parameters."""

    def __init__(self, reward: TrainedReward, layers: nn.Module | None):
        super().__init__()
        self.layers = layers
        self.head = reward.head

    def hidden(self, states: Float[Tensor, "rows tokens hidden"]) -> Float[Tensor, "rows tokens hidden"]:
        """Return the backbone's final states. Rows are padded on the right, so a causal mask is all that is needed."""
        return states if self.layers is None else self.layers(inputs_embeds=states, use_cache=False).last_hidden_state


def check_ranks(folder: Path, info: RewardInfo) -> None:
    """Raise RewardError if midcourse.json announces ranks beyond all stored tensors, for which room would be made."""
    path = folder / "reward.safetensors"
    kind, *numbers = info.tune.split(":")
    named = [*(numbers[:1] if kind == "lora" else ()), *info.head.split(":")[1:]]
    ranks = [int(rank) for rank in named if rank.isdecimal()]
    if not ranks:
        return
    try:
        most = largest_size(stored_shapes(path))
    except (OSError, SafetensorError) as error:
        raise RewardError(f"{path} cannot be read ({error}); train the reward again") from error
    if max(ranks) > most:
        raise RewardError(
            f"{path} holds other tensors than its midcourse.json announces (rank {short_value(max(ranks))}); train the "
            "reward again"
        )


def check_weights(folder: Path, info: RewardInfo) -> None:
    """Raise RewardError if a saved reward's backbone has other weights now than in training."""
    if weights_fingerprint(info.backbone) != info.backbone_fingerprint:
        raise RewardError(
            f"the reward in {folder} was trained on other weights than {info.backbone} has now "
            f"(fingerprint {info.backbone_fingerprint}); restore them or train it again"
        )


def check_tokenizer(folder: Path, info: RewardInfo, tokenizer: PreTrainedTokenizerBase, owner: str) -> None:
    """Raise RewardError if the tokenizer of the model called `owner` is not that of a saved reward's training."""
    if tokenizer_fingerprint(tokenizer) != info.tokenizer:
        raise RewardError(
            f"the reward in {folder} was trained with another tokenizer than {owner} has now; "
            "restore it or train the reward again"
        )


def set_trainable(reward: TrainedReward) -> None:
    """Freeze what the reward's tuning does not train, and switch dropout off (as TRL's reward training does)."""
    tuning = Tuning.parse(reward.info.tune)
    for module in reward.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if tuning.kind in ("head", "last"):
        reward.backbone.requires_grad_(False)
    if tuning.kind == "last":
        for part in reward.last_parts(tuning.amount):
            part.requires_grad_(True)
    reward.head.requires_grad_(True)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP2 keeps in parts, brought together in every process; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor, kept as FSDP2 keeps `like`; the whole tensor if `like` is whole."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
