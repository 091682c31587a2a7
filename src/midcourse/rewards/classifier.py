"""A sequence-classification model of transformers, as a reward of texts."""

import copy
import math
from collections.abc import Sequence
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from midcourse.lm.language_model import context_length
from midcourse.lm.load import (
    LoadError,
    MissingWeightsError,
    ModelError,
    adapters_of,
    check_tokens,
    load_config,
    load_model,
    load_tokenizer,
)
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import (
    TEMPLATES,
    Arguments,
    Prompt,
    Template,
    chat_template,
    conversation_ids,
    render,
    response_ids,
)
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError, check_arguments_used
from midcourse.rewards.text import TextReward

RECORDED_TEMPLATE = "midcourse_template"  # the field of an exported reward's config.json
# Kinds of classifiers, as transformers names them, whose labels are numbers of their own and no shares of one.
APART = ("multi_label_classification", "regression")
Reading: TypeAlias = Template | Literal["pair"]


class ClassifierReward(TextReward):
    """A sequence classifier of transformers with a tokenizer of its own, as a reward of texts.

    Of one label it is what the model says. Of a label among several it is the label's log-odds against all others.

    An encoder (BERT, RoBERTa, DeBERTa) reads both ways, so nothing of a text can be kept for the next: each step costs
    one padded forward over every `batch_size` distinct texts of all rows' candidates.

    It renders prompts itself, in one of these ways:

    pair    the tokenizer has a separator, as encoders' have, and no chat template: prompt and response are a text pair.
    chat    the tokenizer has a chat template: a finished text is the whole conversation as the template renders it,
            which is what RewardBench, TRL and OpenRLHF read; an unfinished one is the prompt with the beginning of the
            assistant's turn, then the response.
    raw     neither: the response follows the prompt, and EOS a finished one.

    What `RewardModel.export` wrote records the template of its training and is read as the reward itself reads: the
    prompt by that template, the response, and EOS behind a finished one. Outside "chat", messages are their contents,
    joined by blank lines. A text too long for the model loses the prompt's beginning.

    Attributes:
        label: the number of the label that is rewarded; None if there is one alone.
        reading: one of these ways, or the template that an exported reward records. `template` is None:
            how the language model's prompts are rendered makes no difference.

    Args:
        model: with a pad_token_id. It is set to eval mode.
        label: which of several labels is rewarded, by its name in the model's configuration.
        template: "raw" or "mixed" for a chat model that was trained so; it has no effect if there is one way only.
        batch_size: texts of one forward.

    Raises:
        RewardError: several labels and none named, no label of that name, nothing to pad with, or no known template
            recorded.
    """

    remedy = "restore its weights, or try --dtype float32"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template | None = None,
        label: str | None = None,
        batch_size: int = 64,
        name: str = "classifier",
    ):
        super().__init__(self._read_all, name=name)
        self.label = label_number(model.config, label, name)
        if model.config.pad_token_id is None:
            raise RewardError(f"{name} has no pad_token_id in its config; set it to the one the model was trained with")
        if not 0 <= (pad := model.config.pad_token_id) < model.get_input_embeddings().num_embeddings:
            raise RewardError(f"{name} has the pad_token_id {pad} in its config, which is no token; set it to one")
        if batch_size < 1:
            raise RewardError(f"batch-size {batch_size} holds no text; use 1 or more")
        self.model = model.eval()
        self.tokenizer = tokenizer
        check_tokens(model, tokenizer, name)
        self.batch_size = batch_size
        self.recorded = recorded_template(model.config, name)
        self.reading: Reading = self._reading(template)
        self._ignores_padding = self._is_alike_beside_others()

    def _reading(self, template: Template | None) -> Reading:
        if self.recorded:
            return self.recorded
        # A decoder's tokenizer may have a separator for other ends; a chat template says what the model was trained on.
        if self.tokenizer.sep_token_id is not None and not self.tokenizer.chat_template:
            return "pair"
        if template == "raw":
            return "raw"
        return (template or "chat") if chat_template(self.tokenizer) else "raw"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        template: Template | None = None,
        label: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 64,
        template_arguments: Arguments | None = None,
    ) -> "ClassifierReward":
        """Load a classifier from a folder or Hub id with safetensors weights.

        Args:
            template_arguments: values by name for its chat template.

        Raises:
            ModelError: no such model, device or dtype.
            RewardError: several labels and none named, no label of that name, or no trained head.
        """
        name = str(folder)
        label_number(load_config(name), label, name)
        try:
            model = load_model(AutoModelForSequenceClassification, name, device=device, dtype=dtype, attention=None)
        except LoadError as error:
            if isinstance(error, MissingWeightsError) and error.head_only:
                raise RewardError(
                    f"{name} has no weights for {error.tensors[0]}; train its classification head first"
                ) from error
            raise ModelError(
                f"{name} cannot be loaded as a sequence classifier ({error.reason}); "
                "use a folder that holds one in safetensors"
            ) from error
        tokenizer = load_tokenizer(name, template_arguments)
        if model.config.pad_token_id is None and adapters_of(name):  # an adapter brings no configuration of its own
            model.config.pad_token_id = tokenizer.pad_token_id
        reward = cls(model, tokenizer, template=template, label=label, batch_size=batch_size, name=name)
        check_arguments_used(reward.reading, template_arguments, name)
        return reward

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the classifier: each step costs forwards over whole texts."""
        return [self.model]

    @property
    def room(self) -> int:
        """Return the most tokens that a text may have."""
        return min(self.tokenizer.model_max_length, context_length(self.model.config))

    def within(self, max_tokens: int) -> "ClassifierReward":
        """Return a copy, on the same weights, that reads at most so many tokens of a text."""
        other = copy.copy(self)
        other.score_texts = other._read_all
        other.tokenizer = copy.deepcopy(self.tokenizer)
        other.tokenizer.model_max_length = min(self.room, max_tokens)
        return other

    def encode(self, text: Text) -> tuple[list[int], list[int] | None]:
        """Return (token ids, token type ids if the model takes them) of a text.

        Raises:
            RewardError: the response alone exceeds the model's context.
        """
        ids, types, places = self._tokens(text)
        cut = set(places[: self._over(ids, places)])
        return (
            [token for i, token in enumerate(ids) if i not in cut],
            types and [kind for i, kind in enumerate(types) if i not in cut],
        )

    def lost(self, text: Text) -> int:
        """Return how many tokens of the prompt `encode` leaves out; RewardError as there."""
        ids, _, places = self._tokens(text)
        return self._over(ids, places)

    def _tokens(self, text: Text) -> tuple[list[int], list[int] | None, list[int]]:
        """Return the ids and token types of the whole text, and the places of the prompt among them."""
        if self.reading == "pair":
            pair = self.tokenizer(as_plain_text(text.prompt), text.response, verbose=False)
            places = [i for i, part in enumerate(pair.sequence_ids(0)) if part == 0]
            return pair["input_ids"], pair.get("token_type_ids"), places
        prompt = as_plain_text(text.prompt) if self.reading == "raw" else text.prompt
        rendered = render(self.tokenizer, prompt, self.reading)
        before = rendered.token_ids
        chat = self.reading == "chat" or (self.reading == "mixed" and not isinstance(prompt, str))
        if chat and text.finished and not self.recorded:
            ids = conversation_ids(self.tokenizer, prompt, text.response)
            # A template may render a turn that is over otherwise than one that begins.
            return ids, None, list(takewhile(lambda i: ids[i : i + 1] == before[i : i + 1], range(len(before))))
        finished = text.finished and self.tokenizer.eos_token_id is not None
        ids = [*before, *response_ids(self.tokenizer, text.response, finished=finished, after=rendered)]
        return ids, None, list(range(len(before)))

    def _over(self, ids: Sequence[int], places: Sequence[int]) -> int:
        over = max(len(ids) - self.room, 0)
        if over > len(places):
            raise RewardError(
                f"a response has {len(ids) - len(places)} tokens of {self.name}, which reads {self.room}; "
                "lower max_new_tokens"
            )
        return over

    @torch.inference_mode()
    def _read_all(self, texts: Sequence[Text]) -> list[float]:
        encoded = [self.encode(text) for text in texts]
        rewards = [math.nan] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i][0]))
        lengths = [len(encoded[i][0]) if not self._ignores_padding else 0 for i in order]
        for _, alike in groupby(zip(lengths, order, strict=True), key=itemgetter(0)):
            rows = [i for _, i in alike]
            for begin in range(0, len(rows), self.batch_size):
                part = rows[begin : begin + self.batch_size]
                for i, reward in zip(part, self._read([encoded[i] for i in part]), strict=True):
                    rewards[i] = reward
        return rewards

    @torch.inference_mode()
    def _is_alike_beside_others(self) -> bool:
        """Return whether a text's reward is the same beside a longer one; some architectures read the padding."""
        long = [i for i in range(5, 18) if i != self.model.config.pad_token_id]
        short = long[:3]
        (alone,), (beside, _) = (self._read([(row, None) for row in rows]) for rows in ([short], [short, long]))
        return math.isclose(alone, beside, rel_tol=1e-3, abs_tol=1e-3) or not math.isfinite(alone)

    def _read(self, rows: Sequence[tuple[list[int], list[int] | None]]) -> list[float]:
        ids, mask = pad([ids for ids, _ in rows], self.model.device)
        inputs = {"input_ids": ids.masked_fill(~mask, self.model.config.pad_token_id), "attention_mask": mask.long()}
        if types := [types for _, types in rows if types]:
            inputs["token_type_ids"], _ = pad(types, self.model.device)
        logits = self.model(**inputs).logits.float()
        own = logits[:, self.label or 0]
        if self.label is None or self.model.config.problem_type in APART:
            return own.tolist()
        others = [label for label in range(logits.shape[1]) if label != self.label]
        return (own - logits[:, others].logsumexp(1)).tolist()


