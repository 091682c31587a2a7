"""The reward that is implicit in a pair of checkpoints, an aligned language model and the one it was aligned from.

    r(v | prefix) = beta (log pi_aligned(v | prefix) - log pi_base(v | prefix))

Direct preference optimisation trains a policy whose scaled log-ratio is a reward (Rafailov et al., 2023, DPO, equation
5); per token it is the advantage of the token under that reward (Rafailov et al., 2024, From r to Q*), and it guides
other models (Liu et al., 2024, IVG). Nothing is trained. A token's reward is the above, and a text's the sum over its
tokens. Two passes over one token give it for the whole vocabulary.

A saved one is a folder with a midcourse.json that names both models; they are not copied.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from midcourse.files import as_json, whole_folder, write_text
from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import chat_fingerprint
from midcourse.lm.prompt import Arguments, Prefix, Template
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.info import RewardError, RewardInfo, read_info
from midcourse.rewards.token_ids import TokenReward
from midcourse.rewards.vocabulary import ModelVocabularyRows, VocabularyReward


class ImplicitReward(TokenReward):
    """beta times the log-ratio of two causal LMs with one tokenizer.

    At weight 1 / beta over the whole vocabulary (method "genarm"), guiding the base model with it gives the aligned
    model's own policy.

    Args:
        aligned: what gives the log-probabilities that count for a token.
        base: what gives those that count against it.
        info: as midcourse.json records it; `objective_settings` has beta.

    Examples:
        >>> reward = ImplicitReward.create("my-dpo-model", "my-sft-model", beta=0.1, template="chat")
        >>> generate(lm, ["How are you?"], reward, method="genarm")[0].text
    """

    name: str = "implicit reward"
    template: Template = "raw"
    additive = True
    speaks_for_vocabulary = True
    reward_weight: float | None = None

    def __init__(self, aligned: VocabularyReward, base: VocabularyReward, info: RewardInfo):
        if aligned.tokens != base.tokens:
            raise RewardError(
                f"{aligned.name} and {base.name} have different tokenizers; name the model that {aligned.name} was "
                "aligned from"
            )
        self.aligned, self.base, self.info = aligned, base, info
        self.beta: float = info.objective_settings["beta"]
        self.tokenizer = aligned.tokenizer
        self.template = info.template
        self.reward_weight = info.reward_weight

    @classmethod
    def create(
        cls,
        aligned: str,
        base: str,
        *,
        beta: float = 0.1,
        template: Template = "raw",
        template_arguments: Arguments | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "ImplicitReward":
        """Make the reward of two models by their names: "smollm2", folders or Hub ids.

        Raises:
            RewardError: their tokenizers differ, or beta is not a positive number.
        """
        if not 0 < beta < float("inf"):
            raise RewardError(f"beta is {beta}; use a positive number, such as 0.1")
        first, second = (
            VocabularyReward.load(
                name, template=template, device=device, dtype=dtype, template_arguments=template_arguments
            )
            for name in (aligned, base)
        )
        layers = first.model.config.get_text_config().num_hidden_layers
        info = RewardInfo(
            backbone=aligned,
            backbone_fingerprint=weights_fingerprint(aligned),
            layers=layers,
            tune="none",
            template=template,
            objective="implicit",
            eos_token_id=first.eos_token_ids[0],
            eos_token_ids=tuple(sorted(first.eos_token_ids)),
            tokenizer=first.tokens,
            chat_template=chat_fingerprint(first.tokenizer) if template == "chat" else None,
            objective_settings={"beta": beta, "reference": base, "reference_fingerprint": weights_fingerprint(base)},
            reward_weight=1 / beta,
            template_arguments=dict(template_arguments or {}),
            head="implicit",
            backbone_layers=layers,
        )
        return cls(first, second, info)

    def save(self, folder: str | Path) -> None:
        """Write midcourse.json to `folder`, whole or not at all; an earlier reward there is replaced."""
        with whole_folder(Path(folder)) as work:
            write_text(work / "midcourse.json", as_json(asdict(self.info), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> "ImplicitReward":
        """Load what `save` wrote.

        Raises:
            RewardError: the folder holds no implicit reward, or a model has other weights or tokens now.
        """
        info = read_info(Path(folder))
        settings = info.objective_settings
        if info.head != "implicit" or not settings.keys() >= {"beta", "reference", "reference_fingerprint"}:
            raise RewardError(f"{folder} holds no implicit reward; load it with midcourse.load_reward")
        for name, kind in {"beta": int | float, "reference": str, "reference_fingerprint": str}.items():
            if not isinstance(settings[name], kind):
                raise RewardError(
                    f"{folder}/midcourse.json is damaged ({name} is {settings[name]!r}); make the reward again"
                )
        named = {info.backbone: info.backbone_fingerprint, settings["reference"]: settings["reference_fingerprint"]}
        for name, fingerprint in named.items():
            if weights_fingerprint(name) != fingerprint:
                raise RewardError(
                    f"the reward in {folder} was made of other weights than {name} has now "
                    f"(fingerprint {fingerprint}); restore them or make it again"
                )
        aligned, base = (
            VocabularyReward.load(
                name,
                template=info.template,
                device=device,
                dtype=dtype,
                template_arguments=info.template_arguments,
            )
            for name in (info.backbone, settings["reference"])
        )
        if aligned.tokens != info.tokenizer:
            raise RewardError(
                f"the reward in {folder} was made with another tokenizer than {info.backbone} has now; "
                "restore it or make the reward again"
            )
        reward = cls(aligned, base, info)
        reward.name = str(folder)
        return reward

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return both models."""
        return [*self.aligned.models, *self.base.models]

    @property
    def calibration(self) -> Calibration | None:
        """Return what turns sums over tokens into probabilities for a reader; None if no comparisons were given."""
        return Calibration.read(self.info.calibration)

    @property
    def context_length(self) -> int:
        """Return the length of the longest row that both models were made for, in tokens."""
        return min(self.aligned.context_length, self.base.context_length)

    def bind(self, lm: CausalModel) -> "ImplicitReward":
        """Return itself; RewardError if the LM writes other tokens, or renders or ends texts otherwise."""
        self.aligned.bind(lm)
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "ImplicitRows":
        """Read the prefixes with both models; see `Reward.start`."""
        rows = (model.start(prefixes, max_new_tokens, candidates) for model in (self.aligned, self.base))
        return ImplicitRows(self.beta, *rows)

    def score_ids(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 8, finite: bool = True
    ) -> list[Tensor]:
        """Return the rewards of every response token of (prompt ids, response ids) rows, on the CPU.

        Args:
            finite: raise RewardError, naming model and row, if a log-probability is NaN or infinite.
        """
        settings: dict[str, Any] = {"batch_size": batch_size, "finite": finite}
        aligned, base = (model.score_ids(rows, **settings) for model in (self.aligned, self.base))
        return [self.beta * (a - b) for a, b in zip(aligned, base, strict=True)]


class ImplicitRows:
    """Rows under an implicit reward: those of both models."""

    def __init__(self, beta: float, aligned: ModelVocabularyRows, base: ModelVocabularyRows):
        self.beta, self.aligned, self.base = beta, aligned, base

    def vocabulary_rewards(self) -> Float[Tensor, "batch vocab"]:
        aligned, base = self.aligned.vocabulary_rewards(), self.base.vocabulary_rewards()
        both = min(aligned.shape[1], base.shape[1])  # one vocabulary may be padded more than the other
        return self.beta * (aligned[:, :both] - base[:, :both])

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        return self.beta * (self.aligned.candidate_rewards(token_ids) - self.base.candidate_rewards(token_ids))

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        return self.beta * (self.aligned.prefix_rewards() - self.base.prefix_rewards())

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        self.aligned.advance(token_ids)
        self.base.advance(token_ids)

    def rewind(self, counts: Sequence[int]) -> None:
        self.aligned.rewind(counts)
        self.base.rewind(counts)

    def select(self, rows: Sequence[int]) -> None:
        self.aligned.select(rows)
        self.base.select(rows)

    def replace(self, places: Sequence[int], other: Any) -> None:
        self.aligned.replace(places, other.aligned)
        self.base.replace(places, other.base)
