"""Weighted likelihood of edits, without rewards, rollouts or values: the cheap offline baseline.

    loss = - mean of w_t log pi(y_t | x, y_<t),   w_t = better  on added or substituted tokens of the edited text
                                                      = -worse  on deleted or substituted ones of the original
                                                      = kept    on the edited text's kept tokens

(FIGA: Guo et al., ICLR 2024, "Beyond Imitation".) The negative term has no lower bound; what a token may lose stops at
`FLOOR` nats of log-probability, where it is out of the way already.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.compare.independence import write_earned
from midcourse.data.alignment import Unit
from midcourse.data.comparisons import digest
from midcourse.data.edits import Edit
from midcourse.data.encoded import EditSet, encode_edits, pairs_of_edits, what_was_cut
from midcourse.data.learned import write_learned_rows
from midcourse.lm.language_model import LanguageModel, rendering
from midcourse.lm.load import RECORD
from midcourse.lm.prompt import Template
from midcourse.lm.weights import tensors_fingerprint
from midcourse.ppo.folder import finish, load_checkpoint, read_metrics
from midcourse.ppo.losses import entropy, exact_kl, mean
from midcourse.ppo.policy import Policy, Tokens
from midcourse.ppo.run import run_through
from midcourse.ppo.settings import FigaSettings, PPOError, PPOSettings, check_figa
from midcourse.ppo.training import NORM, State, share_of_rate
from midcourse.progress import Advance, silent
from midcourse.rewards.backbone import Tuning
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.terminal import tell
from midcourse.train import processes
from midcourse.train.card import cut_text
from midcourse.train.folder import only_training, prepare_folder

FLOOR = -12.0


class Figa:
    """A run of weighted likelihood on its way: one step is one update."""

    def __init__(self, policy: Policy, edits: EditSet, settings: FigaSettings):
        self.policy, self.edits, self.settings = policy, edits, settings
        per_epoch = -(-len(edits.items) // settings.batch_size)
        self.steps, self.total = per_epoch * settings.epochs, len(edits.items) * settings.epochs
        self.per_epoch, self.save_every = per_epoch, settings.save_every
        self.state = State()
        weights = [weight for name, weight in policy.trained().items() if not name.startswith("head.")]
        self.optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=0.0)

    def step(self, advance: Advance = silent) -> dict[str, Any]:
        """Learn from a batch of edits; return its row of metrics. A step is short: `advance` is not needed."""
        epoch, place = divmod(self.state.step, self.per_epoch)
        order = list(range(len(self.edits.items)))
        random.Random(f"{self.settings.seed} {epoch}").shuffle(order)
        picked = order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * share_of_rate(self.state.step, self.steps)
        edited = [number for number in picked if self.edits.labels[number].edited]
        sides = [(edited, 0, self._weights_of_edited), (picked, 1, self._weights_of_original)]
        self.optimizer.zero_grad()
        row: dict[str, Any] = {}
        loss = 0.0
        for numbers, side, weights_of in sides:
            if not numbers:
                continue
            rows = [self.edits.rows[self.edits.items[number][side]] for number in numbers]
            tokens = Tokens.of([(one.prompt, one.response) for one in rows], self.policy.head.weight.device)
            outlook = self.policy(tokens)
            weights = weights_of(numbers, tokens)
            part = likelihood_loss(outlook.logprobs(tokens), weights) / len(picked)
            part.backward()
            loss += part.item()
            if not row:
                with torch.no_grad():
                    apart = exact_kl(outlook.logits, self.policy.reference_logits(tokens))
                    row = {"kl": mean(apart, tokens.mask).item()}
                    row["entropy"] = mean(entropy(outlook.logits), tokens.mask).item()
        norm = torch.nn.utils.clip_grad_norm_(list(self.policy.trained().values()), NORM)
        if not torch.isfinite(norm):
            raise PPOError(
                f"the gradient's norm is {norm.item()} in step {self.state.step + 1}; lower lr, which is "
                f"{self.settings.lr:g}, or look for broken weights in {self.policy.lm.name}"
            )
        self.optimizer.step()
        self.state.step += 1
        done = epoch * len(order) + place * self.settings.batch_size + len(picked)
        row = {"step": self.state.step, "rollouts": done, "loss": loss, **row, "grad_norm": norm.item()}
        self.state.metrics.append(row)
        return row

    def _weights_of_edited(self, numbers: Sequence[int], tokens: Tokens) -> Tensor:
        settings = self.settings
        return self._weights([self.edits.labels[n].edited for n in numbers], tokens, settings.better, settings.kept)

    def _weights_of_original(self, numbers: Sequence[int], tokens: Tokens) -> Tensor:
        return self._weights([self.edits.labels[n].original for n in numbers], tokens, -self.settings.worse, 0.0)

    def _weights(self, labels: Sequence[Any], tokens: Tokens, changed: float, kept: float) -> Tensor:
        made = torch.zeros(tokens.mask.shape, device=tokens.mask.device)
        for row, of in enumerate(labels):
            made[row, : len(of)] = torch.tensor([kept if change.kept else changed for change in of])
        return made


def likelihood_loss(
    logprobs: Float[Tensor, "batch tokens"], weights: Float[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """Return - the sum over texts of each one's mean of w_t log pi_t over the tokens that have a weight."""
    held = torch.where(weights < 0, logprobs.clamp(min=FLOOR), logprobs)
    counts = (weights != 0).sum(1).clamp(min=1)
    return -(torch.where(weights != 0, weights * held, 0.0).sum(1) / counts).sum()


