"""What a comparison leaves to read: table.md, table.csv, summary.json, curves.png and report.html."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from midcourse.compare.report import tables
from midcourse.compare.report.charts import COLOURS, DARK_COLOURS, chart_svg, charts, dash, draw, title
from midcourse.compare.report.figures import summarise
from midcourse.compare.rows import ComparisonRows, ResponseRow, TokenRow, read_folder
from midcourse.evaluate.metrics import repetition_loop
from midcourse.evaluate.provenance import write_results
from midcourse.files import write_bytes, write_text
from midcourse.show.page import write_page
from midcourse.show.tokens import Token, by_position, mark, prompt_text, shade
from midcourse.terminal import CONTROLS

# What a browser shows without pause; results.jsonl has the rest.
SHOWN_TOKENS = 150_000

Found = Mapping[str, Any]


def write_report(folder: Path) -> dict[str, Any]:
    """Read a comparison's rows and write its tables, plots and page beside them; returns what summary.json holds.

    Each file is replaced as a whole. A comparison that has not ended is reported as far as it is.

    Raises:
        ComparisonError: the folder holds no comparison.
        RowFileError: a line that is no row, with file and line.
    """
    comparison = read_folder(folder)
    summary = summarise(comparison)
    write_results(folder / "summary.json", summary)
    write_text(folder / "table.md", tables.markdown(summary))
    write_text(folder / "table.csv", tables.comma_separated(summary))
    picture = draw(summary)
    if picture:
        write_bytes(folder / "curves.png", picture)
    else:
        (folder / "curves.png").unlink(missing_ok=True)  # an older one would be of other rows
    write_comparison_page(folder / "report.html", comparison, summary)
    return summary


def write_comparison_page(path: Path, comparison: ComparisonRows, summary: Found) -> None:
    """Write the page, which stands alone: tables to sort, plots, and the texts of any two arms side by side."""
    write_page(
        path,
        "compare/report/page.html.jinja",
        title="midcourse compare",
        summary=summary,
        count=tables.count,
        seeds_each=tables.seeds_each,
        judges=[_judge_content(summary, judge) for judge in summary["judges"]],
        arm_tables=[
            *(tables.judge_table(summary, judge) for judge in summary["judges"]),
            tables.text_table(summary),
            tables.diversity_table(summary),
            tables.cost_table(summary),
        ],
        over_optimisation=tables.over_optimisation_table(summary),
        series_colours=list(zip(COLOURS, DARK_COLOURS, strict=True)),
        texts=texts(comparison, summary),
    )


def _judge_content(summary: Found, judge: str) -> dict[str, Any]:
    plots = charts(summary, judge)
    styles = {series.name: series.style for chart in plots for series in chart.series}
    return {
        "name": judge,
        "charts": [{"title": title(chart), "svg": chart_svg(chart)} for chart in plots],
        "level": any(chart.level is not None for chart in plots),
        "legend": [{"name": name, **_style(style)} for name, style in styles.items()],
        "matched": list(tables.matched_tables(summary, judge)),
        "differences": list(tables.difference_tables(summary, judge)),
    }


def _style(style: int) -> dict[str, Any]:
    return {"colour": "plain" if style < 0 else str(style % len(COLOURS)), "dash": dash(style)}


# Texts


def texts(comparison: ComparisonRows, summary: Found) -> dict[str, Any]:
    """Return what the page's script shows: prompts, arms and their tokens, as plain numbers and strings.

    Tokens are coloured by the distance of their reward from the mean reward of that guide's texts at the position. The
    first prompts whose texts fit are taken.
    """
    by_prompt: dict[int, list[ResponseRow]] = defaultdict(list)
    for row in comparison.responses:
        by_prompt[row.prompt_id].append(row)
    shown = _prompts_that_fit(by_prompt)
    written = comparison.tokens_of({row.key for prompt in shown for row in by_prompt[prompt]})
    tokens = {row.key: tokens_of_row(row, written[row.key]) for prompt in shown for row in by_prompt[prompt]}
    shades = _shades([row for prompt in shown for row in by_prompt[prompt]], tokens)
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for said in comparison.judgements:
        if said.score is not None and math.isfinite(said.score):
            scores[said.key][said.judge] = said.score
    arms = list(summary["arms"])
    return {
        "arms": [arm.translate(CONTROLS) for arm in arms],
        "judges": [judge for judge, about in summary["judges"].items() if about["scores"]],
        "left": arms.index(summary["reference"] or arms[0]),
        "right": arms.index(_best(summary)),
        "left_out": len(by_prompt) - len(shown),
        "prompts": [
            {
                "id": prompt,
                "text": prompt_text(by_prompt[prompt][0].prompt).translate(CONTROLS),
                "responses": [
                    _response(row, arms.index(row.arm), tokens[row.key], shades[row.key], scores[row.key])
                    for row in sorted(by_prompt[prompt], key=lambda row: (arms.index(row.arm), row.seed))
                ],
            }
            for prompt in shown
        ],
    }


def _prompts_that_fit(by_prompt: Mapping[int, Sequence[ResponseRow]]) -> list[int]:
    prompts = sorted(by_prompt)
    sizes = accumulate(sum(max(row.tokens, 1) for row in by_prompt[prompt]) for prompt in prompts)
    return [
        prompt for i, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)) if not i or size <= SHOWN_TOKENS
    ]


def _best(summary: Found) -> str:
    """Return the arm shown beside the reference method at first: of the highest score by the first judge with any."""
    judge = next((judge for judge, about in summary["judges"].items() if about["scores"]), None)
    others = [arm for arm in summary["arms"] if arm != summary["reference"]]

    def score(arm: str) -> float:
        estimate = summary["arms"][arm]["judges"][judge]["score"] if judge else None
        return estimate["mean"] if estimate else -math.inf

    return max(others, key=score, default=next(iter(summary["arms"])))


def tokens_of_row(row: ResponseRow, written: Sequence[TokenRow]) -> list[Token]:
    """Return a row's tokens as they are shown: those that wrote nothing by themselves are joined to what follows.

    A response of a data set is one token.
    """
    if not written:
        return [Token(row.text, None)]
    tokens, waiting = [], 0
    for token in written:
        waiting += 1
        if token.text:
            tokens.append(Token(token.text, token.reward, tokens=waiting))
            waiting = 0
    if waiting:
        tokens.append(Token("", written[-1].reward, tokens=waiting, end=row.finish_reason == "stop"))
    return tokens


def _shades(
    rows: Sequence[ResponseRow], tokens: Mapping[str, list[Token]]
) -> dict[str, list[tuple[float, int] | None]]:
    """Return, by row, each token's distance from its guide's mean at the position, and its shade."""
    guides: dict[str | None, list[ResponseRow]] = defaultdict(list)
    for row in rows:
        guides[row.reward].append(row)
    shades = {}
    for of_guide in guides.values():
        colouring = by_position([tokens[row.key] for row in of_guide])
        for row in of_guide:
            values = colouring.values(tokens[row.key])
            shades[row.key] = [None if v is None else (round(v, 3), shade(v, colouring.scale)) for v in values]
    return shades


def _response(
    row: ResponseRow,
    arm: int,
    tokens: Sequence[Token],
    shades: Sequence[tuple[float, int] | None],
    scores: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": row.seed,
        "guidance_kl": _rounded(row.guidance_kl),
        "total_kl": _rounded(row.total_kl),
        "scores": {judge: _rounded(score) for judge, score in scores.items()},
        "loop": repetition_loop(row.text) is not None,
        "tokens": [
            [
                token.text.translate(CONTROLS),
                token.tokens,
                _rounded(token.reward),
                *(coloured or (None, None)),
                mark(token),
            ]
            for token, coloured in zip(tokens, shades, strict=True)
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