def label_number(config: PretrainedConfig, label: str | None, name: str) -> int | None:
    """Return the number of a classifier's label; None if it has one alone.

    Raises:
        RewardError: it has several and none is named, or none of that name.
    """
    named = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
    names = {one: number for number, one in enumerate(named)}
    listed = ", ".join(names)
    if label is None and len(names) > 1:
        raise RewardError(
            f"{name} has {len(names)} labels ({listed}), and a reward is one number; name the one to reward, as "
            f"--label {listed.rpartition(', ')[2]}"
        )
    if label is not None and config.num_labels == 1:
        raise RewardError(f"{name} has one label, which is its reward; leave --label {label} out")
    if label is not None and label not in names:
        raise RewardError(f"{name} has no label {label!r}; use one of: {listed}")
    if label is not None and named.count(label) > 1:
        raise RewardError(f"{name} calls {named.count(label)} labels {label!r}; give each its own in config.json")
    return None if label is None else names[label]


def recorded_template(config: PretrainedConfig, name: str) -> Template | None:
    """Return the template that `RewardModel.export` recorded in a configuration; None if it did not write it."""
    template = getattr(config, RECORDED_TEMPLATE, None)
    if template is not None and template not in TEMPLATES:
        raise RewardError(
            f"{name} records the template {template!r} in its config.json; write one of: {', '.join(TEMPLATES)}"
        )
    return template


def as_plain_text(prompt: Prompt) -> str:
    """Return a text as it is; of chat messages the contents, joined by blank lines."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
