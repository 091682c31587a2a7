"""midcourse score."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midcourse.cli.console import UsageError, check_page, parse_arguments
from midcourse.cli.groups import Model, TemplateArgument, TemplateName
from midcourse.files import as_json
from midcourse.terminal import say, tell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from midcourse.rewards.calibration import Calibration
    from midcourse.rewards.contract import Reward, Score
    from midcourse.show.tokens import Token


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to score, and by which reward."""

    reward: str
    """A shipped reward, a folder that midcourse train wrote, a function (vader, profanity, MODULE:FUNCTION), a sequence
    classifier, or a causal LM (its log-probabilities)."""
    prompt: str
    """The prompt that the text answers or continues."""
    text: str
    """The response, without the prompt."""
    against: str | None = None
    """Another response: print the probability that --text is preferred to it."""
    unfinished: bool = False
    """Do not end the text: the last reward is that of a prefix. With --against both are compared at the shorter
    one's length."""
    template: TemplateName | None = None
    """How prompts were rendered in the training of a causal LM (raw by default) or of a sequence classifier (its chat
    template by default, if it has one). Other rewards know theirs."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""
    template_argument: TemplateArgument = ()
    """A value for the chat template of such a model, as enable_thinking=false."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write besides the text, coloured by the rewards."""

    table: bool = False
    """Print a row of numbers for every token."""
    html: Path | None = None
    """Write a page with every token coloured to this file."""
    json: bool = False
    """Print the rewards of all prefixes as JSON instead."""


@dataclass(kw_only=True)
class ScoreText:
    """Show the reward of every prefix of a text.

    If the reward was calibrated in training, also how likely the text is to be preferred to an average one, or to that
    of --against.
    """

    read: Read
    write: Write = field(default_factory=Write)
    model: Model = field(default_factory=Model)
    """What computes; and for a reward that reads texts (a classifier, a function) the language model whose tokens the
    prefixes end with."""

    def run(self) -> int:
        from midcourse.show.page import write_score_page
        from midcourse.show.tokens import chance, tokens_of_score

        read, html = self.read, self.write.html
        check_page(html)
        if html and read.against is not None:
            raise UsageError("--html shows one text; leave out --against")
        texts = [read.text] if read.against is None else [read.text, read.against]
        if read.unfinished and "" in texts:
            raise UsageError("an empty text that is --unfinished has no token to reward; give some text")
        reward, tokenizer = self._load()
        calibration = reward.calibration
        finished = not read.unfinished
        scores = reward.score([read.prompt] * len(texts), texts)
        if read.unfinished:
            scores = [score.without_end() for score in scores]
        preferred = _preferred(scores, calibration, finished) if read.against is not None else None
        tokens = [tokens_of_score(score, tokenizer, calibration, finished=finished) for score in scores]
        if html:
            write_score_page(html, read.prompt, tokens[0], title="midcourse score")
        if self.write.json:
            print(as_json(self._row(texts, scores, calibration, preferred)))
        else:
            self._print(scores, tokens)
            if preferred is not None:
                cut = f", both cut to {min(len(score.rewards) for score in scores)} tokens" if read.unfinished else ""
                say(f"A is preferred to B with probability {chance(preferred)}{cut}")
            if calibration is None:
                say("no calibration is stored with this reward, so no probability is shown; midcourse train stores one")
            elif finished and calibration.finished_mean is None:
                say(
                    "no finished text was seen in calibration, so none is compared with; --unfinished compares prefixes"
                )
        if html:
            tell(f"page: {html}")
        return 0

    def _load(self) -> "tuple[Reward, PreTrainedTokenizerBase]":
        """Return the reward and the tokenizer of its scores."""
        from midcourse.rewards.named import load_reward

        reward = load_reward(
            self.read.reward,
            template=self.read.template,
            template_arguments=parse_arguments(self.read.template_argument),
            label=self.read.label,
            **asdict(self.model.machine),
        )
        if reward.score_tokenizer is None:
            reward = reward.bind(self.model.load())
        assert reward.score_tokenizer is not None
        return reward, reward.score_tokenizer

    def _row(
        self,
        texts: "Sequence[str]",
        scores: "Sequence[Score]",
        calibration: "Calibration | None",
        preferred: float | None,
    ) -> dict[str, Any]:
        """Return what is printed as JSON: all of the first text, and of the other one, if there is one."""
        first, *others = (
            {"text": text, **_figures(score, calibration, not self.read.unfinished)}
            for text, score in zip(texts, scores, strict=True)
        )
        names = ("temperature", "finished_temperature")
        row = {"prompt": self.read.prompt, **{name: getattr(calibration, name, None) for name in names}, **first}
        return {**row, "against": others[0], "preferred": preferred} if others else row

    def _print(self, scores: "Sequence[Score]", texts: "list[list[Token]]") -> None:
        from rich.console import Console

        from midcourse.show.tokens import by_change, chance, number, score_legend, score_line, score_table

        console, colouring = Console(), by_change(*texts)
        end = "the prefix" if self.read.unfinished else "the finished text"
        names = ("A: ", "B: ") if len(texts) > 1 else ("",)
        for name, score, tokens in zip(names, scores, texts, strict=True):
            console.print(name, score_line(tokens, colouring), sep="")
            last = tokens[-1]
            shown = f"reward of {end}: {number(score.whole, 3)}"
            if score.additive:
                shown += f", the sum of its {len(score.rewards)} tokens'"
            if last.centred is not None:
                shown += f", centred {number(last.centred, 3, sign=True)}"
            if last.probability is not None:
                shown += f", preferred to an average one with probability {chance(last.probability)}"
            say(shown)
            if self.write.table:
                console.print(score_table(tokens))
        if console.color_system:
            console.print(score_legend(colouring))


def _preferred(scores: "list[Score]", calibration: "Calibration | None", finished: bool) -> float | None:
    """Return the probability that the first text is preferred: at their ends, or cut to the shorter one."""
    first, second = (score.prefixes for score in scores)
    at = -1 if finished else min(len(first), len(second)) - 1
    return calibration.probability(first[at] - second[at], finished=finished) if calibration else None


def _figures(score: "Score", calibration: "Calibration | None", finished: bool) -> dict[str, Any]:
    """Return a score's rewards, centred rewards and probabilities: of the whole, and of every token."""
    nothing: list[float | None] = [None] * len(score.rewards)
    centred = calibration.centred(score.prefixes, finished=finished) if calibration else nothing
    probabilities = calibration.against_mean(score.prefixes, finished=finished) if calibration else nothing
    tokens = [
        {"token_id": i, "text": text, "reward": reward, "centred": c, "probability": p}
        for i, text, reward, c, p in zip(
            score.token_ids, score.texts, score.rewards, centred, probabilities, strict=True
        )
    ]
    end = {name: tokens[-1][name] for name in ("centred", "probability")}
    return {"reward": score.whole, **end, "tokens": tokens}
