"""The code in the README and in docs/: every block runs and prints what the page says, or says why it is not run."""

import os
from pathlib import Path

import pytest

from midcourse.decode.methods import METHODS
from studies import figures
from studies.documents import (
    ROOT,
    Block,
    DocumentError,
    Given,
    agree,
    blocks,
    given_of,
    pages,
    run_page,
    runs,
    with_output,
)
from studies.readme import OF_METHODS, TABLES, settings
from tests.pace import slow_except

# Pages whose code needs tiny models alone; all others load SmolLM2.
QUICK = ("docs/methods/index.md",)
WITH_CODE = [page for page in pages() if any(map(runs, blocks(page, (ROOT / page).read_text())))]


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """One for all processes of a test run, since the rewards in it take a minute each."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "given").mkdir(exist_ok=True)
    return Given(folder / "given")


@pytest.mark.parametrize("page", slow_except(QUICK, WITH_CODE))
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page: str, given: Given, tmp_path: Path):
    text = (ROOT / page).read_text()
    given.copy(given_of(text), tmp_path)
    for block, printed in run_page(page, text, tmp_path):
        assert agree(block, printed), (
            f"{block.place} says otherwise; run: python -m studies.documents {page}\n{printed}"
        )


def test_every_page_can_be_read_and_the_quick_ones_are_there():
    assert {"README.md", "docs/tutorial.md"} <= set(pages()) and set(QUICK) <= set(WITH_CODE)
    assert len({block.place for page in pages() for block in blocks(page, (ROOT / page).read_text())}) > 30


def test_every_method_has_a_page_and_every_table_a_place():
    for name in METHODS:
        assert f"methods/{name}.md" in (ROOT / "mkdocs.yml").read_text()
        assert f"<!-- table: settings-{name} -->" in (ROOT / f"docs/methods/{name}.md").read_text()
    written = "".join((ROOT / page).read_text() for page in pages())
    assert [name for name in TABLES | OF_METHODS if f"<!-- table: {name} -->" not in written] == []


def test_the_readme_is_short_and_contributing_has_every_file():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    listed = (ROOT / "CONTRIBUTING.md").read_text()
    modules = [path for path in (ROOT / "src/midcourse").rglob("*.py") if not path.name.startswith("__")]
    assert sorted(str(path) for path in modules if path.name not in listed) == []


def test_settings_are_those_of_the_code_with_what_its_docstrings_say():
    rows = settings(ROOT, name="best-of-n").splitlines()
    assert rows[2:4] == ["| `samples` | 16 | n. |", "| `top_k` | 10 | of sampling the LM. |"]
    assert rows[-1].startswith("Source: best of n, as in Stiennon et al.")
    assert "| `greedy` (Python only) | yes | take the likeliest guided candidate" in settings(ROOT, name="args")
    assert "| `top_k` | all |" in settings(ROOT, name="genarm")


def test_diagrams_are_drawn_alike_at_every_call(tmp_path: Path):
    figures.write(tmp_path / "one")
    figures.write(tmp_path / "two")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert set(drawn) <= {path.name for path in (ROOT / "docs/figures").iterdir()}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```rust\nfn main() {}\n```\n", "a block of 'rust'"),
        ("```\nplain\n```\n", "a block of ''"),
        ("```sh\nmidcourse demo\n", "not closed"),
        ("```json\n{'prompt': 1}\n```\n", "is not JSON"),
        ("<!-- not run -->\n```sh\nmidcourse demo\n```\n", "takes a reason"),
        ("<!-- not run: slow -->\nSo.\n```sh\nmidcourse demo\n```\n", "has to stand before a block"),
        ("<!-- output -->\n```text\n1\n```\n", "after code that is run"),
        ("<!-- not run: slow -->\n```sh\nls\n```\n<!-- output -->\n```text\n1\n```\n", "after code that is run"),
    ],
)
def test_what_cannot_be_checked_is_refused(text: str, why: str):
    with pytest.raises(DocumentError, match=why):
        blocks("page.md", text)


PAGE = """# A page

```python
# three.py
three = 3
```

```python
from three import three

print(three, "of", 4.5)
```

<!-- output -->
```text
3 of 4.5
```

```sh
python -c 'import three; print(three.three)'
```

<!-- output -->
```text
3
```

<!-- not run: it would not end -->
```sh
yes
```
"""


def test_blocks_share_a_folder_and_names(tmp_path: Path):
    printed = list(run_page("page.md", PAGE, tmp_path))
    assert [text for _, text in printed] == ["3 of 4.5\n", "3\n"]
    assert all(agree(block, text) for block, text in printed)
    assert with_output(PAGE, printed) == PAGE


def test_other_output_is_noticed_and_can_be_written_anew(tmp_path: Path):
    stale = PAGE.replace("3 of 4.5\n```", "three\nof 4.5\n```")
    printed = list(run_page("page.md", stale, tmp_path))
    assert [agree(block, text) for block, text in printed] == [False, True]
    assert with_output(stale, printed) == PAGE


def test_code_that_fails_says_where(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"page.md:2: exit status 3"):
        list(run_page("page.md", "```sh\nexit 3\n```\n", tmp_path))
    with pytest.raises(DocumentError, match=r"(?s)page.md:2: .*name 'unknown' is not defined"):
        list(run_page("page.md", "```python\nunknown\n```\n", tmp_path))


def test_figures_may_differ_words_may_not_and_texts_of_models_may():
    block = Block("page.md", 1, "text", "gold 0.51, 12%\n", "output")
    assert agree(block, "gold -0.3, 9%\n") and not agree(block, "silver 0.51, 12%\n")
    assert not agree(block, "gold 0.51, 12%\nmore\n")
    varies = Block("page.md", 1, "text", "a\nb\n", "output", "varies")
    assert agree(varies, "c\n") and not agree(varies, "\n")
