"""What commands print may come from outside, and is read on a terminal."""

import json

import pytest

from streamproc.cli.output import json_text, say_json

OBEYED = "\0\n\x1b\x7f\x80\x9b\x9f\u061c\u200b\u200e\u2028\u202e\u2066\ufeff\U000e0041\ud800"


def test_json_says_what_a_terminal_would_obey_by_its_number_and_everything_else_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    readable = "क्\u200dष 佐々木 ₹ \U0001f600"
    value = {f"key{OBEYED}": [OBEYED, readable, 'a"\\b']}
    say_json(value)
    printed = capsys.readouterr().out
    for text in (printed, json_text(value)):
        assert json.loads(text) == value
        assert not set(OBEYED) - {"\n"} & set(text)
        assert readable in text
    assert "\\u009b\\u009f\\u061c" in printed
    assert "\n" not in json_text(value)
