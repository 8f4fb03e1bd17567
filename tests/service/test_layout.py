from __future__ import annotations

from service.command.layout import named, paragraph, table

HEAD = ("run", "who", "why")
ROWS = [(7, None, "a reason with many words in it"), (12, None, "short")]


def test_in_a_terminal_cells_stand_below_each_other_and_the_last_is_cut_first() -> None:
    assert table(HEAD, ROWS, 20) == ["run  why", "7    a reason with …", "12   short"]
    assert table(HEAD, ROWS, 80) == ["run  why", "7    a reason with many words in it", "12   short"]
    assert table(HEAD, [(7, "somebody of the house", "a reason")], 24) == [
        "run  who        why",
        "7    somebody…  a reason",
    ]


def test_into_a_pipe_cells_are_whole_and_apart_by_tabs() -> None:
    assert table(HEAD, ROWS, None) == ["run\twho\twhy", "7\t\ta reason with many words in it", "12\t\tshort"]


def test_wide_characters_take_two_columns() -> None:
    assert table(("name", "x"), [("年収", "1"), ("age", "2")], 80) == ["name  x", "年収  1", "age   2"]


def test_what_somebody_wrote_cannot_move_the_cursor_nor_make_another_line() -> None:
    assert table(("why",), [("red \x1b[31m\nrow\t2",)], None) == ["why", "red ?[31m row 2"]
    assert paragraph("red \x1b[31m\nrow", 80) == ["red ?[31m row"]


def test_a_paragraph_is_broken_between_words_in_a_terminal_only() -> None:
    words = "one two three four five six seven eight nine ten"

    assert paragraph(words, 40, rest="  ") == ["one two three four five six seven eight", "  nine ten"]
    assert paragraph(words, None, rest="  ") == [words]


def test_a_name_is_said_once_in_a_terminal_and_on_each_line_of_a_pipe() -> None:
    parts = [("because", "growth"), ("because", "quality"), ("data", "12 rows")]

    assert named(parts, 80) == ["  because  growth", "           quality", "  data     12 rows"]
    assert named(parts, None) == ["  because  growth", "  because  quality", "  data     12 rows"]


def test_sentences_are_broken_between_words_and_never_cut() -> None:
    rows = [("a_long_name_of_a_column", "leak: alone tells the target, is it known when predicting?"), ("b", "")]

    lines = table(("column", "why"), rows, 50, sentences=True)

    assert lines == [
        "column              why",
        "a_long_name_of_a_…  leak: alone tells the target,",
        "                    is it known when predicting?",
        "b",
    ]
    assert table(("column", "why"), rows, None, sentences=True)[1].split("\t") == list(rows[0])
