"""Groups of flags that several verbs share, each written once."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from midcourse.cli.console import UsageError, parse_arguments, read_text
from midcourse.terminal import tell
from midcourse.train.settings import Report

if TYPE_CHECKING:
    from midcourse.data.judge import Judge
    from midcourse.lm.language_model import LanguageModel

TemplateName = Literal["chat", "raw", "mixed"]
# A group within a group: its flags join those of the outer one.
JOINED = tyro.conf.arg(name="")
TemplateArgument: TypeAlias = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes, and in which numbers."""

    device: str = "auto"
    """Where models run: cpu, cuda, cuda:1, mps, ... auto, the default, takes a GPU if there is one."""
    dtype: str = "auto"
    """Number format of the weights: float32, bfloat16, float16 or float64. auto, the default, takes
    float32 on a CPU, elsewhere the checkpoint's own."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The language model, and what computes."""

    lm: str = "smollm2"
    """Causal language model: smollm2, a folder, or a Hub id."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the language model, if it has any. It may do anything that you may."""
    machine: Annotated[Machine, JOINED] = field(default_factory=Machine)

    def load(self, **settings: Any) -> "LanguageModel":
        """Load the language model; `settings` are further ones of `LanguageModel.load`."""
        from midcourse.lm.language_model import LanguageModel

        if self.trust_remote_code:
            tell(f"warning: Python code that comes with {self.lm} is run, if there is any")
        return LanguageModel.load(self.lm, **asdict(self.machine), trust_remote_code=self.trust_remote_code, **settings)


@dataclass(frozen=True, kw_only=True)
class ChatModel(Model):
    """The language model, and what computes."""

    template_argument: TemplateArgument = ()
    """A value for the model's chat template, as enable_thinking=false; today=2026-01-31 for one that asks a clock."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the chat template's arguments by name."""
        return parse_arguments(self.template_argument)

    def load(self, **settings: Any) -> "LanguageModel":
        return super().load(template_arguments=self.arguments, **settings)

    def check_used(self, template: str) -> None:
        """Raise UsageError if prompts are rendered by a template that the arguments do not reach."""
        if self.template_argument and template == "raw":
            raise UsageError(
                "--template-argument is for chat templates, and the template raw uses none; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How to read the rows of the file."""

    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    columns: tuple[str, ...] = ()
    """Fields that the file has by other names, as prompt=instruction chosen=better."""


@dataclass(frozen=True, kw_only=True)
class TrainedFolder:
    """The folder that training writes to, and what is printed."""

    out: Path
    """Folder of what is trained."""
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    report_to: Annotated[tuple[Report, ...], tyro.conf.UseAppendAction] = ()
    """Trackers to send loss, learning rate and accuracies to as well, each as its library is set up."""
    json: bool = False
    """Print the metrics as JSON."""


@dataclass(frozen=True, kw_only=True)
class Responses:
    """How long responses may be, and how many are written side by side."""

    max_new_tokens: int = 64
    """Longest response, in tokens; a longer one is cut there."""
    batch_size: int = 16
    """Responses written side by side; a finished one's place goes to the next. No text depends on it."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Responses):
    """How the plain language model writes."""

    top_k: int = 10
    """Candidates per token, the likeliest of the vocabulary; 0 for all of it."""
    top_p: float = 1.0
    """Share of the probability to keep: of the candidates only the likeliest that hold this much."""
    temperature: float = 1.0
    """Divides the log-probabilities: below 1 the likely becomes likelier still, 0 takes the likeliest token."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A judge behind an OpenAI-compatible server."""

    judge_model: str | None = None
    """The server's name of its model."""
    rubric: str | None = None
    """What makes a response the better one: a text, or a file with it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's API key, if it wants one."""
    concurrency: int = 8
    """Pairs that the server is asked about at a time."""
    judge_tokens: int = 1024
    """Longest answer of the judge, in tokens, its thoughts included."""
    judge_timeout: float = 120.0
    """Seconds that an answer may take."""

    def at(self, address: str) -> "Judge":
        """Return the judge behind the server at that address."""
        from midcourse.data.judge import Judge

        rubric = read_text(self.rubric or "", "--rubric")
        return Judge(
            address,
            self.judge_model or "",
            rubric,
            api_key_env=self.api_key_env,
            max_tokens=self.judge_tokens,
            timeout=self.judge_timeout,
        )