def train_on_edits(
    lm: LanguageModel,
    edits: Sequence[Edit],
    out: str | Path,
    settings: FigaSettings | None = None,
    *,
    template: Template = "raw",
    align: Unit = "tokens",
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Train a policy by weighted likelihood of edits and write it to `out`; returns the metrics of all steps.

    Args:
        lm: what to begin at. Adapters are put into it: load it anew for anything else.
        align: how it is found what an edit changed; see `data.encoded.encode_edits`.

    Raises:
        PPOError: settings that make no sense. DataError: edits that change nothing. TrainingError: `out` is in use.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.
    """
    settings, out = settings or FigaSettings(), Path(out)
    check_figa(settings)
    processes.check_alone("midcourse figa")
    Tuning.parse(settings.tune).check_depth(lm.model.config.get_text_config().num_hidden_layers)
    encoder = VocabularyReward(lm.model, lm.tokenizer, template=template, name=lm.name)
    data = encode_edits(encoder, edits, settings.max_tokens, align)
    cut = what_was_cut(data.rows, pairs_of_edits(data), settings.max_tokens)
    if lost := cut_text({"cut": cut}):
        tell(f"{lost} --max-tokens is that limit.")
    record = {
        "format": 1,
        "method": "figa",
        "lm": lm.name,
        "lm_fingerprint": tensors_fingerprint(lm.model),
        **rendering(lm, template),
        "template": template,
        "align": align,
        "settings": asdict(settings),
        "edits": len(edits),
        "cut": cut,
        "data_fingerprint": digest([[one.prompt, one.original, one.edited, one.spans] for one in edits])[:16],
    }
    with only_training(out):
        checkpoint, finished = prepare_folder(out, record, resume, made="policy", record=RECORD)
        if finished is not None:
            return read_metrics(out)
        how = PPOSettings(tune=settings.tune, seed=settings.seed)
        run = Figa(Policy(lm, how), data, settings)
        if checkpoint:
            run.state = load_checkpoint(run.policy, run.optimizer, checkpoint)
        run_through(run, out, "figa")
        write_learned_rows(out, edits)
        write_earned(out, lm.name)
        finish(run.policy, run.state, out, record)
    return run.state.metrics
