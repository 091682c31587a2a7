"""Edits to look at."""

from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.alignment import Change
from midcourse.data.edits import Edit
from midcourse.edits.view import coloured, marked, pieces, write_edits_page

TEXTS = st.text(st.sampled_from("ab .é👍<&\n"), max_size=12)


@given(TEXTS, TEXTS)
def test_both_texts_stand_in_the_pieces(original, edited):
    found = pieces(Edit("", original, edited))
    assert "".join(text for change, text in found if change is not Change.ADDED) == original
    assert "".join(text for change, text in found if change is not Change.DELETED) == edited


def test_additions_and_deletions_are_marked():
    edit = Edit("", "the ferry was late", "the boat was very late")
    assert marked(edit) == "the [-ferry-]{+boat+} was{+ very+} late"
    text = coloured(edit)
    assert text.plain == "the ferryboat was very late"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans if span.style}
    assert styles == {"ferry": "red strike", "boat": "green underline", " very": "green underline"}


def test_marked_spans_are_shown():
    assert marked(Edit("", "so bad it is", None, spans=((3, 6), (5, 9)))) == "so [-ba-][-d-][- it-] is"


def test_a_page_says_what_was_changed_and_runs_nothing(tmp_path):
    edits = [Edit("<b>why</b>", "<script>1</script> a", "<script>1</script> b"), Edit("", "", "x")]
    write_edits_page(tmp_path / "page.html", edits, "<edits>")
    page = (tmp_path / "page.html").read_text()
    assert "<del>a</del><ins>b</ins>" in page and "<ins>x</ins>" in page
    assert "<script>1" not in page and "&lt;b&gt;why" in page and "&lt;edits&gt;" in page
