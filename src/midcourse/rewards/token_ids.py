"""What rewards of token ids have in common: prompts and texts become ids, and one forward rewards every prefix."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.lm.prompt import Prompt, PromptError, Template, prompt_ids, render, response_ids
from midcourse.lm.text import token_texts
from midcourse.rewards.contract import Reward, Score


class TokenReward(Reward):
    """A reward that reads token ids of a tokenizer of its own.

    A kind that derives from this class defines `score_ids` besides `bind` and `start`.
    """

    tokenizer: PreTrainedTokenizerBase

    @abstractmethod
    def score_ids(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 8, finite: bool = True
    ) -> list[Tensor]:
        """Return the rewards at every response position of (prompt ids, response ids) rows, on the CPU.

        Args:
            batch_size: rows of one forward.
            finite: raise RewardError, naming the row, if one is NaN or infinite.
        """

    @property
    def rendering(self) -> Template:
        """Return the template, which a reward of token ids always has."""
        assert self.template is not None
        return self.template

    @property
    def score_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the reward's own tokenizer."""
        return self.tokenizer

    def encode(self, prompt: Prompt, response: str, *, finished: bool = True) -> tuple[list[int], list[int]]:
        """Return (prompt ids, response ids) as in training; a finished response has its end.

        Raises:
            PromptError: the prompt does not fit the template, or the row does not fit the context.
        """
        rendered = render(self.tokenizer, prompt, self.rendering)
        before, ids = rendered.token_ids, response_ids(self.tokenizer, response, finished=finished, after=rendered)
        if (length := len(before) + len(ids)) > self.context_length:
            raise PromptError(
                f"prompt and response have {length} tokens, the context {self.context_length}; shorten them"
            )
        return before, ids

    def encode_within(
        self, prompt: Prompt, response: str, *, finished: bool, max_tokens: int
    ) -> tuple[list[int], list[int], bool]:
        """Return a row of at most `max_tokens`, and whether its response is finished: what is cut off makes it not so.

        Raises:
            PromptError: the prompt leaves no room, or there is no response.
        """
        rendered = render(self.tokenizer, prompt, self.rendering)
        before, ids = rendered.token_ids, response_ids(self.tokenizer, response, finished=finished, after=rendered)
        room = max_tokens - len(before)
        if room < 1 or not ids:
            raise PromptError(f"{len(before)} prompt and {len(ids)} response tokens leave no prefix in {max_tokens}")
        return before, ids[:room], finished and len(ids) <= room

    def prompt_problem(self, prompt: Prompt, max_tokens: int) -> str | None:
        """Return what is wrong with a prompt of a row of at most `max_tokens`; None if nothing is."""
        try:
            tokens = len(prompt_ids(self.tokenizer, prompt, self.rendering))
        except PromptError as error:
            return str(error)
        if tokens < max_tokens:
            return None
        return f"the prompt has {tokens} tokens and leaves no room in {max_tokens}; raise --max-tokens or shorten it"

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *, finished: bool = True, batch_size: int = 8
    ) -> list[Score]:
        """Return the reward of every prefix of each response, a forward for every `batch_size` of them.

        With `finished` an EOS follows the response: the last reward is that of the finished text.
        """
        rows = [self.encode(p, r, finished=finished) for p, r in zip(prompts, responses, strict=True)]
        rewards = self.score_ids(rows, batch_size=batch_size)
        return [
            Score(tuple(ids), token_texts(self.tokenizer, ids), tuple(row.tolist()), self.additive)
            for (_, ids), row in zip(rows, rewards, strict=True)
        ]
